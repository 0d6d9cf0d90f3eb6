package systest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// What befalls a cache from outside, and what its callers notice: go test -run TestFault -v. With
// -soak each fault goes on for that long.

// faultTime is how long a fault goes on, or comes again and again.
func faultTime(short time.Duration) time.Duration { return max(short, systest.Soak) }

// underLoad is a cache of default options on a pool whose callers are at work. end ends that.
func underLoad(t *testing.T, told *tally, p *rediscache.WarmPool, limits ...time.Duration) (end func()) {
	t.Helper()
	c := newCache(t, p)
	require.NoError(t, p.Ready(t.Context()))
	end = told.callers(t, c, 64, limits...)
	t.Cleanup(end) // before the pool's
	redistest.Wait(t.Context(), 100*time.Millisecond)
	return end
}

func TestFaultSIGKILLFailsFastAndRecoversWithinASecond(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	told := tally{forgets: true}
	pool := newPool(t, s.URL())
	end := underLoad(t, &told, pool)
	var dials int64
	var dying time.Duration
	for began := time.Now(); ; {
		before, killed := pool.Stats().Dials, time.Now()
		s.Kill()
		dying = max(dying, time.Since(killed))
		redistest.Wait(t.Context(), time.Second)
		dials = max(dials, pool.Stats().Dials-before)
		s.Restart()
		told.recovers(t)
		if time.Since(began) > faultTime(0) {
			break
		}
	}
	end()
	t.Log(told.line("SIGKILL and restart, 64 callers"))
	t.Logf("at most %d dials in a second; the server's sockets were closed after %s", dials, ms(dying))
	told.requireSound(t)
	require.ErrorIs(t, told.failure, rediscache.ErrUnavailable)
	require.LessOrEqual(t, dials, int64(20))
	require.Less(t, told.quantile(0.99), 10*time.Millisecond+told.slack(), "a call in the outage fails at once")
	require.Less(t, told.slowest, rediscache.DefaultTimeout/2+dying+told.slack(), "and the slowest does not wait for its timeout")
}

// A freeze that is shorter than the read timeout costs no connection. A longer one breaks the lanes,
// and the idle connections have to prove that they are not broken, for which they have the time of a dial.
func TestFaultSIGSTOPHoldsNobodyPastTheDeadline(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	var told tally
	pool := newPool(t, s.URL())
	end := underLoad(t, &told, pool, 100*time.Millisecond)
	frozen, most := 1500*time.Millisecond, 0
	if systest.Soak > 0 {
		frozen, most = 5*time.Second, rediscache.DefaultPipelineConns
	}
	require.Equal(t, frozen < rediscache.DefaultReadTimeout, most == 0)
	var lost int64
	for began := time.Now(); ; {
		before := pool.Stats().Closed.Broken
		s.Stop()
		redistest.Wait(t.Context(), frozen)
		s.Cont()
		told.recovers(t)
		lost = max(lost, pool.Stats().Closed.Broken-before)
		if time.Since(began) > faultTime(0) {
			break
		}
	}
	end()
	t.Log(told.line(fmt.Sprintf("SIGSTOP for %v, 64 callers", frozen)))
	t.Logf("%d connections lost", lost)
	told.requireSound(t)
	require.Positive(t, told.failed)
	require.Positive(t, told.unknown, "a write that was sent")
	require.ErrorIs(t, told.failure, context.DeadlineExceeded)
	require.LessOrEqual(t, lost, int64(most))
	told.requireNoRepetition(t, sets(s))
}

// Every 50 ms, or when the pool has its floor again if a slow machine takes longer: where all dials
// that are left are killed as well, that is an outage.
func TestFaultKillingEveryClientFailsNoRead(t *testing.T) {
	redistest.Long(t)
	for scheme := range systest.PoolAt {
		t.Run(scheme, func(t *testing.T) { killEveryClient(t, scheme) })
	}
}

func killEveryClient(t *testing.T, scheme string) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	var told tally
	pool := systest.PoolAt[scheme](t, s, "")
	end := underLoad(t, &told, pool)
	kills, clients := 0, 0
	for began := time.Now(); time.Since(began) < faultTime(2*time.Second); kills++ {
		redistest.Wait(t.Context(), 50*time.Millisecond)
		redistest.Eventually(t, func() bool {
			stats := pool.Stats()
			return stats.Idle >= rediscache.DefaultMinIdle && stats.Open == stats.Idle+stats.InUse
		}, "the floor stands again")
		clients += s.KillClients()
	}
	told.recovers(t)
	end()
	t.Log(told.line(fmt.Sprintf("CLIENT KILL of everything every 50 ms, %d times, %d connections, 64 callers", kills, clients)))
	told.requireSound(t)
	if failures := pool.Stats().DialFailures; failures > 0 {
		t.Logf("%d dials were killed", failures)
	} else {
		require.Zero(t, told.failed, "no read fails, and a write fails only as unknown: %v", told.failure)
	}
	told.requireNoRepetition(t, sets(s))
}

func TestFaultABadNetworkHoldsNobodyAndCrossesNoReply(t *testing.T) {
	redistest.Long(t)
	for _, test := range []struct {
		name   string
		length time.Duration
		fails  bool // whether calls with the default timeout may
		befall func(p *redistest.Proxy)
	}{
		{"jitter of 100 ms either way", time.Second, false, func(p *redistest.Proxy) {
			p.Delay(redistest.Up, 0, 100*time.Millisecond)
			p.Delay(redistest.Down, 0, 100*time.Millisecond)
		}},
		{"a byte at a time", time.Second, true, func(p *redistest.Proxy) {
			p.Trickle(redistest.Up, time.Microsecond)
			p.Trickle(redistest.Down, time.Microsecond)
		}},
		{"a reset of everything every 50 ms", time.Second, true, func(p *redistest.Proxy) { p.Reset() }},
		{"a black hole", 1500 * time.Millisecond, true, (*redistest.Proxy).Blackhole},
	} {
		for scheme, open := range systest.PoolAt {
			t.Run(test.name+" "+scheme, func(t *testing.T) {
				redistest.NoLeaks(t)
				s := systest.StartTLS(t)
				target := s.Addr
				if scheme == "rediss" {
					target = s.TLSAddr
				}
				proxy := redistest.NewProxy(t, target)
				var limits []time.Duration
				if test.fails {
					limits = append(limits, 100*time.Millisecond)
				}
				var told tally
				end := underLoad(t, &told, open(t, s, proxy.Addr), limits...)
				for began := time.Now(); time.Since(began) < faultTime(test.length); {
					test.befall(proxy)
					redistest.Wait(t.Context(), 50*time.Millisecond)
				}
				proxy.Heal()
				told.recovers(t)
				end()
				t.Log(told.line(fmt.Sprintf("%s for %v, 64 callers", test.name, faultTime(test.length))))
				told.requireSound(t)
				if !test.fails {
					require.Zero(t, told.failed+told.unknown, "%v", told.failure)
				}
				told.requireNoRepetition(t, sets(s))
			})
		}
	}
}

// TestFaultACutAfterEveryByteGivesEachCallerOneOutcome plays a batch of reads and
// writes through a proxy that breaks off after byte n, for every n.
func TestFaultACutAfterEveryByteGivesEachCallerOneOutcome(t *testing.T) {
	redistest.NoLeaks(t)
	const callers, most = 6, 420 // more bytes than a batch has in either direction, with TLS in one record too
	for dir, name := range map[redistest.Direction]string{redistest.Up: "sent", redistest.Down: "received"} {
		var told tally
		answer := func(c redistest.Call) ([]byte, bool) {
			if c.Name() == "GET" {
				return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(c.Args[1]), c.Args[1]), false
			}
			return redistest.Default(c), false
		}
		certs := redistest.NewCerts(t)
		server, secure := redistest.NewScript(t, answer), redistest.NewScriptTLS(t, certs.ServerConfig(), answer)
		proxy := redistest.NewProxy(t, server.Addr)
		for _, open := range []func() rediscache.Pool{
			func() rediscache.Pool {
				return newPool(t, "redis://"+proxy.Addr, rediscache.WithMinIdle(2), rediscache.WithHealthCheckAfter(0))
			},
			func() rediscache.Pool {
				return &redis.Pool{MaxIdle: 4, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", proxy.Addr) }}
			},
			func() rediscache.Pool {
				proxy.Redirect(secure.Addr)
				return newPool(t, "rediss://"+proxy.Addr, rediscache.WithMinIdle(2), rediscache.WithHealthCheckAfter(0),
					rediscache.WithTLSConfig(certs.ClientConfig()))
			},
		} {
			pool := open()
			c := newCache(t, pool)
			for n := 0; n < most; n += 1 + n%3 {
				// The last cut may have hit a dial that refills the pool's floor.
				redistest.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, "the cache has recovered")
				if warm, ok := pool.(*rediscache.WarmPool); ok {
					rest(t, warm, 2) // so that few dials are under way
				}
				proxy.Cut(dir, n, n%2 == 0)
				redistest.Together(callers, func(i int) {
					key := fmt.Sprint("caller", n, i)
					if i%2 == 0 {
						_ = told.write(t.Context(), c, key, 0) // counted
					} else if err := told.read(t.Context(), c, key, 0); err != nil {
						t.Errorf("cut after %d: %v", n, err)
					}
				})
				proxy.Heal()
			}
			require.NoError(t, c.Close())
			require.NoError(t, pool.Close())
		}
		t.Log(told.line("a cut after every byte " + name + ", 6 callers"))
		told.requireSound(t)
		require.Zero(t, told.failed, "what was not sent was sent elsewhere: %v", told.failure)
		require.Positive(t, told.unknown, "some were cut on the wire")
		told.requireNoRepetition(t, server.Count("SET")+secure.Count("SET"))
	}
}

func TestFaultTenThousandCallersThatCancelLeaveNothing(t *testing.T) {
	redistest.Long(t)
	callers := 10_000
	if redistest.RaceEnabled {
		callers = 2000 // it knows 8128 goroutines
	}
	for name, test := range map[string]struct {
		scheme string
		lanes  int
		most   int           // connections in use
		pause  time.Duration // of a caller, so that some calls are served
	}{
		// One more than are shared, as a lane opens while another returns its connection.
		"on lanes":                    {"redis", rediscache.DefaultPipelineConns, rediscache.DefaultPipelineConns + 1, 200 * time.Millisecond},
		"on lanes with TLS":           {"rediss", rediscache.DefaultPipelineConns, rediscache.DefaultPipelineConns + 1, 200 * time.Millisecond},
		"with a connection a command": {"redis", 0, rediscache.DefaultMaxActive, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			s := systest.StartTLS(t)
			pool := systest.PoolAt[test.scheme](t, s, "", rediscache.WithClientName(strings.ReplaceAll(t.Name(), " ", "")))
			c := newCache(t, pool, rediscache.WithPipelineConns(test.lanes))
			requireReady(t, pool)
			var told tally
			most := 0
			round := func(d time.Duration) (heap uint64) {
				most = max(most, cancelling(t, &told, pool, c, callers, test.pause, d))
				redistest.Eventually(t, func() bool {
					stats := pool.Stats()
					return stats.InUse == 0 && stats.Waiting == 0 && stats.Open == stats.Idle
				}, "the connections go back")
				runtime.GC()
				runtime.GC() // what a sync.Pool kept
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before := round(500 * time.Millisecond) // the runtime keeps what a goroutine is made of
			after := round(faultTime(500 * time.Millisecond))
			t.Log(told.line(fmt.Sprintf("%d callers that cancel, %s", callers, name)))
			t.Logf("at most %d connections in use, %d dials, %+d kB of heap", most, pool.Stats().Dials, (int64(after)-int64(before))/1024)
			require.Zero(t, told.wrong)
			require.LessOrEqual(t, most, test.most)
			require.LessOrEqual(t, after, before+2<<20, "no memory")
			if test.lanes > 0 {
				require.Zero(t, pool.Stats().Closed.Broken, "no cancel and no deadline cost a connection")
				require.LessOrEqual(t, int(pool.Stats().Dials), rediscache.DefaultMinIdle+test.most)
			}
			require.NoError(t, c.Ping(t.Context()))
			requireSimultaneous(t, pool, rediscache.DefaultMaxActive)
		})
	}
}

// cancelling lets n callers set and get for d, each call under a context that ends before long, and
// returns how many connections were in use at most.
func cancelling(
	t *testing.T, told *tally, p *rediscache.WarmPool, c *rediscache.Cache, n int, pause, d time.Duration,
) (most int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			most = max(most, p.Stats().InUse)
			redistest.Wait(ctx, 100*time.Microsecond)
		}
	})
	redistest.Together(n, func(i int) {
		key := fmt.Sprint("k", i)
		for redistest.Wait(ctx, rand.N(pause)); ctx.Err() == nil; redistest.Wait(ctx, rand.N(pause)) {
			own, cancel := context.WithTimeout(t.Context(), rand.N(20*time.Millisecond))
			if i%3 == 0 {
				go cancel()
			}
			err := told.write(own, c, key, 0)
			if err == nil {
				err = told.read(own, c, key, 0)
			}
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			cancel()
		}
	})
	watch.Wait()
	return most
}

// A clock that is set changes no duration, as Go's are monotonic, and no freshness, as Redis is
// asked how long a value has to live. So the library reads the wall clock in only one place, because a
// jump forward may mean that the machine was suspended. Keys still expire by the clock of Redis.
func TestFaultAClockThatJumpsIsNotLookedAt(t *testing.T) {
	wall := regexp.MustCompile(`\.(Unix(Nano|Micro|Milli)?|Date|Clock|Format|AppendFormat|Local|UTC|In|Round|Truncate)\(|time\.Parse\(`)
	harmless := strings.NewReplacer(
		"time.Unix(1, 0)", "", // a deadline long past
		"p.wall.Store(now.UnixNano())", "", "now.UnixNano()-p.wall.Load()", "", // after a jump the idle connections must answer a PING
	)
	root, files := filepath.Join("..", ".."), 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{"bench", "examples", "scripts", "redistest", ".git"}, d.Name()):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		source, err := os.ReadFile(path)
		for n, line := range strings.Split(harmless.Replace(string(source)), "\n") {
			if wall.MatchString(line) {
				t.Errorf("%s:%d: %s", path, n+1, strings.TrimSpace(line))
			}
		}
		return err
	}))
	require.Greater(t, files, 20)
}
