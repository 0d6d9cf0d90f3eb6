package fill

import (
	"context"
	"sync"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
)

// way is how the holder of a lease, and nobody else, ends it.
type way uint8

const (
	byScript      way = iota // in one round trip
	byTransaction            // WATCH and MULTI, in two round trips, if Redis refuses scripts
	noWay                    // no leases are taken: values are stored without a check
)

// refusalLasts is how long a way that Redis refused is not tried. An ACL may change, and a
// refused attempt costs one round trip.
const refusalLasts = time.Minute

// ways remembers which way works. The zero ways begins with scripts.
type ways struct {
	mu    sync.Mutex // guards below
	known way
	since time.Time // when known was last recorded
}

// current returns the first way that Redis did not refuse within refusalLasts.
func (w *ways) current() way {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isOldLocked() {
		return byScript
	}
	return w.known
}

func (w *ways) isOldLocked() bool { return time.Since(w.since) >= refusalLasts }

// record records the way that works, and reports whether it differs from the last one. A way that
// is known already stays as old as it is, so that the ways before it are tried in time.
func (w *ways) record(works way) (differs bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	differs = w.known != works
	if differs || w.isOldLocked() {
		w.known, w.since = works, time.Now()
	}
	return differs
}

// Refuse records that Redis refuses the commands of leases for good, with err. For a minute no
// job takes a lease. Refuse calls Config.Refused unless this is known.
func (l *Leases) Refuse(ctx context.Context, err error) {
	if l.ways.record(noWay) {
		l.refused(ctx, err)
	}
}

// RefusedForGood reports whether Redis would refuse the command of err again: the user may not
// run it, the server does not know it, or the error is unknown to this module.
func RefusedForGood(err error) bool {
	meaning, answered := resp.MeaningOfError(err)
	return answered && (meaning == 0 || meaning.Has(resp.Denied|resp.UnknownCommand) && !meaning.Has(resp.Condemns))
}
