//go:build race

package redistest

// RaceEnabled reports whether the race detector is on.
const RaceEnabled = true
