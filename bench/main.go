// Command bench measures this library beside its peers, each tuned as its own
// documentation says, on a redis-server that it starts and stops itself. It
// writes a report in Markdown and plots in SVG.
//
//	go run . -quick                      # under two minutes
//	go run . -o results/results.md       # everything: about two hours
//	go run . -sections tls,many          # these alone
//	go run . -sections matrix -clients 'rediscache,rueidis*' -callers 64,512 -values 100 -mixes 9:1 -rtts 0
//
// The clients take turns: in each round every client is measured once, for a
// short slice, in random order, so that a noise of the machine hits all alike.
// What counts is the ratio within a row; the numbers themselves are the
// machine's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
	"github.com/rediscache/rediscache/bench/internal/proxy"
	"github.com/rediscache/rediscache/bench/internal/spin"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if as, ok := asChild(args); ok {
		return as()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(args)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	return bench(ctx, o)
}

// asChild returns what the program does as one of its own child processes.
func asChild(args []string) (as func() error, ok bool) {
	if len(args) == 0 {
		return nil, false
	}
	switch args[0] {
	case proxy.Command:
		return func() error { return proxy.Main(args[1:], os.Stdin, os.Stdout) }, true
	case arrivals.Command:
		return func() error { return arrivals.Main(args[1:], os.Stdout) }, true
	case spin.Command:
		return func() error { return spin.Main(os.Stdin, os.Stdout) }, true
	}
	return nil, false
}
