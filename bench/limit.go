package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"github.com/rediscache/rediscache/bench/internal/report"
)

// limitProgram comes with Redis; where it is missing, the report has no limit.
const limitProgram = "redis-benchmark"

// limit asks redis-benchmark how much the server can serve when 64 commands
// are always under way on each of 50 connections.
func (b *session) limit(ctx context.Context) error {
	b.progress.step(limitProgram)
	if _, err := exec.LookPath(limitProgram); err != nil {
		b.report.Notes = append(b.report.Notes, "No "+limitProgram+" here: the server's limit is not known.")
		return nil
	}
	host, port, err := net.SplitHostPort(b.srv.Addr())
	if err != nil {
		return err
	}
	args := []string{"-P", "64", "-c", "50", "-n", "1000000", "-r", strconv.Itoa(keyCount), "-d", "100", "-t", "set,get", "--csv"}
	out, err := exec.CommandContext(ctx, limitProgram, append([]string{"-h", host, "-p", port}, args...)...).Output()
	if err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("bench: %s: %w", limitProgram, err))
	}
	b.report.LimitCmd = limitProgram + " " + strings.Join(args, " ")
	b.report.Limit, err = parseLimit(string(out))
	return err
}

// parseLimit reads redis-benchmark's CSV: a test's name, its requests a second,
// and columns that newer versions add.
func parseLimit(out string) ([]report.LimitLine, error) {
	reader := csv.NewReader(strings.NewReader(out))
	reader.FieldsPerRecord = -1
	records, err := reader.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("bench: what %s printed: %w", limitProgram, err)
	}
	var lines []report.LimitLine
	for _, fields := range records {
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseFloat(fields[1], 64); err == nil { // not so: the head line
			lines = append(lines, report.LimitLine{Test: fields[0], PerSec: n})
		}
	}
	return lines, nil
}
