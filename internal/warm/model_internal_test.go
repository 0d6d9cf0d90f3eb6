package warm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// onceFailed holds seeds under which the model test found something, which the
// order in which goroutines run may hide.
var onceFailed = []uint64{
	940803002249009279, 8655057668922829166, // a grant that was passed on when the store had closed
	16906943568208492433, // probes so slow that no sweep came between them
	12588992901967812156, // a suspect that came back from its probe
}

func TestTheStoreKeepsItsInvariantsWhateverHappens(t *testing.T) {
	seeds := slices.Clone(onceFailed)
	for range 100 {
		seeds = append(seeds, rand.Uint64())
	}
	if testing.Short() {
		seeds = seeds[:len(onceFailed)+10]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newModel(t, seed).run() })
		})
	}
}

// model does one thing after another to a store and looks at it when all has
// come to rest.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	server *fakeServer
	store  *Store
	trace  []string
	queue  []*borrower // in the order in which they came, those that have an answer removed
	lent   []*Conn
}

// borrower is one call of Acquire.
type borrower struct {
	cancel context.CancelFunc

	mu       sync.Mutex
	answered bool
	left     bool // its context was ended
	conn     *Conn
	err      error
	stale    string // what was wrong with conn when it came
}

func newModel(t *testing.T, seed uint64) *model {
	rng := rand.New(rand.NewPCG(seed, 0))
	limit := 1 + rng.IntN(8)
	cfg := Config{
		MinIdle:          rng.IntN(limit + 1),
		MaxActive:        limit,
		IdleTimeout:      time.Duration(rng.IntN(3)) * time.Second,
		MaxLifetime:      time.Duration(rng.IntN(3)) * 4 * time.Second,
		HealthCheckAfter: time.Duration(rng.IntN(3)) * 500 * time.Millisecond,
		DialTimeout:      time.Second,
		ReadTimeout:      700 * time.Millisecond,
	}
	m := &model{t: t, rng: rng, server: newFake(seed, healthy)}
	cfg.Dial = m.server.dial
	m.store = New(cfg)
	t.Cleanup(m.store.Close) // after a failure; m.end has closed it otherwise
	m.did("floor %d, cap %d, idle %v, lifetime %v, check %v",
		cfg.MinIdle, limit, cfg.IdleTimeout, cfg.MaxLifetime, cfg.HealthCheckAfter)
	return m
}

func (m *model) run() {
	ops := []func(){
		m.acquire, m.acquire, m.acquireMany, m.release, m.release, m.releaseBad, m.cancel, m.cancelInTheInstant,
		m.pass, m.pass, m.idleKill, m.changeMood, m.condemn, m.suspend,
	}
	for range 200 {
		ops[m.rng.IntN(len(ops))]()
		m.check()
	}
	m.calm()
	m.end()
}

func (m *model) did(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) fatalf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nafter:\n  %s", fmt.Sprintf(format, args...), strings.Join(m.trace, "\n  "))
}

func (m *model) acquire() {
	ctx, cancel := context.WithCancel(m.t.Context())
	b := &borrower{cancel: cancel}
	m.queue = append(m.queue, b)
	go func() {
		c, err := m.store.Acquire(ctx)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.answered, b.conn, b.err = true, c, err
		if err == nil {
			b.stale = m.fault(c)
		}
	}()
	synctest.Wait()
	m.did("acquire")
}

// fault says why c should not have been lent, empty if it should.
func (m *model) fault(c *Conn) string {
	switch fake := c.Conn.(*fakeConn); {
	case c.session.Load() == changed || c.verdict == useless:
		return "was handed back as unfit"
	case !fake.hidden && !fake.quiet():
		return "was closed by the server"
	}
	return ""
}

func (m *model) acquireMany() {
	for range 2 + m.rng.IntN(m.store.cfg.MaxActive+3) {
		m.acquire()
	}
}

// takeLent chooses a connection that is lent, or returns nil.
func (m *model) takeLent() *Conn {
	if len(m.lent) == 0 {
		return nil
	}
	i := m.rng.IntN(len(m.lent))
	c := m.lent[i]
	m.lent = slices.Delete(m.lent, i, i+1)
	return c
}

func (m *model) release() {
	if c := m.takeLent(); c != nil {
		m.did("release")
		_ = c.Close()
	}
}

func (m *model) releaseBad() {
	c := m.takeLent()
	if c == nil {
		return
	}
	switch m.rng.IntN(4) {
	case 0:
		m.did("release broken")
		c.Fail()
		defer m.checkDropped(c.failed)
	case 1:
		m.did("release tainted")
		c.session.Store(changed)
	case 2:
		m.did("release retired")
		c.Retire()
	default:
		m.did("release cut")
		c.Cut()
		c.Retire()
	}
	_ = c.Close()
}

// checkDropped wants no idle connection that was not proven since failed.
func (m *model) checkDropped(failed int64) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for _, c := range m.store.idle {
		if c.proven <= failed {
			m.fatalf("one broke at %d and one last proven at %d is still idle", failed, c.proven)
		}
	}
}

// chooseWaiting returns a random waiting borrower, or nil.
func (m *model) chooseWaiting() *borrower {
	if len(m.queue) == 0 {
		return nil
	}
	return m.queue[m.rng.IntN(len(m.queue))]
}

func (b *borrower) leave() {
	b.mu.Lock()
	b.left = true
	b.mu.Unlock()
	b.cancel()
}

func (m *model) cancel() {
	if b := m.chooseWaiting(); b != nil {
		m.did("cancel")
		b.leave()
	}
}

// cancelInTheInstant ends the context of the first in the queue while a
// connection comes back for it.
func (m *model) cancelInTheInstant() {
	if len(m.queue) == 0 || len(m.lent) == 0 {
		return
	}
	b, c := m.queue[0], m.takeLent()
	m.did("cancel in the instant")
	if m.rng.IntN(2) == 0 {
		go b.leave()
		go func() { _ = c.Close() }()
		return
	}
	m.store.mu.Lock()
	b.leave() // decides its select; then it waits for the lock, and finds that it was granted
	m.store.putLocked(c)
	m.store.mu.Unlock()
}

func (m *model) pass() {
	d := time.Duration(m.rng.Int64N(int64(2 * time.Second)))
	if m.rng.IntN(2) == 0 {
		d /= 100
	}
	m.did("pass %v", d)
	time.Sleep(d)
}

// idleKill lets the server close some of the connections.
func (m *model) idleKill() {
	m.store.mu.Lock()
	for c := range m.store.all {
		if m.rng.IntN(2) == 0 {
			c.Conn.(*fakeConn).kill()
		}
	}
	m.store.mu.Unlock()
	m.did("kill")
	time.Sleep(2 * peekAfter)
}

// condemn makes the server answer READONLY on a borrowed connection.
func (m *model) condemn() {
	if len(m.lent) > 0 {
		c := m.lent[m.rng.IntN(len(m.lent))]
		m.did("condemn: %v", c.Condemn("READONLY You can't write against a read only replica."))
	}
}

// suspend makes the store believe that the process was suspended until now.
func (m *model) suspend() {
	m.store.mu.Lock()
	m.store.pulse.Beat(time.Now().Add(-2 * suspendedAfter))
	m.store.mu.Unlock()
	m.did("suspend")
	time.Sleep(2 * peekAfter)
}

// rank is higher for a connection that is no suspect.
func (m *model) rank(c *Conn) int {
	if m.store.suspectLocked(c) {
		return 0
	}
	return 1
}

// suspects counts the suspects among the connections.
func (m *model) suspects() (n int) {
	for c := range m.store.all {
		if c.phase != closing && m.store.suspectLocked(c) {
			n++
		}
	}
	return n
}

func (m *model) changeMood() {
	moods := []mood{healthy, healthy, healthy, flaky, flaky, down, silent}
	mood := moods[m.rng.IntN(len(moods))]
	m.did("mood %d", mood)
	m.server.set(mood)
}

// check waits until all has come to rest and holds the store against what is
// written at its head.
func (m *model) check() {
	m.t.Helper()
	synctest.Wait()
	m.answers()
	s := m.store
	s.mu.Lock()
	defer s.mu.Unlock()
	open, limit := s.openLocked(), s.cfg.MaxActive
	sockets, highest := m.server.opened()
	switch {
	case min(s.inUse, s.probing, s.dialing, s.closing) < 0:
		m.fatalf("negative: in use %d, probing %d, dialing %d, closing %d", s.inUse, s.probing, s.dialing, s.closing)
	case open > limit || highest > limit:
		m.fatalf("open %d, sockets at once %d, above %d", open, highest, limit)
	case sockets != open:
		m.fatalf("%d sockets, counted as %d", sockets, open)
	case len(s.all) != open-s.dialing:
		m.fatalf("%d connections, counted as %d", len(s.all), open-s.dialing)
	case s.renewal.suspects != m.suspects():
		m.fatalf("%d suspects, counted as %d", m.suspects(), s.renewal.suspects)
	case !slices.IsSortedFunc(s.idle, func(a, b *Conn) int { return m.rank(a) - m.rank(b) }):
		m.fatalf("a suspect is lent before another connection")
	case slices.ContainsFunc(s.idle, s.unprovenLocked):
		m.fatalf("a connection that may be dead is idle")
	case min(s.cutting, s.overdue-s.cutting, s.probing-s.overdue) < 0:
		m.fatalf("probing %d, overdue %d, given up %d", s.probing, s.overdue, s.cutting)
	case s.inUse != len(m.lent):
		m.fatalf("%d in use, counted as %d", len(m.lent), s.inUse)
	case s.waiters.Len() != len(m.queue):
		m.fatalf("%d wait, counted as %d", len(m.queue), s.waiters.Len())
	case !slices.IsSortedFunc(s.idle, func(a, b *Conn) int { return int(a.place - b.place) }):
		m.fatalf("idle ones not in the order of their use")
	case s.waiters.Len() > 0 && len(s.idle) > 0:
		m.fatalf("%d wait beside %d idle", s.waiters.Len(), len(s.idle))
	case s.waiters.Len() > 0 && open == 0 && !s.backingOff && s.renewal.timer == nil:
		m.fatalf("%d wait for nothing", s.waiters.Len())
	case s.waiters.Len() > 0 && s.downLocked():
		m.fatalf("%d wait though Redis is down", s.waiters.Len())
	}
	dials, paced := s.stats.Dials, s.renewal.timer != nil
	if s.fillLocked(); s.stats.Dials != dials && !paced {
		m.fatalf("%d dials were wanted that nobody had begun", s.stats.Dials-dials)
	}
}

// answers removes the borrowers that have a connection or an error from the queue. They
// must be the first ones, except those that gave up or were refused.
func (m *model) answers() {
	var waiting []*borrower
	for _, b := range m.queue {
		b.mu.Lock()
		switch {
		case !b.answered && b.left:
			m.fatalf("one who left still waits")
		case !b.answered:
			waiting = append(waiting, b)
		case b.err != nil:
			m.checkRefusal(b)
		case len(waiting) > 0:
			m.fatalf("one was served before %d who came first", len(waiting))
		case b.stale != "":
			m.fatalf("lent one that %s", b.stale)
		case slices.Contains(m.lent, b.conn):
			m.fatalf("lent one twice")
		default:
			m.lent = append(m.lent, b.conn)
		}
		b.mu.Unlock()
	}
	m.queue = waiting
}

func (m *model) checkRefusal(b *borrower) {
	var de *DialError
	if b.left && errors.Is(b.err, context.Canceled) || errors.As(b.err, &de) {
		return
	}
	m.fatalf("refused: %v", b.err)
}

// calm heals the server, hands everything back and wants the floor to stand
// and nobody to wait.
func (m *model) calm() {
	m.server.set(healthy)
	m.did("calm")
	for len(m.lent)+len(m.queue) > 0 {
		for len(m.lent) > 0 {
			m.release()
		}
		time.Sleep(3 * time.Second) // more than any time-out
		before := len(m.queue)
		m.check()
		if before > 0 && len(m.queue) == before {
			m.fatalf("%d wait for ever", before)
		}
	}
	time.Sleep(5 * time.Second)
	m.acquire() // also where there is no floor
	time.Sleep(time.Second)
	if m.check(); len(m.lent) != 1 {
		m.fatalf("a server that is well lends nothing")
	}
	m.release()
	m.check()
	if _, err := m.store.Ready(m.t.Context()); err != nil {
		m.fatalf("not ready: %v", err)
	}
	time.Sleep(3 * time.Second) // expired ones, replaced one after another
	st := m.store.Stats()
	if m.store.renewal.suspects > 0 {
		m.fatalf("%d suspects are left", m.store.renewal.suspects)
	}
	if st.Idle < m.store.cfg.MinIdle && m.store.cfg.MaxLifetime == 0 {
		m.fatalf("%d idle, under the floor", st.Idle)
	}
	if st.Idle > m.store.cfg.MinIdle && m.store.cfg.IdleTimeout > 0 {
		m.fatalf("%d idle, above the floor", st.Idle)
	}
}

// end closes the store in one of the ways there are, with borrowers, waiters
// and dials, and wants nothing left.
func (m *model) end() {
	m.changeMood()
	for range m.rng.IntN(2 * m.store.cfg.MaxActive) {
		m.acquire()
	}
	m.check()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
	defer cancel()
	way := m.rng.IntN(4)
	m.did("end %d", way)
	var ends sync.WaitGroup
	if way != 0 {
		ends.Go(func() { _ = m.store.Shutdown(ctx) })
	}
	if way != 1 {
		ends.Go(m.store.Close)
	}
	if way == 3 {
		m.cancelInTheInstant()
		for len(m.lent) > 0 {
			m.release()
		}
	}
	ends.Wait()
	synctest.Wait()
	for _, b := range m.queue {
		b.mu.Lock()
		if !b.answered {
			m.fatalf("one waits after the end")
		}
		if b.err != nil && !errors.Is(b.err, ErrClosed) {
			m.checkRefusal(b)
		}
		b.mu.Unlock()
	}
	if _, err := m.store.Acquire(m.t.Context()); !errors.Is(err, ErrClosed) {
		m.fatalf("lent after the end: %v", err)
	}
	for len(m.lent) > 0 { // they come back late
		m.release()
	}
	synctest.Wait()
	m.queue = nil
	m.check()
	if st := m.store.Stats(); st.Open != 0 {
		m.fatalf("left open: %+v", st)
	}
}
