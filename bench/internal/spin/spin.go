// Package spin keeps processors busy: child processes that compute without end, at
// normal priority.
package spin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rediscache/rediscache/bench/internal/child"
	"github.com/rediscache/rediscache/bench/internal/load"
)

// Command is the first argument that makes the program spin.
const Command = "spin"

// Main is the program as a child: it spins until in ends. For each line on in it
// writes the processor time it has used, in nanoseconds, on out.
func Main(in io.Reader, out io.Writer) error {
	go func() { // ends with the process
		for n := uint64(0); ; n++ {
			_ = n
		}
	}()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if _, err := fmt.Fprintln(out, load.ProcessCPU().Nanoseconds()); err != nil {
			return err
		}
	}
	return nil
}

// Group is some spinning processes.
type Group struct {
	processes []*child.Process
}

// Start starts n spinning processes. The caller must call Close.
func Start(n int) (*Group, error) {
	g := &Group{}
	for range n {
		p, err := child.Start(Command)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.processes = append(g.processes, p)
	}
	return g, nil
}

// CPU returns the processor time that the processes have used.
func (g *Group) CPU() (time.Duration, error) {
	var total time.Duration
	for _, p := range g.processes {
		if _, err := fmt.Fprintln(p.In); err != nil {
			return 0, fmt.Errorf("bench: %s: %w", Command, err)
		}
	}
	for _, p := range g.processes {
		var ns int64
		if _, err := fmt.Fscanln(p.Out, &ns); err != nil {
			return 0, fmt.Errorf("bench: %s: %w", Command, err)
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// Close ends the processes and waits for them.
func (g *Group) Close() error {
	var errs []error
	for _, p := range g.processes {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
