//go:build unix

package proof_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// With -soak there are ten thousand connections, without it a thousand. Each is used in its turn, and
// at any time a tenth of them waits for an answer.
func TestThousandsOfConnectionsShareAPoolOfFifty(t *testing.T) {
	const most, turns = 50, 10
	wanted, lasts := 10_000, soak
	if soak == 0 {
		wanted, lasts = 1000, 3*time.Second
		t.Parallel() // the figures need not be good
	}
	redis := redistest.Start(t)
	server := startServer(t, "-redis", redis.URL(), "-max-active", fmt.Sprint(most))
	owners, fewer := server.owners(t, wanted)

	load := make(chan []time.Duration, len(owners))
	begin := time.Now()
	for mine := range slices.Chunk(owners, turns) {
		go func() { load <- drive(t, mine, begin.Add(lasts)) }()
	}
	connections, before, after := 0, server.rss(t), 0
	for now := range time.Tick(lasts / 60) {
		connections = max(connections, redis.ClientCount())
		after = server.rss(t)
		if now.Sub(begin) < lasts/4 { // in which the heap finds its size
			before = after
		}
		if now.Sub(begin) >= lasts {
			break
		}
	}
	var took []time.Duration
	for range slices.Chunk(owners, turns) {
		took = append(took, <-load...)
	}
	require.False(t, t.Failed(), "every request is answered as its client expects, so none with a 5xx")
	slices.Sort(took)
	t.Logf("%d connections%s, %d to Redis: %d requests, %.0f a second, p50 %v, p99 %v, max %v, memory %d to %d MiB",
		len(owners), fewer, connections, len(took), float64(len(took))/lasts.Seconds(),
		took[len(took)/2], took[len(took)*99/100], took[len(took)-1], before, after)
	require.LessOrEqual(t, connections, most)
	require.LessOrEqual(t, after, before+before/4+8, "what memory grows by is the collector's, not the requests'")
}

// owners opens as many connections as are wanted, or says why they are fewer. Each has stored a value.
func (s *server) owners(t *testing.T, wanted int) (owners []*owner, fewer string) {
	t.Helper()
	const others = 200 // files that are no connection of the load
	var files syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)) // package os has raised it
	n := wanted
	if limit := int(files.Cur); limit < wanted+others {
		n, fewer = limit-others, fmt.Sprintf(" (not %d: a process may open %d files)", wanted, limit)
	}
	for i := range n {
		c, err := dial(s.addr)
		if err != nil {
			fewer = fmt.Sprintf(" (not %d: %v)", wanted, err)
			break
		}
		t.Cleanup(c.close)
		o := &owner{client: c, key: fmt.Sprint("k", i)}
		require.NoError(t, o.post())
		owners = append(owners, o)
	}
	return owners, fewer
}

// drive uses the connections one after another and returns how long each answer took.
func drive(t *testing.T, mine []*owner, end time.Time) (took []time.Duration) {
	for last := time.Now(); last.Before(end); {
		for _, o := range mine {
			if err := o.act(); err != nil {
				t.Error(err)
				return took
			}
			now := time.Now()
			took = append(took, now.Sub(last))
			last = now
		}
	}
	return took
}

// owner is a client with a key that nobody else writes, so it knows every answer beforehand.
type owner struct {
	*client
	key, value string // the value is empty where there is none
	writes     int
}

func (o *owner) act() error {
	switch rand.IntN(20) {
	case 0:
		return o.delete()
	case 1, 2, 3:
		return o.post()
	}
	return o.get()
}

func (o *owner) get() error {
	if o.value == "" {
		return o.want("GET", "", 404, missing)
	}
	return o.want("GET", "", 200, hit(o.key, o.value))
}

func (o *owner) post() error {
	o.writes++
	value := fmt.Sprint(o.key, " has ", o.writes)
	err := o.want("POST", value, 200, stored(o.key))
	if err == nil {
		o.value = value
	}
	return err
}

func (o *owner) delete() error {
	status, body := 200, deletedBody(o.key)
	if o.value == "" {
		status, body = 404, missing
	}
	err := o.want("DELETE", "", status, body)
	if err == nil {
		o.value = ""
	}
	return err
}

func (o *owner) want(method, value string, status int, body string) error {
	a, err := o.ask(method, o.key, value)
	if err == nil && (a.status != status || a.body != body) {
		err = fmt.Errorf("%d %s instead of %d %s", a.status, a.body, status, body)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, o.key, err)
	}
	return nil
}

// What the handler answers for a Redis that is down, busy or slow, to a write also that nobody knows
// what became of it.
const (
	unavailable = `503 {"error":"cache_unavailable","detail":"The cache is not available now."}`
	late        = `504 {"error":"cache_timeout","detail":"The cache did not answer in time."}`
	lost        = `503 {"error":"outcome_unknown","detail":"The connection was lost; the change may have been made or not."}`
	lostLate    = `504 {"error":"outcome_unknown","detail":"The cache did not answer in time; the change may have been made or not."}`
)

func TestAnExhaustedServerSays503Or504AndServesAgain(t *testing.T) {
	t.Parallel()
	const callers, plenty = 64, 10
	for name, c := range map[string]struct {
		args             []string
		exhaust, relieve func(*redistest.Server)
		says             string // has to come; the others may
		loses            bool   // what is stored
	}{
		"one connection, which hangs": {
			[]string{"-min-idle", "1", "-max-active", "1"}, (*redistest.Server).Stop, (*redistest.Server).Cont, unavailable, false,
		},
		"a stopped Redis": {nil, (*redistest.Server).Stop, (*redistest.Server).Cont, late, false},
		"a killed Redis":  {nil, (*redistest.Server).Kill, (*redistest.Server).Restart, unavailable, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			server := startServer(t, append(c.args, "-redis", redis.URL())...)
			crowd := crowd{refused: make(map[string]int)}
			var done atomic.Bool
			var wg sync.WaitGroup
			defer wg.Wait()
			defer done.Store(true)
			for i := range callers {
				d := &doubter{client: server.mustDial(t), key: fmt.Sprint("k", i)}
				if c.loses {
					d.maybe = []string{""} // always
				}
				wg.Go(func() {
					for !done.Load() {
						if err := d.act(&crowd); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			serves := func() bool { // says whether nobody was refused while many were served
				served, refused := crowd.count()
				more := func() bool { now, _ := crowd.count(); return now > served+2*callers }
				redistest.Eventually(t, more, "it serves")
				_, now := crowd.count()
				return maps.Equal(now, refused)
			}
			redistest.Eventually(t, serves, "it serves everybody")
			c.exhaust(redis)
			redistest.Eventually(t, func() bool { _, refused := crowd.count(); return refused[c.says] > plenty }, "%s", c.says)
			c.relieve(redis)
			redistest.Eventually(t, serves, "it serves everybody again")
			served, refused := crowd.count()
			t.Logf("%d served, refused: %v", served, refused)
		})
	}
}

// crowd counts what its clients were answered.
type crowd struct {
	mu      sync.Mutex // guards what follows
	served  int
	refused map[string]int
}

// add counts an answer, which is a refusal unless it is empty.
func (c *crowd) add(refusal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if refusal == "" {
		c.served++
	} else {
		c.refused[refusal]++
	}
}

func (c *crowd) count() (served int, refused map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served, maps.Clone(c.refused)
}

// doubter is a client with a key that nobody else writes, and knows what the key may hold.
type doubter struct {
	*client
	key, value string   // the value was acknowledged last, and is empty for none
	maybe      []string // what else may be there, as nobody knows what became of writing it
	writes     int
}

// act sends a request and judges the answer.
func (d *doubter) act(c *crowd) error {
	method, value := "GET", ""
	switch rand.IntN(4) {
	case 0:
		d.writes++
		method, value = "POST", fmt.Sprint(d.key, " has ", d.writes)
		if d.writes%2 == 0 {
			value += strings.Repeat(".", 64<<10) // so that it needs a connection of its own
		}
	case 1:
		method = "DELETE"
	}
	a, err := d.ask(method, d.key, value)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, d.key, err)
	}
	said := fmt.Sprint(a.status, " ", a.body)
	switch {
	case said == unavailable, said == late:
	case method != "GET" && (said == lost || said == lostLate):
		d.maybe = append(d.maybe, value)
	case method == "GET" && d.mayHold(a):
		said = ""
	case method == "POST" && a.status == 200 && a.body == stored(d.key),
		method == "DELETE" && a.status == 200 && a.body == deletedBody(d.key),
		method == "DELETE" && a.status == 404 && a.body == missing:
		d.value, said = value, ""
	default:
		return fmt.Errorf("%s %s: %.200s, after %.200q and perhaps %.200q", method, d.key, said, d.value, d.maybe)
	}
	c.add(said)
	if retry := a.header.Get("Retry-After"); (a.status == 503) != (retry == "1") {
		return fmt.Errorf("%s %s: Retry-After: %q with %s", method, d.key, retry, said)
	}
	return nil
}

// mayHold says whether a is the answer to a GET of what the key may hold.
func (d *doubter) mayHold(a answer) bool {
	return slices.ContainsFunc(append([]string{d.value}, d.maybe...), func(value string) bool {
		if value == "" {
			return a.status == 404 && a.body == missing
		}
		return a.status == 200 && a.body == hit(d.key, value)
	})
}

// A request that the server has begun to serve is answered in full. One that was on its way may find
// the connection closed; then not a byte of an answer comes, and it has changed nothing.
func TestAStopUnderLoadCutsNoAnswerShortAndDropsNoWrite(t *testing.T) {
	t.Parallel()
	const loud, begun = 200, 100
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // when the server has ended, whatever fails before
	redis := redistest.Start(t)
	server := startServer(t, "-redis", redis.URL())
	owners, _ := server.owners(t, loud)
	var answered atomic.Int64
	for _, o := range owners {
		wg.Go(func() {
			for {
				err := o.act()
				switch {
				case errors.Is(err, errUnanswered):
					return
				case err != nil:
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	posts := make([]*client, begun)
	for i := range posts {
		posts[i] = server.mustDial(t)
		posts[i].beginPost(t, fmt.Sprint("begun", i), len("whole"))
	}
	n := answered.Load()
	redistest.Eventually(t, func() bool { return answered.Load() > n+loud }, "the load goes on")

	server.stop(t)
	for i, c := range posts {
		a, err := c.exchange("whole")
		require.NoError(t, err)
		require.Equal(t, 200, a.status, a.body)
		require.Equal(t, stored(fmt.Sprint("begun", i)), a.body)
		require.Equal(t, []byte("whole"), redis.Do("GET", fmt.Sprint("begun", i)))
	}
	wg.Wait()
	server.requireGoodbye(t, slack)
	t.Logf("%d requests answered, and %d that were under way", answered.Load(), begun)
	for _, o := range owners {
		held, _ := redis.Do("GET", o.key).([]byte)
		require.Equal(t, o.value, string(held), "what was acknowledged last is there, and nothing else")
	}
}

// beginPost sends the header of a POST, and returns when the server has asked for the body, so that it
// serves the request.
func (c *client) beginPost(t *testing.T, key string, length int) {
	t.Helper()
	a, err := c.exchange(fmt.Sprintf("POST /cache/%s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n", key, length))
	require.NoError(t, err)
	require.Equal(t, 100, a.status)
}
