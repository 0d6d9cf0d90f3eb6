package main

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far the run is: a bar on a terminal, a line a step
// elsewhere.
type progress struct {
	to       *os.File
	bar      *progressbar.ProgressBar // nil where to is not a terminal
	at, of   int
	begun    time.Time
	finished bool
}

func newProgress(to *os.File, steps int) *progress {
	p := &progress{to: to, of: steps, begun: time.Now()}
	if term.IsTerminal(int(to.Fd())) {
		p.bar = progressbar.NewOptions(steps,
			progressbar.OptionSetWriter(to), progressbar.OptionSetWidth(30), progressbar.OptionShowCount(),
			progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetRenderBlankState(true))
	}
	return p
}

// step says what begins now; the step before it is then done.
func (p *progress) step(what string) {
	if p.bar == nil { // a line that cannot be written stops nothing
		_, _ = fmt.Fprintf(p.to, "%4d/%d %6s  %s\n", p.at+1, p.of, time.Since(p.begun).Round(time.Second), what)
	} else {
		p.bar.Describe(fmt.Sprintf("%-64.64s", what))
		_ = p.bar.Set(p.at) // likewise
	}
	p.at++
}

// finish takes the bar away.
func (p *progress) finish() {
	if p.bar != nil && !p.finished {
		_ = p.bar.Finish() // likewise
	}
	p.finished = true
}
