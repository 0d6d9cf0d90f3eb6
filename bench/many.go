package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// manyTTL is the expiry of what SetMany stores.
const manyTTL = time.Hour

// manyVerb is a verb of many keys; work returns what its callers do with n keys at once.
type manyVerb struct {
	name string
	work func(b *session, c client.Many, n int) load.Work
}

var manyVerbs = []manyVerb{
	{"GetMany", (*session).getMany},
	{"SetMany", (*session).setMany},
	{"Delete", (*session).deleteMany},
}

// many is the section of calls with many keys.
func (b *session) many() plan {
	p := plan{section: &report.Section{
		Title: "Many keys", Unit: "key", Axes: []string{"verb", "keys", "callers"},
		About: "Values of 100 B. Each client uses the way of its documentation: MGET for GetMany (rueidis: its helper, and the command); " +
			"for SetMany a pipeline of SETs with an expiry of an hour, as MSET has none; for Delete one DEL, of keys that exist. " +
			"The time of a key is that of all callers together; p50 and p99 are those of a call. " +
			"Before each Delete a script stores the keys again, which is not timed, but counted in the CPU and the allocations; " +
			"with 8 callers, the scripts of others are in a call's way. " +
			"This library's Delete ends the leases of the keys too, a second DEL.",
		Main: report.NsEach, Tail: report.P99,
	}}
	for _, verb := range manyVerbs {
		for _, n := range pick(b.o.quick, []int{10, 100, 1_000, 10_000}, []int{10, 1_000}) {
			for _, callers := range []int{1, 8} {
				spec := b.spec(callers)
				spec.Weight = n
				p.rows = append(p.rows, rowPlan{
					row: report.Row{
						At:     []string{verb.name, strconv.Itoa(n), strconv.Itoa(callers)},
						Group:  fmt.Sprintf("%s of %d keys", verb.name, n),
						Column: report.Callers(callers),
					},
					prepare: b.fill(b.keys, small),
					turns: b.turns(client.SectionMany, b.plain(callers), func(ctx context.Context, c client.Client) (load.Sample, error) {
						return b.runner.Run(ctx, verb.work(b, c.(client.Many), n), spec)
					}),
				})
			}
		}
	}
	return p
}

// batches cuts the keys into batches of n with their values.
func batches(keys []string, n int) []*client.Batch {
	var all []*client.Batch
	for ; len(keys) >= n; keys = keys[n:] {
		batch := &client.Batch{Keys: keys[:n], Items: make(map[string][]byte, n)}
		for _, key := range batch.Keys {
			value := load.Value(key, small)
			batch.Values = append(batch.Values, value)
			batch.Items[key] = value
		}
		all = append(all, batch)
	}
	return all
}

func (b *session) getMany(c client.Many, n int) load.Work {
	all := batches(b.keys, n)
	return func(caller int) load.Op {
		at := caller
		return load.Op{Do: func() error {
			batch := all[at%len(all)]
			at++
			got := 0
			err := c.GetMany(context.Background(), batch.Keys, func(i int, value []byte) {
				if load.Check(value, batch.Keys[i], small) {
					got++
				}
			})
			if err == nil && got != n {
				return load.ErrForeign
			}
			return err
		}}
	}
}

func (b *session) setMany(c client.Many, n int) load.Work {
	b.filled = filling{} // what is there will expire
	all := batches(b.keys, n)
	return func(caller int) load.Op {
		at := caller
		return load.Op{Do: func() error {
			batch := all[at%len(all)]
			at++
			return c.SetMany(context.Background(), batch, manyTTL)
		}}
	}
}

func (b *session) deleteMany(c client.Many, n int) load.Work {
	b.filled = filling{} // there are more keys than those
	return func(caller int) load.Op {
		prefix := fmt.Sprintf("bench:delete:%d:", caller)
		keys := server.PopulatedKeys(prefix, n)
		return load.Op{
			Before: func() error { return b.srv.Populate(prefix, n, small) },
			Do:     func() error { return c.DeleteMany(context.Background(), keys) },
		}
	}
}
