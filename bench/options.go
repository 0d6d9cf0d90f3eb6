package main

import (
	"cmp"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
)

// keyCount is how many keys there are.
const keyCount = 10_000

// What a full and a quick run take where the flags say nothing.
const (
	fullRounds, quickRounds = 5, 3
	fullSlice, quickSlice   = 500 * time.Millisecond, 200 * time.Millisecond

	fullCallers, quickCallers = "1,2,4,8,16,32,64,512", "1,8,64,512"
)

// options is what the flags say.
type options struct {
	command    string // for the report
	out        string
	cpuProfile string
	rounds     int
	slice      time.Duration
	quick      bool
	sections   map[string]bool
	clients    []client.Config
	callers    []int
	conditions []condition // of the matrix
}

// has says whether a section was chosen.
func (o *options) has(section string) bool { return o.sections[section] }

// warmup is the part of a slice that runs before it and is not counted.
func (o *options) warmup() time.Duration { return o.slice / 4 }

// parse reads the flags. The axes of the matrix are lists, the first value of
// each is what -quick keeps while it varies another.
func parse(args []string) (*options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "fewer sections, conditions and rounds, shorter slices: under two minutes")
	chosen := f.String("sections", "", "the `names` of the sections, comma-separated, or all: "+sectionNames()+
		" (default all, quick matrix, http, loads and limit)")
	extras := f.Bool("extras", true, "false is short for -sections matrix")
	clients := f.String("clients", "", "the `names` of the clients, comma-separated; a * at the end stands for any rest (default all)")
	callers := f.String("callers", "", "the `numbers` of concurrent callers of matrix and tls (default "+fullCallers+", quick "+quickCallers+")")
	values := f.String("values", "100,10000", "the `sizes` of the matrix' values, in bytes")
	mixes := f.String("mixes", "9:1,1:1,1:0", "the matrix' `mixes` of GET to SET")
	rtts := f.String("rtts", "0,2ms", "the `durations` that a round trip of the matrix takes more")
	f.IntVar(&o.rounds, "rounds", 0, fmt.Sprintf("how often each client has its turn (default %d, quick %d)", fullRounds, quickRounds))
	f.DurationVar(&o.slice, "slice", 0, fmt.Sprintf("how long a turn counts (default %v, quick %v)", fullSlice, quickSlice))
	f.StringVar(&o.out, "o", "results.md", "the report's `file`; the plots go beside it")
	f.StringVar(&o.cpuProfile, "cpuprofile", "", "write a CPU profile of the load to this `file`")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("bench: what is %q?", f.Arg(0))
	}
	o.command = strings.Join(append([]string{"go run ."}, quoted(args)...), " ")
	o.defaults()
	if o.rounds < 1 || o.slice <= 0 {
		return nil, fmt.Errorf("bench: -rounds and -slice must be positive")
	}
	var err error
	if o.clients, err = client.Choose(*clients); err != nil {
		return nil, err
	}
	if !*extras {
		*chosen = cmp.Or(*chosen, "matrix")
	}
	if o.sections, err = chooseSections(*chosen, o.quick); err != nil {
		return nil, err
	}
	if o.callers, err = list(cmp.Or(*callers, pick(o.quick, fullCallers, quickCallers)), positive); err != nil {
		return nil, err
	}
	o.conditions, err = conditions(*rtts, *values, *mixes, o.callers, o.quick)
	return &o, err
}

// defaults fills in what was not said.
func (o *options) defaults() {
	o.rounds = cmp.Or(o.rounds, pick(o.quick, fullRounds, quickRounds))
	o.slice = cmp.Or(o.slice, pick(o.quick, fullSlice, quickSlice))
}

// pick returns what a full or a quick run has.
func pick[T any](quick bool, full, few T) T {
	if quick {
		return few
	}
	return full
}

// quoted puts in quotes what a shell would take apart.
func quoted(args []string) []string {
	q := make([]string, len(args))
	for i, a := range args {
		if q[i] = a; strings.ContainsAny(a, " *") {
			q[i] = "'" + a + "'"
		}
	}
	return q
}

// conditions returns every combination of the lists, or for a quick run those that
// matter most. The callers vary fastest.
func conditions(rtts, values, mixes string, callers []int, quick bool) ([]condition, error) {
	rs, err := list(rtts, delay)
	if err != nil {
		return nil, err
	}
	vs, err := list(values, positive)
	if err != nil {
		return nil, err
	}
	ms, err := list(mixes, load.ParseMix)
	if err != nil {
		return nil, err
	}
	var all []condition
	for _, r := range rs {
		for _, v := range vs {
			for _, m := range ms {
				for _, c := range callers {
					all = append(all, condition{RTT: r, ValueSize: v, Mix: m, Callers: c})
				}
			}
		}
	}
	if quick {
		all = quickOf(all)
	}
	return all, nil
}

// quickOf keeps all callers of the first condition, and varies one thing at a
// time beside it: the round trip at the most callers, where it decides, value
// and mix at 64 callers or, where that is not asked for, at the most.
func quickOf(all []condition) []condition {
	first, most, middle := all[0], 0, 0
	for _, c := range all {
		most = max(most, c.Callers)
		if c.Callers <= 64 {
			middle = max(middle, c.Callers)
		}
	}
	if middle == 0 {
		middle = most
	}
	var kept []condition
	for _, c := range all {
		at := c.Callers
		base := first
		base.Callers = at
		farther, larger, mixed := base, base, base
		farther.RTT, larger.ValueSize, mixed.Mix = c.RTT, c.ValueSize, c.Mix
		if c == base || c == farther && at == most || (c == larger || c == mixed) && at == middle {
			kept = append(kept, c)
		}
	}
	return kept
}

// list reads a comma-separated list.
func list[T any](s string, read func(string) (T, error)) ([]T, error) {
	var all []T
	for part := range strings.SplitSeq(s, ",") {
		v, err := read(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func positive(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("bench: %q is not a positive number", s)
	}
	return n, nil
}

func delay(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("bench: %q is not a duration", s)
	}
	return d, nil
}
