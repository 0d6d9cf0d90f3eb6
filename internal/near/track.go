package near

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// The tracking connection redirects its reports to itself: CLIENT TRACKING ON REDIRECT <own id> BCAST,
// then SUBSCRIBE. So tracking and delivery end together, and data connections may come and go. Without
// BCAST a data connection that ends would end the reports of all keys that were read through it, and
// nobody would notice.

const channel = "__redis__:invalidate"

const (
	firstRetry   = 50 * time.Millisecond // after a connection was lost; doubled after each failure
	lastRetry    = time.Second
	afterRefusal = time.Minute // an ACL may change, and a failover may lead to a newer server
	borrowWait   = 5 * time.Second
)

// run keeps a tracking connection until ctx ends.
func (c *Cache) run(ctx context.Context) {
	defer c.change(Closed, nil)
	for wait := firstRetry; ; {
		served, err := c.track(ctx)
		if ctx.Err() != nil {
			return
		}
		state := Down
		switch {
		case refuses(err):
			state, wait = Refused, afterRefusal
		case served:
			wait = firstRetry
		default:
			wait = min(2*wait, lastRetry)
		}
		c.change(state, err)
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// change sets the state, and reports it if it is another one.
func (c *Cache) change(to State, err error) {
	if was := State(c.state.Swap(uint32(to))); was != to && c.cfg.Changed != nil {
		c.cfg.Changed(to, err)
	}
}

// refuses reports whether the server would refuse tracking again: the user may not use it, or the
// server does not know it.
func refuses(err error) bool {
	meaning, answered := resp.MeaningOfError(err)
	return errors.Is(err, errNotTracking) || errors.Is(err, errNoTimeouts) ||
		answered && (meaning == 0 || meaning.Has(resp.Denied|resp.UnknownCommand) && !meaning.Has(resp.Condemns))
}

var (
	errNotTracking = errors.New("rediscache: the server reports writes to another connection")
	errNoTimeouts  = errors.New("rediscache: the connections of the pool have no timeouts")
	errMessage     = errors.New("rediscache: unexpected message on the tracking connection")
	errSuspended   = errors.New("rediscache: the process was suspended")
)

// track borrows a connection and serves it until it fails or ctx ends. served reports whether copies
// were served meanwhile. An error may be a panic in code of the pool.
func (c *Cache) track(ctx context.Context) (served bool, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("rediscache: the pool panicked: %v", v)
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, borrowWait)
	defer cancel()
	conn, err := c.cfg.Borrow(waiting)
	if err != nil {
		return false, err
	}
	defer discard(conn)
	s := &session{c: c, conn: conn}
	if err := s.subscribe(); err != nil {
		return false, err
	}
	defer func() {
		c.until.Store(0)
		c.drop()
	}()
	return true, s.serve(ctx)
}

// discard makes the pool close a connection that tracks. A read that fails does that in every pool.
func discard(conn redis.Conn) {
	for {
		if _, err := redis.ReceiveWithTimeout(conn, time.Nanosecond); err != nil {
			break
		}
	}
	_ = conn.Close() // the error of that read
}

// session is one tracking connection.
type session struct {
	c    *Cache
	conn redis.Conn // serve receives, and ping sends

	mu       sync.Mutex // guards below
	answered int64      // when the last PING that was answered was sent
	asked    int64      // when the PING under way was sent; 0: none is
}

// subscribe makes the connection a tracking connection.
func (s *session) subscribe() error {
	if _, ok := s.conn.(redis.ConnWithTimeout); !ok {
		return errNoTimeouts
	}
	id, err := redis.Int64(redis.DoWithTimeout(s.conn, Lease, "CLIENT", "ID"))
	if err != nil {
		return err
	}
	args := []any{"TRACKING", "ON", "REDIRECT", id, "BCAST"}
	if s.c.cfg.Prefix != "" {
		args = append(args, "PREFIX", s.c.cfg.Prefix)
	}
	if _, err := redis.DoWithTimeout(s.conn, Lease, "CLIENT", args...); err != nil {
		return err
	}
	// A proxy may answer OK and track another connection. A server may refuse the question itself.
	to, err := redis.Int64(redis.DoWithTimeout(s.conn, Lease, "CLIENT", "GETREDIR"))
	var refusal redis.Error
	switch {
	case errors.As(err, &refusal):
	case err != nil:
		return err
	case to != id:
		return errNotTracking
	}
	s.answered = s.c.now() // SUBSCRIBE counts as the first PING: no copy is older
	if err := s.send("SUBSCRIBE", channel); err != nil {
		return err
	}
	reply, err := redis.ReceiveWithTimeout(s.conn, Lease)
	if err != nil {
		return err
	}
	if parts, _ := reply.([]any); len(parts) != 3 || word(parts[0]) != "subscribe" {
		return errMessage
	}
	return nil
}

// serve processes messages. It waits for the goroutine that sends PINGs.
func (s *session) serve(ctx context.Context) error {
	var pinging sync.WaitGroup
	over, stop := context.WithCancel(ctx)
	defer pinging.Wait()
	defer stop()
	s.c.drop() // before copies are served
	s.c.until.Store(s.answered + int64(Lease))
	s.c.change(Live, nil)
	pinging.Go(func() { s.ping(over) })
	var pulse warm.Pulse
	for {
		pulse.Beat(time.Now())
		message, err := redis.ReceiveWithTimeout(s.conn, Lease)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case pulse.Missed(time.Now()): // the monotonic clock of a suspended machine may have stopped
			return errSuspended
		}
		if err := s.process(message); err != nil {
			return err
		}
	}
}

// process processes a PONG, or a report: an array of names, or nil after a flush.
func (s *session) process(message any) error {
	parts, _ := message.([]any)
	switch {
	case message == "PONG" || len(parts) == 2 && word(parts[0]) == "pong":
		s.pong()
	case len(parts) != 3 || word(parts[0]) != "message":
		return errMessage
	case parts[2] == nil:
		s.c.drop()
	default:
		names, ok := parts[2].([]any)
		if !ok {
			return errMessage
		}
		s.c.invalidations.Add(int64(len(names)))
		for _, name := range names {
			name, ok := name.([]byte)
			if !ok {
				return errMessage
			}
			s.c.invalidate(name)
		}
	}
	return nil
}

func word(part any) string {
	b, _ := part.([]byte)
	return string(b)
}

// pong extends the lease, from the PING before the one that was answered.
func (s *session) pong() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == 0 {
		return
	}
	s.c.until.Store(s.answered + int64(Lease))
	s.answered, s.asked = s.asked, 0
}

// ping sends PINGs, one at a time, until ctx ends. Then it sends one more, whose PONG wakes serve.
func (s *session) ping(ctx context.Context) {
	t := time.NewTicker(between)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			_ = s.send("PING") // after an error serve gets it too
			return
		}
		if s.ask() && s.send("PING") != nil {
			return
		}
	}
}

// ask records the time of a PING that is about to be sent. It reports false if one is under way.
func (s *session) ask() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != 0 {
		return false
	}
	s.asked = s.c.now()
	return true
}

func (s *session) send(cmd string, args ...any) error {
	if err := s.conn.Send(cmd, args...); err != nil {
		return err
	}
	return s.conn.Flush()
}
