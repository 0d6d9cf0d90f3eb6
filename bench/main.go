// Command bench measures this library beside its peers, each tuned as its own
// documentation says, on a redis-server that it starts and stops itself. It
// writes a report in Markdown and plots in SVG.
//
//	go run . -quick                      # under two minutes
//	go run . -o results/results.md       # everything: about 35 minutes
//	go run . -clients 'rediscache,rueidis*' -callers 64,512 -values 100 -mixes 9:1 -rtts 0
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

	"github.com/rediscache/rediscache/bench/internal/proxy"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == proxy.Command {
		return proxy.Main(args[1:], os.Stdin, os.Stdout)
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
