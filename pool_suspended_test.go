package rediscache_test

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

// suspendedURL makes TestTheFirstCallAfterASuspensionSucceeds the process that is suspended.
const suspendedURL = "REDISCACHE_SUSPENDED_URL"

// While a process is suspended, a NAT forgets its connections, and then silently drops what the process
// sends on them.
func TestTheFirstCallAfterASuspensionSucceeds(t *testing.T) {
	if url := os.Getenv(suspendedURL); url != "" {
		beSuspended(t, url)
		return
	}
	s := redistest.Start(t)
	nat := redistest.NewProxy(t, s.Addr)
	name := redistest.NewProxy(t, nat.Addr)
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
	nat.Blackhole()
	name.Redirect(s.Addr)
	_, err = fmt.Fprintln(in, "go on") // which the process reads as soon as it can
	require.NoError(t, err)
	wait(t.Context(), 3*time.Second)
	thaw()
	for range suspendedCases {
		require.True(t, lines.Scan())
		t.Log(lines.Text())
		require.True(t, strings.HasSuffix(lines.Text(), ": <nil>"), lines.Text())
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

func beSuspended(t *testing.T, url string) {
	pools := make([]*rediscache.WarmPool, len(suspendedCases))
	for i, of := range suspendedCases {
		pools[i] = newPool(t, url, sizes(of.idle, of.max, of.opts...)...)
		requireReady(t, pools[i])
	}
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	require.NoError(t, err)
	errs, took := make([]error, len(pools)), make([]time.Duration, len(pools))
	together(len(pools), func(i int) {
		began := time.Now()
		errs[i] = setWithin(pools[i], rediscache.DefaultTimeout)
		took[i] = time.Since(began)
	})
	for i, of := range suspendedCases {
		fmt.Printf("%s: first call after %v: %v\n", of.name, took[i], errs[i])
	}
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
