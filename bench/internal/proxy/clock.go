package proxy

import (
	"runtime"
	"sync"

	"github.com/rediscache/rediscache/bench/internal/pace"
)

// clock holds every chunk of the proxy until it is due. The delay is the same
// for all, so that the order of arrival is nearly the order of the times, and
// one queue and one thread serve all connections: a thread of its own, because
// the Go scheduler rounds the sleep of an idle process up to a millisecond.
//
// Two readers may add in the other order than they read the time; the second
// is then late by the microseconds between.
type clock struct {
	mu     sync.Mutex
	more   *sync.Cond // signalled at each add and at stop
	queue  []chunk
	ending bool

	done chan struct{} // closed when the thread has ended
}

// newClock starts the thread; stop ends it and waits for it.
func newClock() *clock {
	c := &clock{done: make(chan struct{})}
	c.more = sync.NewCond(&c.mu)
	go c.run()
	return c
}

func (c *clock) add(x chunk) {
	c.mu.Lock()
	c.queue = append(c.queue, x)
	c.mu.Unlock()
	c.more.Signal()
}

func (c *clock) run() {
	defer close(c.done)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	pace.Thread()
	var taken []chunk
	for {
		taken = c.take(taken)
		if len(taken) == 0 {
			return
		}
		for _, x := range taken {
			pace.SleepUntil(x.due)
			x.to.put(x)
		}
	}
}

// take waits for chunks and returns all there are; none when the clock ends.
func (c *clock) take(reuse []chunk) []chunk {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.ending {
		c.more.Wait()
	}
	taken := c.queue
	c.queue = reuse[:0]
	return taken
}

// stop ends the thread when nothing adds to the clock any more.
func (c *clock) stop() {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.more.Signal()
	<-c.done
}
