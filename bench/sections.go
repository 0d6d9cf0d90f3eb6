package main

import (
	"context"
	"fmt"
	"strings"
)

// section is a part of the run that -sections can choose.
type section struct {
	name  string
	about string
	quick bool // whether a quick run has it where nothing is chosen

	plan func(*session) plan // what it measures, in rows of clients
	// run measures what has no such rows, in as many steps; then plan is nil.
	run   func(*session, context.Context) error
	steps func(*options) int
}

// sections are all there are, in their order. Those with rows come first.
var sections = []section{
	{name: "matrix", about: "round trip, value, mix and callers", quick: true, plan: (*session).matrix},
	{name: "tls", about: "the callers over TLS", plan: (*session).overTLS},
	{name: "many", about: "calls with 10 to 10,000 keys", plan: (*session).many},
	{name: "large", about: "values of 60 kB, 70 kB and 1 MB", plan: (*session).large},
	{name: "open", about: "calls at a fixed rate", plan: (*session).open},
	{name: "busy", about: "beside a program that keeps every processor busy", plan: (*session).busy},
	{name: "http", about: "the HTTP handler beside handlers by hand", quick: true, plan: (*session).http},
	{name: "loads", about: "a hit of GetOrLoad beside a Get", quick: true, plan: (*session).loads},
	{name: "limit", about: "what the server can serve", quick: true, run: (*session).limit, steps: func(*options) int { return 1 }},
	{name: "beside", about: "small GETs beside one of 50 MiB", run: (*session).beside, steps: func(o *options) int { return besideWays * o.rounds }},
}

// chooseSections reads a comma-separated list. The empty one means all, or what a quick
// run has.
func chooseSections(list string, quick bool) (map[string]bool, error) {
	known, chosen := map[string]bool{}, map[string]bool{}
	for _, s := range sections {
		known[s.name] = true
		if list == "all" || list == "" && (!quick || s.quick) {
			chosen[s.name] = true
		}
	}
	if list == "all" || list == "" {
		return chosen, nil
	}
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if !known[name] {
			return nil, fmt.Errorf("bench: no section is called %q; there are %s", name, sectionNames())
		}
		chosen[name] = true
	}
	return chosen, nil
}

func sectionNames() string {
	var all []string
	for _, s := range sections {
		all = append(all, s.name)
	}
	return strings.Join(all, ", ")
}
