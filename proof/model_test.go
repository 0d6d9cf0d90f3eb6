package proof_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// call is what a client asked of one key and what it was told. A write that failed, and whose
// outcome is not unknown, did not happen, so it is no call; nor is a get that failed.
type call struct {
	client   int
	key      string
	verb     verb
	value    string // that a set stores, or that a get found; empty: none
	existed  bool   // what a delete said
	lost     bool   // a write of unknown outcome: it happens at some time after from, or never
	turn     int    // of a lost one, how many of its verb came before it
	from, to int64
}

type verb string

const (
	get verb = "get"
	set verb = "set"
	del verb = "delete"
	end verb = "end" // not a client's: it comes after all that clients were told
)

// register is what the server holds under one key, as far as the search for an order has come.
type register struct {
	value      string // empty: none; nobody sets that
	sets, dels int    // lost ones that were taken for applied
	due        bool   // the last step was one of those
	over       bool   // what clients were told is explained
}

// step says what a call may have been told by a register, and what that holds then.
//
// A search that tries each lost write everywhere does not end where there are many. So one is taken
// for applied only where it is needed: a delete where there is a value, a set where there is none,
// for the next call, which must be one that tells the difference. Anywhere else nobody would notice
// if it came later, or after the end, which is to say never. And as they are alike, no one having
// read the value of such a set, they are taken in the order of their calls.
func (r register) step(c call) (legal bool, next register) {
	if r.over {
		return true, r
	}
	next = r
	next.due = false
	switch {
	case c.verb == end:
		legal = true
		next.over = true
	case c.verb == get:
		legal = c.value == r.value
	case c.lost && c.verb == set:
		legal = !r.due && r.value == "" && c.turn == r.sets
		next.value, next.sets, next.due = c.value, r.sets+1, true
	case c.lost:
		legal = !r.due && r.value != "" && c.turn == r.dels
		next.value, next.dels, next.due = "", r.dels+1, true
	case c.verb == set:
		legal = !r.due
		next.value = c.value
	default:
		legal = c.existed == (r.value != "")
		next.value = ""
	}
	return legal, next
}

var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		return state.(register).step(input.(call))
	},
	DescribeOperation: func(input, _ any) string { return input.(call).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%q", state.(register).value) },
}

func (c call) String() string {
	switch {
	case c.lost:
		return fmt.Sprintf("%s %s: unknown", c.verb, c.value)
	case c.verb == del:
		return fmt.Sprintf("delete: %t", c.existed)
	}
	return fmt.Sprintf("%s %q", c.verb, c.value)
}

const never = math.MaxInt64

// history turns the calls to one key into what porcupine checks. Values are unique, so a lost set
// whose value was read was applied, and before the first who read it was told so.
func history(calls []call) []porcupine.Operation {
	read := make(map[string]int64) // when somebody had first read a value
	for _, c := range calls {
		if at, ok := read[c.value]; c.verb == get && (!ok || c.to < at) {
			read[c.value] = c.to
		}
	}
	calls = slices.Clone(calls)
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(a.from, b.from) })
	turns := make(map[verb]int)
	operations := []porcupine.Operation{{Input: call{verb: end}, Call: never - 1, Return: never - 1}}
	for _, c := range calls {
		if at, ok := read[c.value]; ok && c.lost && c.verb == set {
			c.lost, c.to = false, max(at, c.from)
		}
		if c.lost {
			c.to, c.turn = never, turns[c.verb]
			turns[c.verb]++
		}
		operations = append(operations, porcupine.Operation{ClientId: c.client, Input: c, Call: c.from, Return: c.to})
	}
	return operations
}

func linearizable(calls []call) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model, history(calls), time.Minute)
}

// What the hand-written histories are made of.
func wrote(value string, from, to int64) call {
	return call{verb: set, value: value, from: from, to: to}
}

func found(value string, from, to int64) call {
	return call{verb: get, value: value, from: from, to: to}
}

func missed(from, to int64) call { return found("", from, to) }

func deleted(existed bool, from, to int64) call {
	return call{verb: del, existed: existed, from: from, to: to}
}

func lostSet(value string, from int64) call {
	return call{verb: set, value: value, lost: true, from: from}
}

func lostDelete(from int64) call { return call{verb: del, lost: true, from: from} }

func TestTheModelTakesWhatTheContractAllows(t *testing.T) {
	for name, calls := range map[string][]call{
		"no call": {},
		"a miss":  {missed(1, 2)},
		"each call sees the one before": {
			wrote("a", 1, 2), found("a", 3, 4), wrote("b", 5, 6), found("b", 7, 8),
			deleted(true, 9, 10), missed(11, 12), deleted(false, 13, 14),
		},
		"sets at one time, in either order":       {wrote("a", 1, 9), wrote("b", 1, 9), found("b", 2, 3), found("a", 4, 5)},
		"a get at the time of a set":              {wrote("a", 1, 5), missed(1, 3), found("a", 2, 4)},
		"a lost set, applied":                     {lostSet("a", 1), found("a", 2, 3), found("a", 4, 5)},
		"a lost set, never applied":               {lostSet("a", 1), missed(2, 3), missed(4, 5)},
		"a lost set, applied late":                {lostSet("b", 1), wrote("a", 2, 3), found("a", 4, 5), found("b", 6, 7)},
		"a lost set that only a delete saw":       {lostSet("a", 1), missed(2, 3), deleted(true, 4, 5), missed(6, 7)},
		"a lost delete, applied":                  {wrote("a", 1, 2), lostDelete(3), missed(4, 5)},
		"a lost delete, never applied":            {wrote("a", 1, 2), lostDelete(3), found("a", 4, 5)},
		"a lost delete, applied late":             {lostDelete(1), wrote("a", 2, 3), found("a", 4, 5), missed(6, 7)},
		"a lost delete that only another one saw": {wrote("a", 1, 2), lostDelete(3), found("a", 4, 5), deleted(false, 6, 7)},
		"lost ones, some applied": {
			wrote("a", 1, 2), lostDelete(3), lostSet("b", 3), lostSet("c", 3), lostDelete(3),
			missed(4, 5), deleted(true, 6, 7), wrote("d", 8, 9), missed(10, 11),
		},
	} {
		require.Equal(t, porcupine.Ok, linearizable(calls), name)
	}
}

func TestTheModelRefusesWhatTheContractForbids(t *testing.T) {
	for name, calls := range map[string][]call{
		"a stale read":                           {wrote("a", 1, 2), wrote("b", 3, 4), found("a", 5, 6)},
		"a set that is gone":                     {wrote("a", 1, 2), missed(3, 4)},
		"a failed delete that was applied":       {wrote("a", 1, 2), found("a", 3, 4), missed(5, 6)},
		"a failed set that was applied":          {wrote("a", 1, 2), found("b", 3, 4)},
		"a value before it was set":              {found("a", 1, 2), wrote("a", 3, 4)},
		"a deleted value that comes back":        {wrote("a", 1, 2), deleted(true, 3, 4), found("a", 5, 6)},
		"a delete of what was gone":              {wrote("a", 1, 2), deleted(true, 3, 4), deleted(true, 5, 6)},
		"a delete that did not see a value":      {wrote("a", 1, 2), deleted(false, 3, 4)},
		"sets at one time, in both orders":       {wrote("a", 1, 9), wrote("b", 1, 9), found("a", 2, 3), found("b", 4, 5), found("a", 6, 7)},
		"a lost set, applied before its call":    {found("a", 1, 2), lostSet("a", 3)},
		"a lost set, applied twice":              {lostSet("b", 1), found("b", 2, 3), wrote("a", 4, 5), found("b", 6, 7)},
		"a lost set that two deletes saw":        {lostSet("a", 1), deleted(true, 2, 3), deleted(true, 4, 5)},
		"a lost delete, applied before its call": {wrote("a", 1, 2), missed(3, 4), lostDelete(5)},
		"a lost delete, applied twice":           {lostDelete(1), wrote("a", 2, 3), missed(4, 5), wrote("b", 6, 7), missed(8, 9)},
	} {
		require.Equal(t, porcupine.Illegal, linearizable(calls), name)
	}
}

// TestTheModelAgreesWithOneThatTriesEverything shows, on histories short enough for it, that
// nothing is lost by taking a lost write for applied only where that shows.
func TestTheModelAgreesWithOneThatTriesEverything(t *testing.T) {
	plain := porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			switch c := input.(call); c.verb {
			case get:
				return state == c.value, state
			case del:
				return c.lost || c.existed == (state != ""), ""
			default:
				return true, c.value
			}
		},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	verdicts := make(map[porcupine.CheckResult]int)
	for range 2000 {
		calls := possible(rng)
		require.Equal(t, porcupine.Ok, linearizable(calls), "%v", calls)
		for i := range calls {
			if c := &calls[i]; rng.IntN(len(calls)) == 0 {
				c.existed = !c.existed
				if c.verb == get {
					c.value = calls[rng.IntN(len(calls))].value
				}
			}
		}
		var all []porcupine.Operation
		for _, c := range calls {
			if c.lost {
				c.to = never
			}
			all = append(all, porcupine.Operation{Input: c, Call: c.from, Return: c.to})
		}
		want := porcupine.CheckOperationsTimeout(plain, all, time.Minute)
		require.Equal(t, want, linearizable(calls), "%v", calls)
		verdicts[want]++
	}
	require.Greater(t, verdicts[porcupine.Ok], 200)
	require.Greater(t, verdicts[porcupine.Illegal], 200)
}

// possible makes up a history that the contract allows: each call happens at one moment, a lost
// one much later or never.
func possible(rng *rand.Rand) []call {
	type happening struct {
		call
		at int64
	}
	var all []happening
	for i := range 4 + rng.IntN(8) {
		h := happening{call: call{client: i, verb: []verb{get, set, del}[rng.IntN(3)], from: rng.Int64N(40)}}
		h.at = h.from + rng.Int64N(8)
		h.to = h.at + rng.Int64N(8)
		if h.verb != get && rng.IntN(2) == 0 {
			h.lost = true
			h.at += []int64{0, 10, 20, 1000}[rng.IntN(4)]
		}
		if h.verb == set {
			h.value = fmt.Sprint(i)
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b happening) int { return cmp.Compare(a.at, b.at) })
	var calls []call
	held := ""
	for _, h := range all {
		switch h.verb {
		case get:
			h.value = held
		case set:
			held = h.value
		case del:
			h.existed = !h.lost && held != ""
			held = ""
		}
		calls = append(calls, h.call)
	}
	return calls
}
