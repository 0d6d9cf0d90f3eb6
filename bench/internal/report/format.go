package report

import (
	"fmt"
	"strconv"
)

// rate writes a number a second with three digits: "875 k".
func rate(n float64) string {
	switch {
	case n <= 0:
		return "-"
	case n >= 1e6:
		return digits(n/1e6) + " M"
	case n >= 1e3:
		return digits(n/1e3) + " k"
	}
	return digits(n)
}

// Rate writes a number a second.
func Rate(n int) string { return rate(float64(n)) }

// took writes a duration in nanoseconds with three digits.
func took(ns float64) string {
	switch {
	case ns <= 0:
		return "-"
	case ns >= 1e6:
		return digits(ns/1e6) + " ms"
	case ns >= 1e3:
		return digits(ns/1e3) + " us"
	}
	return digits(ns) + " ns"
}

// count writes a number of things.
func count(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// whole writes a number without its fraction.
func whole(n float64) string { return strconv.FormatFloat(n, 'f', 0, 64) }

// percent writes a share.
func percent(n float64) string { return strconv.FormatFloat(n, 'f', 1, 64) + " %" }

// digits writes n with about three digits and no exponent.
func digits(n float64) string {
	decimals := 0
	switch {
	case n < 9.995:
		decimals = 2
	case n < 99.95:
		decimals = 1
	}
	return strconv.FormatFloat(n, 'f', decimals, 64)
}

// spread writes a statistic as "median (min - max)".
func spread(s Stat, write func(float64) string) string {
	if s.Median <= 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s - %s)", write(s.Median), write(s.Min), write(s.Max))
}

// Size writes a value's size: "100 B", "10 kB", "1 MB".
func Size(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return fmt.Sprintf("%d MB", n/1_000_000)
	case n >= 1000 && n%1000 == 0:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d B", n)
}

// Callers writes how many there are.
func Callers(n int) string {
	if n == 1 {
		return "1 caller"
	}
	return fmt.Sprintf("%d callers", n)
}
