package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/proxy"
	"github.com/rediscache/rediscache/bench/internal/report"
)

// condition is what all clients of a row of the matrix are measured under.
type condition struct {
	RTT       time.Duration // what the delay proxy adds; zero goes without it
	ValueSize int
	Mix       load.Mix
	Callers   int
}

// matrix is the section that varies round trip, value, mix and callers.
func (b *session) matrix() plan {
	p := plan{section: &report.Section{
		Title: "Ops/s", Unit: "op", Axes: []string{"round trip", "value", "GET:SET", "callers"},
		Main: report.PerSec, Tail: report.P99, Plot: true,
	}}
	for _, c := range b.o.conditions {
		at := []string{rtt(c.RTT), report.Size(c.ValueSize), c.Mix.String(), strconv.Itoa(c.Callers)}
		p.rows = append(p.rows, rowPlan{
			row: report.Row{
				At:     at,
				Group:  fmt.Sprintf("round trip %s, %s, %s", at[0], at[1], at[2]),
				Column: report.Callers(c.Callers),
			},
			prepare: b.fill(b.keys, c.ValueSize),
			turns: b.turns("matrix", func() (client.Target, error) {
				addr, err := b.addr(c.RTT)
				return client.Target{Addr: addr, Callers: c.Callers}, err
			}, b.closedLoop(c.Callers, b.keys, c.ValueSize, c.Mix)),
		})
	}
	return p
}

// rtt writes a round trip; zero is what the machine itself takes.
func rtt(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	return d.String()
}

// addr returns where to dial for a round trip that takes rtt more.
func (b *session) addr(rtt time.Duration) (string, error) {
	if rtt == 0 {
		return b.srv.Addr(), nil
	}
	if p := b.proxies[rtt]; p != nil {
		return p.Addr(), nil
	}
	p, err := proxy.Start(b.srv.Addr(), rtt)
	if err != nil {
		return "", err
	}
	b.proxies[rtt] = p
	measured, err := roundTrip(p.Addr())
	b.report.Measured[rtt] = measured
	return p.Addr(), err
}

// roundTrip returns the median of some PINGs.
func roundTrip(addr string) (time.Duration, error) {
	conn, err := redis.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	took := make([]time.Duration, 21)
	for i := range took {
		start := time.Now()
		if _, err := conn.Do("PING"); err != nil {
			return 0, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
