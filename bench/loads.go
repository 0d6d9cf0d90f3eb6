package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/rediscache/rediscache"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

// getter is a client of which only Get is asked.
type getter func(ctx context.Context, key string) ([]byte, error)

func (g getter) Get(ctx context.Context, key string) ([]byte, error) { return g(ctx, key) }
func (getter) Set(context.Context, string, []byte) error             { return errors.ErrUnsupported }
func (getter) Close() error                                          { return nil }

var _ client.Client = getter(nil)

// loads is the section of a hit of GetOrLoad beside a Get: under a policy for which GET
// is enough, and under one that needs PTTL too.
func (b *session) loads() plan {
	p := plan{section: &report.Section{
		Title: "GetOrLoad", Unit: "op", Axes: []string{"callers"},
		About: "A hit of GetOrLoad beside a Get of the same cache. With Policy.Stale it asks for PTTL too. 100 B.",
		Main:  report.PerSec, Tail: report.P99,
	}}
	get := func(c *rediscache.Cache) getter { return c.Get }
	view := func(policy rediscache.Policy) func(*rediscache.Cache) getter {
		return func(c *rediscache.Cache) getter {
			v, err := rediscache.Of(c, rediscache.Bytes(), policy)
			if err != nil {
				panic(err) // of constants
			}
			return func(ctx context.Context, key string) ([]byte, error) {
				return v.GetOrLoad(ctx, key, func(context.Context) ([]byte, error) { return nil, rediscache.ErrNotFound })
			}
		}
	}
	ways := []struct {
		name string
		open func(*rediscache.Cache) getter
	}{
		{client.Own, get},
		{"GetOrLoad", view(rediscache.Policy{TTL: time.Hour, Lease: time.Second})},
		{"GetOrLoad with Stale", view(rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: time.Second})},
	}
	for _, callers := range []int{1, 64} {
		row := rowPlan{
			row:     report.Row{At: []string{strconv.Itoa(callers)}, Column: report.Callers(callers)},
			prepare: b.fill(b.keys, small),
		}
		for _, way := range ways {
			row.turns = append(row.turns, turn{client: way.name, run: func(ctx context.Context) (_ load.Sample, err error) {
				cache, done, err := b.cache()
				if err != nil {
					return load.Sample{}, err
				}
				defer func() { err = errors.Join(err, done()) }()
				return b.closedLoop(callers, b.keys, small, load.Mix{Gets: 1})(ctx, way.open(cache))
			}})
		}
		p.rows = append(p.rows, row)
	}
	return p
}
