package systest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// suspendedURL makes a test the process that is suspended.
const suspendedURL = "REDISCACHE_SUSPENDED_URL"

// While a process is suspended, a NAT forgets its connections, and then silently drops what the process
// sends on them.
func TestTheFirstCallAfterASuspensionSucceeds(t *testing.T) {
	suspended(t, len(suspendedCases), usePoolsAfterASuspension)
}

// The process is suspended while its caches hold shared connections.
func TestTheFirstCallOfACacheAfterASuspensionSucceeds(t *testing.T) {
	suspended(t, 2*len(suspendedCaches), useCachesAfterASuspension)
}

// suspended runs the test once more in a process of its own, which does use. It suspends that process when
// use has called goOn, and lets it go on when the network has forgotten its connections. Then use makes
// calls, and prints a line for each, which ends with the error.
func suspended(t *testing.T, calls int, use func(t *testing.T, url string)) {
	t.Helper()
	if url := os.Getenv(suspendedURL); url != "" {
		use(t, url)
		return
	}
	redistest.Long(t)
	s := redistest.Start(t)
	nat := redistest.NewProxy(t, s.Addr)
	name := redistest.NewProxy(t, nat.Addr) // which stands for what the process dials
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), suspendedURL+"=redis://"+name.Addr)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() }) // errors mean that it is gone
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "ready", lines.Text())

	thaw := redistest.Freeze(t, cmd.Process)
	redistest.Wait(t.Context(), 200*time.Millisecond) // until each of its threads has seen the signal
	nat.Blackhole()
	name.Redirect(s.Addr)
	_, err = fmt.Fprintln(in, "go on") // which the process reads as soon as it runs
	require.NoError(t, err)
	redistest.Wait(t.Context(), 3*time.Second)
	thaw()
	for range calls {
		require.True(t, lines.Scan())
		t.Log(lines.Text())
		require.True(t, strings.HasSuffix(lines.Text(), ": <nil>"), lines.Text())
	}
}

// goOn returns when the process has been suspended. It prints that the process is ready for that.
func goOn(t *testing.T) {
	t.Helper()
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	require.NoError(t, err)
}

// firstCalls makes the calls together, and prints what became of them.
func firstCalls(names []string, calls []func() error) {
	errs, took := make([]error, len(calls)), make([]time.Duration, len(calls))
	redistest.Together(len(calls), func(i int) {
		began := time.Now()
		errs[i] = calls[i]()
		took[i] = time.Since(began)
	})
	for i, name := range names {
		fmt.Printf("%s: first call after %v: %v\n", name, took[i], errs[i])
	}
}

// suspendedCases are the pools of the process that is suspended. Only the first has a free slot.
var suspendedCases = []struct {
	name      string
	idle, max int
	opts      []rediscache.PoolOption
}{
	{"spare slots", 10, 50, nil},
	{"full", 10, 10, nil},
	{"one connection", 1, 1, nil},
	{"never probed", 10, 20, []rediscache.PoolOption{rediscache.WithHealthCheckAfter(0)}},
}

func usePoolsAfterASuspension(t *testing.T, url string) {
	var names []string
	var calls []func() error
	for _, of := range suspendedCases {
		p := newPool(t, url, sizes(of.idle, of.max, of.opts...)...)
		requireReady(t, p)
		names, calls = append(names, of.name), append(calls, func() error { return setWithin(p, rediscache.DefaultTimeout) })
	}
	goOn(t)
	firstCalls(names, calls)
}

// setWithin runs a SET within a second, including the wait for a connection.
func setWithin(p *rediscache.WarmPool, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	conn, err := p.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = redis.DoContext(conn, ctx, "SET", "k", "v")
	return err
}

var suspendedCaches = []struct {
	name string
	open func(t *testing.T, url string) rediscache.Pool
}{
	{"a warm pool", func(t *testing.T, url string) rediscache.Pool { return newPool(t, url, sizes(2, 4)...) }},
	{"a warm pool of one connection", func(t *testing.T, url string) rediscache.Pool { return newPool(t, url, sizes(1, 1)...) }},
	{"redigo's pool", func(t *testing.T, url string) rediscache.Pool {
		p := &redis.Pool{MaxIdle: 2, Dial: func() (redis.Conn, error) { return redis.DialURL(url) }}
		t.Cleanup(func() { p.Close() })
		return p
	}},
}

// useCachesAfterASuspension makes a cache with an idle lane on each pool. The first calls after the suspension
// are a write and a read.
func useCachesAfterASuspension(t *testing.T, url string) {
	var names []string
	var calls []func() error
	var idle []func() error
	var warm []*rediscache.WarmPool
	for _, of := range suspendedCaches {
		pool := of.open(t, url)
		if p, ok := pool.(*rediscache.WarmPool); ok {
			requireReady(t, p)
			warm = append(warm, p)
		}
		c := newCache(t, pool)
		for what, call := range map[string]func() error{
			"Set": func() error { return c.Set(t.Context(), "k", []byte("v"), time.Minute) },
			"Get": func() error { _, err := c.Get(t.Context(), "k"); return err },
		} {
			names, calls = append(names, of.name+", "+what), append(calls, call)
		}
		idle = append(idle, func() error { return c.Set(t.Context(), "k", []byte("v"), time.Minute) })
	}
	redistest.Together(len(idle), func(i int) {
		if err := idle[i](); err != nil {
			t.Error(err)
		}
	})
	for _, p := range warm { // no dial is under way, which the suspension would hold up
		redistest.Eventually(t, func() bool { s := p.Stats(); return s.Open == s.Idle+s.InUse }, "the floor stands")
	}
	goOn(t) // the lanes are idle, and have a second until they end
	firstCalls(names, calls)
}
