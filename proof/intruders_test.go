//go:build unix

package proof_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// intrusion is what one kind of intruder does.
type intrusion struct {
	count    int
	says     string        // at once
	drips    bool          // a byte a second after that
	within   time.Duration // by then, and slack, the server ends the connection
	statuses []int         // one of which the server answers before, 0 for no answer
	body     string        // of the answer, if not empty
}

// headers begins a request for a key.
func headers(method string, lines ...string) string {
	return method + " /cache/a HTTP/1.1\r\nHost: x\r\n" + strings.Join(lines, "\r\n")
}

func intrusions() map[string]intrusion {
	const tooLarge = `{"error":"value_too_large","detail":"The value is too large."}`
	const cut = `{"error":"bad_request","detail":"The body could not be read."}`
	const limit = rediscache.DefaultMaxValueBytes
	const text = "Content-Type: text/plain"
	chunk := fmt.Sprintf("%x\r\n%s", limit+1, strings.Repeat("v", limit+1))
	// A chunk that is too large is answered at once; for its end net/http waits as for any body.
	kinds := map[string]intrusion{
		"silent":             {200, "", false, headerTimeout, []int{0}, ""},
		"half open":          {1000, headers("GET", "X-Half: "), false, headerTimeout, []int{0}, ""},
		"a slow header":      {100, headers("GET", "X-Slow: "), true, headerTimeout, []int{0}, ""},
		"a slow body":        {100, headers("POST", text, "Content-Length: 1000", "", ""), true, requestTimeout, []int{400}, cut},
		"no body":            {100, headers("POST", text, "Content-Length: 1000", "", ""), false, requestTimeout, []int{400}, cut},
		"a huge header":      {50, headers("GET", "X-Huge: "+strings.Repeat("h", 80<<10), "", ""), false, 0, []int{431}, ""},
		"a huge query":       {50, "POST /cache/a?value=" + strings.Repeat("q", 80<<10), false, 0, []int{431}, ""},
		"a huge value":       {50, headers("POST", text, fmt.Sprintf("Content-Length: %d", limit+1), "", ""), false, 0, []int{413}, tooLarge},
		"a value in a chunk": {10, headers("POST", text, "Transfer-Encoding: chunked", "", chunk), false, requestTimeout, []int{413}, tooLarge},
	}
	noise := make([]byte, 4<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	for i, garbage := range []string{
		string(noise),
		"\r\n\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", // as TLS begins
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",                     // as HTTP/2 begins
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",            // as a client of Redis begins
		"GET /cache/a HTTP/9.9\r\nHost: x\r\n\r\n",
		"GET /cache/a HTTP/1.1\r\n\r\n",
		headers("GET", "X-Nul: \x00", "", ""),
		headers("GET", "X-Space : x", "", ""),
		headers("POST", "Content-Length: -1", "", ""),
		headers("POST", "Content-Length: 1", "Content-Length: 2", "", ""),
		headers("POST", "Transfer-Encoding: gzip", "", ""),
		headers("POST", text, "Transfer-Encoding: chunked", "", "no length\r\n\r\n"),
	} {
		kinds[fmt.Sprint("garbage ", i)] = intrusion{20, garbage, false, 0, []int{400, 501, 505}, ""}
	}
	return kinds
}

func TestIntrudersAreCutOffAndHurtNobody(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	server := startServer(t, "-redis", redis.URL())
	var over atomic.Bool
	stays, returns := make(chan visit, 1), make(chan visit, 1)
	go func() { stays <- server.behave(t, "stays", false, &over) }()
	go func() { returns <- server.behave(t, "returns", true, &over) }()

	var quick, slow sync.WaitGroup
	intruders := 0
	for name, kind := range intrusions() {
		intruders += kind.count
		group := &quick
		if kind.within == requestTimeout {
			group = &slow
		}
		for range kind.count {
			group.Go(func() {
				if err := kind.run(server.addr); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	quick.Wait()
	over.Store(true)
	a, b := <-stays, <-returns
	server.stop(t) // while the slow ones go on
	slow.Wait()
	server.requireGoodbye(t, slack)
	t.Logf("%d intruders; meanwhile two clients had %d answers, the slowest after %v",
		intruders, a.answers+b.answers, max(a.slowest, b.slowest))
	require.Greater(t, min(a.answers, b.answers), 20)
	require.Zero(t, redis.Do("EXISTS", "a"), "none of them has stored a value")
	require.Less(t, strings.Count(server.String(), "\n"), 10, "nor filled the log")
}

// run intrudes until the server ends the connection.
func (k intrusion) run(addr string) error {
	c, err := dial(addr)
	if err != nil {
		return err
	}
	defer c.close()
	_ = c.conn.SetDeadline(time.Now().Add(k.within + slack)) // an error comes again below
	over := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(over)
	wg.Go(func() {
		_, _ = io.WriteString(c.conn, k.says) // the server may have had enough before the end
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for k.drips {
			select {
			case <-tick.C:
				_, _ = io.WriteString(c.conn, "x")
			case <-over:
				return
			}
		}
	})
	got, err := io.ReadAll(c.conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("not cut off, after %q", got)
	}
	return k.check(got) // a reset that comes after an answer is an end as well
}

// check judges all that the server sent.
func (k intrusion) check(got []byte) error {
	if len(got) == 0 {
		if slices.Contains(k.statuses, 0) {
			return nil
		}
		return errUnanswered
	}
	a, err := (&client{r: bufio.NewReader(bytes.NewReader(got))}).answer()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %q", err, got)
	case !slices.Contains(k.statuses, a.status), k.body != "" && a.body != k.body:
		return fmt.Errorf("answered %q", got)
	}
	return nil
}

// visit is what a client had that behaves.
type visit struct {
	answers int
	slowest time.Duration
}

// behave does what a good client does until it is over, on one connection or on a new one for each
// request. Every answer has to be right.
func (s *server) behave(t *testing.T, key string, reconnects bool, over *atomic.Bool) (v visit) {
	o := &owner{key: key}
	defer func() {
		if o.client != nil {
			o.close()
		}
	}()
	for !over.Load() {
		begin := time.Now()
		if o.client == nil {
			c, err := dial(s.addr)
			if err != nil {
				t.Error(err)
				return v
			}
			o.client = c
		}
		if err := o.act(); err != nil {
			t.Error(err)
			return v
		}
		v.answers++
		v.slowest = max(v.slowest, time.Since(begin))
		if reconnects {
			o.close()
			o.client = nil
		}
	}
	return v
}

func TestNoPasswordKeyOrValueIsSaid(t *testing.T) {
	t.Parallel()
	const right, wrong, key, value = "r1ght/p4ss:w0rd@x", "wr0ng/p4ss:w0rd@x", "the-key", "the-value"
	var passwords []string
	for _, p := range []string{right, wrong} {
		passwords = append(passwords, p, url.QueryEscape(p), url.PathEscape(p), p[:5], p[len(p)-6:])
	}
	redis := redistest.Start(t, "--requirepass", right)
	for _, c := range []struct {
		password string
		status   int
		says     string // the log
	}{
		{right, 200, "listening"},
		{wrong, 500, "WRONGPASS"},
		{"", 500, "NOAUTH"},
		{right, 503, "refused"},
	} {
		if c.status == 503 {
			redis.Kill()
		}
		u := url.URL{Scheme: "redis", Host: redis.Addr, User: url.UserPassword("", c.password)}
		server := startServer(t, "-redis", u.String())
		for _, method := range []string{"POST", "GET", "DELETE"} {
			a, err := server.mustDial(t).ask(method, key, value)
			require.NoError(t, err)
			require.Equal(t, c.status, a.status, "%s: %s", method, a.body)
			requireNone(t, passwords, fmt.Sprint(a))
		}
		server.stop(t)
		server.requireGoodbye(t, slack)
		require.Contains(t, server.String(), c.says)
		requireNone(t, append(passwords, key, value), server.String())
	}
}

func requireNone(t *testing.T, secrets []string, said string) {
	t.Helper()
	for _, secret := range secrets {
		require.NotContains(t, said, secret)
	}
}
