package proxy

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/rediscache/rediscache/bench/internal/child"
)

// Command is the first argument that makes the program be the proxy.
const Command = "proxy"

// Main is the program as a child: a proxy that prints its address on out and
// ends when in does, which happens too when its parent dies.
func Main(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	target := flags.String("target", "", "the `address` to connect to")
	delay := flags.Duration("delay", time.Millisecond, "the delay in each direction")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the process at the latest
		_, _ = io.Copy(io.Discard, in) // any end is the end
		cancel()
	}()
	return Serve(ctx, l, *target, *delay)
}

// Child is a proxy in a process of its own, so that its CPU is not counted as the
// clients'.
type Child struct {
	addr    string
	process *child.Process
}

// Start starts this program again as a proxy to target. rtt is what it adds to
// a round trip: one half in each direction. The caller must call Close.
func Start(target string, rtt time.Duration) (*Child, error) {
	process, err := child.Start(Command, "-target", target, "-delay", (rtt / 2).String())
	if err != nil {
		return nil, err
	}
	c := &Child{process: process}
	line, err := bufio.NewReader(process.Out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bench: the delay proxy printed no address: %w", err), c.Close())
	}
	c.addr = strings.TrimSpace(line)
	return c, nil
}

// Addr returns the proxy's host and port.
func (c *Child) Addr() string { return c.addr }

// Close ends the proxy and waits for it.
func (c *Child) Close() error { return c.process.Close() }
