// Package arrivals is the clock of an open loop: a child process that announces
// calls at a fixed rate, whether or not those before have ended. A process of its
// own wakes the measured one through a pipe, as the network wakes a server, and its
// CPU is not counted as the client's.
package arrivals

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"github.com/rediscache/rediscache/bench/internal/child"
	"github.com/rediscache/rediscache/bench/internal/pace"
)

// Command is the first argument that makes the program be the clock.
const Command = "arrivals"

const (
	// lead is the time from the start of the child to the first arrival.
	lead = 5 * time.Millisecond
	size = 8 // bytes of an arrival: its time, in nanoseconds since 1970
)

// Due returns when the i-th of rate arrivals a second is due.
func Due(begin time.Time, i, rate int) time.Time {
	return begin.Add(time.Duration(i/rate)*time.Second + time.Duration(i%rate)*time.Second/time.Duration(rate))
}

// Main is the program as a child: it writes each arrival on out when it is due, and
// those that became due meanwhile with it.
func Main(args []string, out io.Writer) error {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	rate := flags.Int("rate", 1, "arrivals a second")
	n := flags.Int("n", 1, "how many arrivals")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rate < 1 {
		return fmt.Errorf("bench: %d arrivals a second", *rate)
	}
	runtime.LockOSThread()
	pace.Thread()
	begin := time.Now().Add(lead)
	var due []byte
	for i := 0; i < *n; {
		next := Due(begin, i, *rate)
		pace.SleepUntil(next)
		due = due[:0]
		for now := time.Now(); i < *n && !next.After(now) || len(due) == 0; next = Due(begin, i, *rate) {
			due = binary.LittleEndian.AppendUint64(due, uint64(next.UnixNano()))
			i++
		}
		if _, err := out.Write(due); err != nil {
			return err
		}
	}
	return nil
}

// Run starts a child and calls arrive for each of n arrivals with its number and
// with when it was due, as wall-clock time. If arrive returns false, Run ends the child and returns.
func Run(rate, n int, arrive func(i int, due time.Time) bool) error {
	process, err := child.Start(Command, "-rate", strconv.Itoa(rate), "-n", strconv.Itoa(n))
	if err != nil {
		return err
	}
	buf := make([]byte, 4096*size)
	for i, have := 0, 0; i < n; {
		got, err := process.Out.Read(buf[have:])
		have += got
		at := 0
		for ; have-at >= size; at += size {
			due := time.Unix(0, int64(binary.LittleEndian.Uint64(buf[at:])))
			if !arrive(i, due) {
				process.Kill()
				return nil
			}
			i++
		}
		have = copy(buf, buf[at:have])
		if err != nil && i < n {
			return errors.Join(err, process.Close())
		}
	}
	return process.Close()
}
