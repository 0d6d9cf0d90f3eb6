package fill

import (
	"context"
	_ "embed"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

//go:embed scripts/fill.lua
var fillSource string

//go:embed scripts/release.lua
var releaseSource string

// ending is what ends a lease, as a script. A transaction does the same.
type ending struct {
	stores      bool   // it stores the data of the job
	source, sum string // of the script; sum is its SHA-1, by which Redis knows it
	begin       func(name string, n int, form pipeline.Form) *pipeline.Call
}

var (
	storing = ending{true, fillSource, Digest([]byte(fillSource)), pipeline.Write}
	// A retry of a release is harmless, because the token is unique: so it is a Read.
	releasing = ending{false, releaseSource, Digest([]byte(releaseSource)), pipeline.Read}
)

// call returns the call of the script for a job, by the command EVALSHA or EVAL.
func (e *ending) call(command, script string, j *Job) *pipeline.Call {
	if !e.stores {
		return e.begin(command, 4, pipeline.Count).String(script).Int(1).String(j.lease).String(j.token)
	}
	return e.begin(command, 9, pipeline.Count).String(script).Int(2).Key(j.Prefix, j.Key).String(j.lease).
		String(j.token).String(j.Before.Digest).Int(millis(j.Before.Left)).Value(j.Data).Int(millis(j.Life))
}

// runScripts runs a script once for each job, all in one pipeline: by its SHA-1 and, if the
// server does not hold the script, by its text. It returns the jobs for which Redis refuses
// scripts for good.
func (l *Leases) runScripts(ctx context.Context, jobs []*Job, how *ending) (refused []*Job) {
	for _, by := range []struct{ command, script string }{{"EVALSHA", how.sum}, {"EVAL", how.source}} {
		if len(jobs) == 0 {
			break
		}
		calls := make([]*pipeline.Call, len(jobs))
		for i, j := range jobs {
			calls[i] = how.call(by.command, by.script, j)
		}
		replies, errs := l.pipe.DoAll(ctx, calls...)
		var unknown []*Job
		for i, j := range jobs {
			switch meaning, _ := resp.MeaningOfError(errs[i]); {
			case meaning.Has(resp.NoScript) && by.command == "EVALSHA":
				unknown = append(unknown, j)
			case RefusedForGood(errs[i]):
				refused = append(refused, j)
			default:
				j.endedBy(how, replies[i].Int == 1, errs[i])
			}
		}
		jobs = unknown
	}
	return refused
}
