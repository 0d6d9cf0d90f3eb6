package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/go-redsync/redsync/v4"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
)

func TestBothLibrariesRunOnOnePool(t *testing.T) {
	redis := miniredis.RunT(t)
	pool, err := rediscache.NewPool("redis://"+redis.Addr(), rediscache.WithMinIdle(1), rediscache.WithMaxActive(10))
	require.NoError(t, err)
	defer pool.Close()
	cache, err := rediscache.New(pool)
	require.NoError(t, err)
	defer cache.Close()
	sessions, locks := open(pool)
	server := httptest.NewServer(newHandler(sessions, locks, cache))
	defer server.Close()

	for range 2 { // two users
		jar, err := cookiejar.New(nil)
		require.NoError(t, err)
		client := &http.Client{Jar: jar}
		for _, want := range []string{"visits in this session: 1\n", "visits in this session: 2\n"} {
			resp, err := client.Get(server.URL + "/visits")
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, want, string(body))
		}
	}

	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 20 {
		wg.Go(func() {
			resp, err := http.Post(server.URL+"/report", "", nil)
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close() // only the status counts
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
		})
	}
	wg.Wait()
	require.Equal(t, 20, statuses[200]+statuses[409])
	require.Positive(t, statuses[200])
	require.Positive(t, statuses[409], "most came while the first was writing")

	// Twenty callers that wait for a lock need no more than the five connections of their pool.
	var inside atomic.Int64
	for range 20 {
		wg.Go(func() {
			lock := locks.NewMutex("lock:all", redsync.WithTries(1000), redsync.WithRetryDelay(5*time.Millisecond))
			if err := lock.Lock(); err != nil {
				t.Error(err)
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two callers have the lock")
			}
			inside.Add(-1)
			if _, err := lock.Unlock(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Zero(t, pool.Stats().InUse)
	require.Zero(t, pool.Stats().Closed.State, "both return connections as they got them")
	require.LessOrEqual(t, pool.Stats().Open, 10)
}

// The program is built and run as a user runs it.
func TestTheProgramSaysGoodbye(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "redigo")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.CommandContext(t.Context(), bin, "-h").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "-addr")
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin, "-addr", "127.0.0.1:0")
		stderr, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stderr)
		var text strings.Builder
		for lines.Scan() {
			text.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "/report") { // the last line of what to try
				require.NoError(t, cmd.Process.Signal(signal))
			}
		}
		require.NoError(t, cmd.Wait(), text.String())
		require.Regexp(t, `goodbye: 0 connections are left\n$`, text.String())
	}
}
