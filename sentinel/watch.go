package sentinel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
)

const (
	askEvery   = time.Second            // all sentinels are asked, also if none says that the master has changed
	askAtMost  = 100 * time.Millisecond // the pause between two questions to one sentinel
	againAfter = 500 * time.Millisecond // a sentinel whose subscription broke is dialled again
)

// watch knows the master. Two goroutines a sentinel ask it, and wait for its message that the
// master has changed.
type watch struct {
	master    string
	sentinels []*sentinel
	found     chan struct{} // closed at the first answer
	changed   func()        // called when the master has changed
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu     sync.Mutex // guards all below, and sentinel.failed
	answer answer     // with the highest epoch
}

// answer is where a sentinel believes that the master is. A higher epoch is newer.
type answer struct {
	addr  string
	epoch int64
}

// sentinel is one of the sentinels.
type sentinel struct {
	addr string
	dial func(ctx context.Context, read time.Duration) (redis.Conn, error)
	wait time.Duration
	idle *redis.Pool   // of one connection, for questions
	poke chan struct{} // holds one: it is to be asked now

	failed error // why its last answer is none; guarded by watch.mu
}

func newSentinel(addr string, cfg config) *sentinel {
	s := &sentinel{addr: addr, wait: cfg.timeout, poke: make(chan struct{}, 1)}
	s.dial = func(ctx context.Context, read time.Duration) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", addr,
			redis.DialConnectTimeout(cfg.timeout), redis.DialTLSHandshakeTimeout(cfg.timeout),
			redis.DialReadTimeout(read), redis.DialWriteTimeout(cfg.timeout),
			redis.DialUsername(cfg.user), redis.DialPassword(cfg.password),
			redis.DialUseTLS(cfg.tls != nil), redis.DialTLSConfig(cfg.tls))
	}
	s.idle = &redis.Pool{MaxIdle: 1, DialContext: func(ctx context.Context) (redis.Conn, error) { return s.dial(ctx, cfg.timeout) }}
	return s
}

// start starts the goroutines.
func (w *watch) start(changed func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.changed = cancel, changed
	for _, s := range w.sentinels {
		w.wg.Go(func() { w.askOften(ctx, s) })
		w.wg.Go(func() { w.listenTo(ctx, s) })
	}
}

// stop ends the goroutines. It may be called more than once.
func (w *watch) stop() {
	w.cancel()
	w.wg.Wait()
	for _, s := range w.sentinels {
		_ = s.idle.Close()
	}
}

// ask has the sentinels asked soon.
func (w *watch) ask() {
	for _, s := range w.sentinels {
		select {
		case s.poke <- struct{}{}:
		default:
		}
	}
}

func (w *watch) current() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answer.addr
}

// address returns the address of the master for a dial. It waits for the first answer of a
// sentinel.
func (w *watch) address(ctx context.Context) (string, error) {
	w.ask() // a dial is needed where something has changed
	select {
	case <-w.found:
		return w.current(), nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	err := fmt.Errorf("no sentinel has named the master %q: %w", w.master, ctx.Err())
	for _, s := range w.sentinels {
		err = errors.Join(err, s.failed)
	}
	return "", err
}

// askOften asks a sentinel each second, and when it is poked. Each sentinel has a goroutine
// of its own, so a sentinel that does not answer does not delay the others.
func (w *watch) askOften(ctx context.Context, s *sentinel) {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		a, err := s.masterOf(ctx, w.master)
		if w.take(s, a, err) {
			w.changed()
		}
		if !pause(ctx, askAtMost) {
			return
		}
		select {
		case <-s.poke:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// pause waits for d, and reports false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// take takes the answer of a sentinel if it is newer than the last one, and reports whether
// the master has changed.
func (w *watch) take(s *sentinel, a answer, err error) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.answer
	if s.failed = err; err != nil || before.addr != "" && a.epoch <= before.epoch {
		return false
	}
	if w.answer = a; before.addr == "" {
		close(w.found)
		return false
	}
	return a.addr != before.addr
}

// masterOf asks the sentinel where the master is.
func (s *sentinel) masterOf(ctx context.Context, master string) (answer, error) {
	fail := func(err error) (answer, error) {
		// Without the error itself, because an answer of a sentinel must not count as one of Redis.
		return answer{}, fmt.Errorf("sentinel %s: %s", s.addr, resp.Discreet(err.Error()))
	}
	conn, err := s.idle.GetContext(ctx)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	fields, err := redis.StringMap(redis.DoWithTimeout(conn, s.wait, "SENTINEL", "MASTER", master))
	if err != nil {
		return fail(err)
	}
	if strings.Contains(fields["flags"], "failover_in_progress") {
		// The sentinel that leads a failover names the old master with the new epoch until its end.
		return fail(errors.New("it leads a failover that is in progress"))
	}
	epoch, err := strconv.ParseInt(fields["config-epoch"], 10, 64)
	if err != nil || fields["ip"] == "" || fields["port"] == "" {
		return fail(fmt.Errorf("its answer about %q has no address or no epoch", master))
	}
	return answer{net.JoinHostPort(fields["ip"], fields["port"]), epoch}, nil
}

// listenTo has the sentinels asked when s says that a master has changed.
func (w *watch) listenTo(ctx context.Context, s *sentinel) {
	for {
		w.listenOnce(ctx, s)
		if !pause(ctx, againAfter) {
			return
		}
	}
}

// listenOnce listens until the subscription breaks. It needs no read timeout: if a message
// is lost, the master is found by the question of the next second.
func (w *watch) listenOnce(ctx context.Context, s *sentinel) {
	conn, err := s.dial(ctx, 0)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	subscription := redis.PubSubConn{Conn: conn}
	if subscription.Subscribe("+switch-master") != nil {
		return
	}
	for {
		switch subscription.Receive().(type) {
		case redis.Message:
			w.ask()
		case error:
			return
		}
	}
}
