// Package examples_test runs each example as a user does, as a process of its
// own, and looks at what it prints, answers and leaves.
package examples_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// bin is where TestMain puts the built examples.
var bin string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "examples"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(bin) }() // what is left in the temporary directory fails nothing
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+string(filepath.Separator), "./...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	return m.Run()
}

const (
	stored  = `{"message":"Data cached successfully","key":"a","value":"hello"}`
	hit     = `{"key":"a","value":"hello"}`
	deleted = `{"message":"Data with key a deleted successfully"}`
	missing = `{"message":"Key not found"}`
)

// programs are the examples of this module. Those of nested modules have their own tests.
var programs = []string{"existing", "loader", "quickstart", "server"}

// The test reads the sources, and imports the package below, so that go test does not
// use a cached result after a change of either.
func TestEveryExampleIsShortAndSaysHowToRunIt(t *testing.T) {
	sources, err := filepath.Glob("*/main.go")
	require.NoError(t, err)
	var own []string
	for _, file := range sources {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		require.LessOrEqual(t, strings.Count(string(source), "\n"), 120, file)
		header, _, _ := strings.Cut(string(source), "\npackage main\n")
		require.Contains(t, header, "Look at ", file)
		name := filepath.Dir(file)
		require.True(t, strings.HasPrefix(header, "// Command "+name+" "), file)
		if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
			require.Contains(t, header, "cd examples/"+name+" && go run .\n")
			continue
		}
		require.Contains(t, header, "go run ./examples/"+name)
		own = append(own, name)
	}
	require.Equal(t, programs, own)
}

func TestEveryExampleSaysWhatItDoesAndWhatToTry(t *testing.T) {
	for _, name := range programs {
		p := launch(t, name, "-h")
		require.Equal(t, 0, p.wait(t), name)
		require.Regexp(t, name+` \w+s .*\.`, p.String(), "what it does")
		require.NotContains(t, p.String(), "goodbye")

		p = launch(t, name, listenOn(name)...)
		p.await(t, "(?m)"+firstSign[name])
		p.stop(t, os.Interrupt)
		require.Equal(t, 0, p.wait(t), p.String())
		require.Regexp(t, `\btry\b`, p.String(), name)
		require.Contains(t, p.String(), "goodbye", name)

		p = launch(t, name, append(listenOn(name), "-no-such-flag")...)
		require.NotEqual(t, 0, p.wait(t), name)
	}
}

// firstSign is what a program prints after it has begun to listen for signals.
var firstSign = map[string]string{
	"existing": "listening on ", "loader": "^try", "quickstart": "^the pool is warm", "server": "listening on ",
}

// listenOn returns the flags that let a program serve on a free port.
func listenOn(name string) []string {
	if name == "existing" || name == "server" {
		return []string{"-addr", "127.0.0.1:0"}
	}
	return nil
}

// Each program may have ended before the signal comes; then it ended with a goodbye.
func TestEveryExampleEndsWellAtASignal(t *testing.T) {
	for _, name := range programs {
		for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
			p := launch(t, name, listenOn(name)...)
			p.await(t, "(?m)"+firstSign[name])
			p.stop(t, signal)
			require.Equal(t, 0, p.wait(t), "%s, %v: %s", name, signal, p)
			require.Contains(t, p.String(), "goodbye", name)
		}
	}
}

// A request in flight keeps a server for 20 seconds, but not after a second signal.
func TestASecondSignalEndsAServerAtOnce(t *testing.T) {
	for name, auth := range map[string]string{
		"existing": "Authorization: Bearer acme-writer\r\n", "server": "",
	} {
		p := start(t, name, "-addr", "127.0.0.1:0")
		target := map[string]string{"existing": "/api/cache/slow", "server": "/cache/slow"}[name]
		p.beginPost(t, target, auth, "hello")
		p.signal(t, os.Interrupt)
		redistest.Eventually(t, func() bool { return !accepts(p.addr) }, "it stops")
		began := time.Now()
		p.signal(t, os.Interrupt)
		require.NotEqual(t, 0, p.wait(t), name)
		require.Less(t, time.Since(began), 5*time.Second, name)
		require.NotContains(t, p.String(), "goodbye", name)
	}
}

func TestQuickstartPrintsWhatItDoes(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "run", "./quickstart").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, `the pool is warm: 2 connections are idle
set greeting: stored for a minute
get greeting: hello, with 1m0s left
delete greeting: 1 existed
delete greeting: 0 existed
get greeting: a miss, which is an error: rediscache: not found
add lock by a worker: true
add lock by another worker: false
touch lock: it lives for an hour from now
in all: 1 hit, 1 miss, 2 set, 1 deleted
shut down: 0 connections are left
goodbye; to try the cache with curl: go run ./examples/server
`, string(out))
}

func TestLoaderAsksItsDatabaseOnce(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "run", "./loader").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, `try: change policy in examples/loader/main.go and run it again
1000 requests: 1 query, and the user is "Ann", <nil>
the database is down: "Ann", <nil>
user 7, three times: rediscache: not found
stale: 1, known to be missing: 2
goodbye
`, string(out))
}

func TestServerAnswersAndFinishesWhatIsUnderWayWhenItIsStopped(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(signal.String(), func(t *testing.T) {
			p := start(t, "server", "-addr", "127.0.0.1:0")
			p.do(t, "POST", "/cache/a?value=hello", 200, stored)
			p.do(t, "GET", "/cache/a", 200, hit)
			p.do(t, "DELETE", "/cache/a", 200, deleted)
			p.do(t, "GET", "/cache/a", 404, missing)

			slow := p.beginPost(t, "/cache/slow", "", "hello")
			p.signal(t, signal)
			redistest.Eventually(t, func() bool { return strings.Contains(p.String(), "stopping") }, "it stops")
			redistest.Eventually(t, func() bool { return !accepts(p.addr) }, "it refuses connections")
			slow.end(t, `{"message":"Data cached successfully","key":"slow"}`)

			require.Equal(t, 0, p.wait(t), p.String())
			require.Regexp(t, `goodbye: requests finished, cache closed, pool shut down\n$`, p.String())
		})
	}
}

func TestServerSaysWhatToCurlAsTheReadmeDoes(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	p := start(t, "server", "-addr", "127.0.0.1:0")
	lines := regexp.MustCompile(`(?m)^\s*(curl .*)$`).FindAllStringSubmatch(p.String(), -1)
	require.Len(t, lines, 3, p.String())
	for _, line := range lines {
		require.Contains(t, string(readme), "$ "+strings.ReplaceAll(line[1], p.addr, "127.0.0.1:8080")+"\n")
	}
}

func TestServerExitsWithOneLineThatSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // nothing was accepted
	for name, c := range map[string]struct{ args, want string }{
		"a typo":              {"-adr 127.0.0.1:0", "flag provided but not defined: -adr"},
		"a word":              {"start", `unexpected argument "start"`},
		"no number":           {"-min-idle ten", `invalid value "ten" for flag -min-idle`},
		"a floor above max":   {"-min-idle 9 -max-active 5", "WithMinIdle: 9 is above the maximum of 5"},
		"a scheme":            {"-redis http://127.0.0.1", `scheme "http" is none of redis, rediss, valkey, valkeys, unix`},
		"a URL with a secret": {"-redis redis://:hunter2%@127.0.0.1", "the URL cannot be parsed"},
		"a port that is busy": {"-addr " + taken.Addr().String(), "address already in use"},
		"a port that is none": {"-addr 127.0.0.1:http-ish", "http-ish"},
	} {
		t.Run(name, func(t *testing.T) {
			p := launch(t, "server", strings.Fields(c.args)...)
			require.Equal(t, 1, p.wait(t))
			lines := strings.Split(strings.TrimSpace(p.String()), "\n")
			require.Contains(t, lines[len(lines)-1], "server: ")
			require.Contains(t, lines[len(lines)-1], c.want)
			require.NotContains(t, p.String(), "hunter2")
		})
	}
}

func TestServerListsItsFlags(t *testing.T) {
	p := launch(t, "server", "-h")
	require.Equal(t, 0, p.wait(t))
	for _, want := range []string{
		`-addr string\n.*\(default "127\.0\.0\.1:8080"\)`, `-redis URL\n.*embedded miniredis`,
		fmt.Sprintf(`-min-idle int\n.*\(default %d\)`, rediscache.DefaultMinIdle),
		fmt.Sprintf(`-max-active int\n.*\(default %d\)`, rediscache.DefaultMaxActive),
	} {
		require.Regexp(t, want, p.String())
	}
}

func TestServerStartsWithoutRedisAndSaysWhyItDoesNotAnswer(t *testing.T) {
	nobody := redistest.Nobody(t)
	p := start(t, "server", "-addr", "127.0.0.1:0", "-redis", "redis://"+nobody)
	require.Regexp(t, `Redis is not ready, .*`+regexp.QuoteMeta(nobody)+`.*refused`, p.String())
	const unavailable = `{"error":"cache_unavailable","detail":"The cache is not available now."}`
	p.do(t, "GET", "/cache/a", 503, unavailable)
	p.do(t, "POST", "/cache/a?value=hello", 503, unavailable)
	failed := regexp.MustCompile(`request failed method=GET code=cache_unavailable cause=.*refused`)
	redistest.Eventually(t, func() bool { return failed.MatchString(p.String()) }, "it says why")
	p.signal(t, syscall.SIGTERM)
	require.Equal(t, 0, p.wait(t), p.String())
}

func TestServerUsesTheRedisAndTheSizesThatItIsGiven(t *testing.T) {
	s := redistest.Start(t)
	p := start(t, "server", "-addr", "127.0.0.1:0", "-redis", s.URL(), "-min-idle", "3", "-max-active", "4")
	clients := func() int {
		list, err := redis.String(s.Do("CLIENT", "LIST"), nil)
		require.NoError(t, err)
		return strings.Count(list, " name=rediscache-server ")
	}
	require.Equal(t, 3, clients())
	p.do(t, "POST", "/cache/a?value=hello", 200, stored)
	require.Equal(t, []byte("hello"), s.Do("GET", "a"))

	s.Kill()
	redistest.Eventually(t, func() bool { return p.status("/cache/a") == 503 }, "Redis is gone")
	s.Restart()
	redistest.Eventually(t, func() bool { return p.status("/cache/a") == 404 }, "Redis is back, empty")
	p.signal(t, syscall.SIGTERM)
	require.Equal(t, 0, p.wait(t), p.String())
	redistest.Eventually(t, func() bool { return clients() == 0 }, "no connection is left")
}

func TestExistingKeepsItsRoutesAndItsTenantsApart(t *testing.T) {
	p := start(t, "existing", "-addr", "127.0.0.1:0")
	p.do(t, "GET", "/", 200, "") // follows the old redirect to /healthz
	p.do(t, "GET", "/healthz", 200, "")

	const writer, reader, stranger = "Bearer acme-writer", "Bearer acme-reader", "Bearer globex-writer"
	p.doAs(t, writer, "POST", "/api/cache/a?value=hello", 200, stored)
	p.doAs(t, writer, "GET", "/api/cache/a", 200, hit)
	p.doAs(t, reader, "GET", "/api/cache/a", 200, hit)
	p.doAs(t, stranger, "GET", "/api/cache/a", 404, missing)
	p.doAs(t, stranger, "DELETE", "/api/cache/a", 404, missing)

	const forbidden = `{"error":"forbidden","detail":"The request is not permitted."}`
	p.doAs(t, reader, "DELETE", "/api/cache/a", 403, forbidden)
	const unauthorized = `{"error":"unauthorized","detail":"The request needs credentials."}`
	for _, nobody := range []string{"", "acme-writer", "Bearer ", "Bearer x"} {
		header := p.doAs(t, nobody, "GET", "/api/cache/a", 401, unauthorized)
		require.Equal(t, `Bearer realm="cache"`, header.Get("WWW-Authenticate"))
	}
	p.doAs(t, writer, "GET", "/api/cache/a", 200, hit)

	require.Regexp(t, `(?m) POST /api/cache/a \d+.*s$`, p.String())
	_, logged, _ := strings.Cut(p.String(), " GET / ") // after what to try
	require.NotContains(t, logged, "acme-writer")
	p.signal(t, syscall.SIGTERM)
	require.Equal(t, 0, p.wait(t), p.String())
}

// program is an example that runs.
type program struct {
	redistest.Output

	addr string // where it listens
	cmd  *exec.Cmd
}

// launch starts a built example, which ends with the test at the latest.
func launch(t *testing.T, name string, args ...string) *program {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be sent SIGTERM there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // one that does not end is killed
	t.Cleanup(cancel)
	p := &program{cmd: exec.CommandContext(ctx, filepath.Join(bin, name), args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.Output, &p.Output
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Wait() }) // an error where the test has waited itself
	return p
}

// start launches an example that serves and waits until it does.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := launch(t, name, args...)
	p.addr = p.Addr(t)
	return p
}

func (p *program) signal(t *testing.T, s os.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s))
}

// stop sends a signal to a program that may have ended already.
func (p *program) stop(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
}

// await waits until the program has printed a line that matches.
func (p *program) await(t *testing.T, line string) {
	t.Helper()
	redistest.Eventually(t, func() bool { return regexp.MustCompile(line).MatchString(p.String()) }, "it prints %s", line)
}

// wait returns the exit code.
func (p *program) wait(t *testing.T) int {
	t.Helper()
	_ = p.cmd.Wait() // the code says it all
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) do(t *testing.T, method, target string, status int, body string) {
	t.Helper()
	p.doAs(t, "", method, target, status, body)
}

// doAs is curl -L -X method, with an Authorization header unless auth is empty.
func (p *program) doAs(t *testing.T, auth, method, target string, status int, body string) http.Header {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.addr+target, http.NoBody)
	require.NoError(t, err)
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, body, string(got))
	require.Equal(t, status, resp.StatusCode)
	require.Equal(t, status == 503, resp.Header.Get("Retry-After") != "")
	return resp.Header
}

// status returns that of a GET, or 0.
func (p *program) status(target string) int {
	resp, err := http.Get("http://" + p.addr + target)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close() // only the status counts
	return resp.StatusCode
}

func accepts(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		_ = conn.Close() // nothing was written
	}
	return err == nil
}

// slowPost is a POST that the server has begun to serve and whose body it waits for.
type slowPost struct {
	conn net.Conn
	r    *bufio.Reader
	body string
}

// beginPost sends the header, of which auth may be a line, and returns when the server
// has asked for the body.
func (p *program) beginPost(t *testing.T, target, auth, body string) *slowPost {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // end has read all that comes
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n", target, auth, len(body))
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
	_, err = r.ReadString('\n')
	require.NoError(t, err)
	return &slowPost{conn, r, body}
}

// end sends the body and checks the answer.
func (s *slowPost) end(t *testing.T, want string) {
	t.Helper()
	_, err := io.WriteString(s.conn, s.body)
	require.NoError(t, err)
	resp, err := http.ReadResponse(s.r, nil)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
	require.Equal(t, 200, resp.StatusCode)
}
