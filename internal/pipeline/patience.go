package pipeline

import (
	"context"
	"sync"
	"time"
)

// patience is the context in which a loan waits for a connection. The clock ends it when the context of
// the caller has ended or the timeout is over, and Close ends it.
type patience struct {
	caller context.Context

	mu    sync.Mutex    // guards below
	ended error         // nil: it has not ended by itself
	done  chan struct{} // closed when it ends; nil until a borrower has to wait
}

func (c *patience) Deadline() (time.Time, bool) { return c.caller.Deadline() }
func (c *patience) Value(key any) any           { return c.caller.Value(key) }

func (c *patience) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.ended != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *patience) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return c.ended
	}
	return c.caller.Err()
}

// end ends the context, and reports whether it had not ended.
func (c *patience) end(cause error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return false
	}
	c.ended = cause
	if c.done != nil {
		close(c.done)
	}
	return true
}
