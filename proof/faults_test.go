package proof_test

import (
	"math/rand/v2"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/rediscache/rediscache/internal/redistest"
)

// A fault lasts until end is called, or less.
type fault struct {
	name  string
	begin func(w *trial, rng *rand.Rand) (end func())
}

func nothing() {}

// Faults of the network and of the server come alone and in pairs, one of each.
var networkFaults = []fault{
	{"slow", func(w *trial, rng *rand.Rand) func() {
		dir := direction(rng)
		w.proxy.Delay(dir, upTo(rng, 5*time.Millisecond), 1+upTo(rng, 20*time.Millisecond))
		return func() { w.proxy.Delay(dir, 0, 0) }
	}},
	{"byte by byte", func(w *trial, rng *rand.Rand) func() {
		dir := direction(rng)
		w.proxy.Trickle(dir, 20*time.Microsecond)
		return func() { w.proxy.Trickle(dir, 0) }
	}},
	{"cut", func(w *trial, rng *rand.Rand) func() {
		w.proxy.Cut(direction(rng), rng.IntN(3000), rng.IntN(2) == 0)
		return nothing
	}},
	{"reset", func(w *trial, _ *rand.Rand) func() {
		w.proxy.Reset()
		return nothing
	}},
	{"black hole", func(w *trial, _ *rand.Rand) func() {
		w.proxy.Blackhole()
		return w.proxy.Resume
	}},
	{"black hole, then reset", func(w *trial, _ *rand.Rand) func() {
		w.proxy.Blackhole()
		return func() {
			w.proxy.Reset()
			w.proxy.Resume()
		}
	}},
	{"refused", func(w *trial, _ *rand.Rand) func() {
		w.proxy.Refuse()
		w.proxy.Reset()
		return w.proxy.Accept
	}},
}

var serverFaults = []fault{
	{"CLIENT KILL", func(w *trial, _ *rand.Rand) func() {
		w.server.KillClients()
		return nothing
	}},
	{"CLIENT PAUSE ALL", func(w *trial, rng *rand.Rand) func() {
		w.server.Do("CLIENT", "PAUSE", 1+rng.IntN(150), "ALL") // ends by itself
		return nothing
	}},
	{"CLIENT PAUSE WRITE", func(w *trial, rng *rand.Rand) func() {
		w.server.Do("CLIENT", "PAUSE", 1+rng.IntN(150), "WRITE")
		return nothing
	}},
	{"SIGSTOP", func(w *trial, _ *rand.Rand) func() {
		w.server.Stop()
		return w.server.Cont
	}},
	{"SIGKILL", func(w *trial, _ *rand.Rand) func() {
		w.server.Kill() // it loads its file when it is back
		return w.server.Restart
	}},
}

func direction(rng *rand.Rand) redistest.Direction {
	return []redistest.Direction{redistest.Up, redistest.Down}[rng.IntN(2)]
}

// trouble strikes for a while.
func (w *trial) trouble(rng *rand.Rand) {
	for end := time.Now().Add(unrest); time.Now().Before(end); {
		var ends []func()
		if rng.IntN(4) > 0 {
			ends = append(ends, w.strike(rng, networkFaults))
		}
		if rng.IntN(2) == 0 {
			ends = append(ends, w.strike(rng, serverFaults))
		}
		time.Sleep(upTo(rng, 150*time.Millisecond)) // the length of the fault
		for _, end := range ends {
			end()
		}
		time.Sleep(upTo(rng, 50*time.Millisecond)) // the pause between two
	}
}

// strike begins one of the faults and writes it down.
func (w *trial) strike(rng *rand.Rand, faults []fault) func() {
	f := faults[rng.IntN(len(faults))]
	began := w.now()
	end := f.begin(w, rng)
	i := len(w.marks)
	w.marks = append(w.marks, porcupine.Annotation{
		Tag: "faults", Start: began, End: began, Description: f.name, BackgroundColor: "#ffaaaa",
	})
	return func() {
		end()
		w.marks[i].End = w.now()
	}
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d)))
}
