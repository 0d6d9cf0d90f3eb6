package redistest_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// holdServer makes TestAServerDiesWithItsProcess the program that is killed.
const holdServer = "REDISTEST_HOLD_SERVER"

func TestAServerDiesWithItsProcess(t *testing.T) {
	if os.Getenv(holdServer) != "" {
		s := redistest.Start(t)
		fmt.Println("addr", s.Addr)
		select {} // until killed: no cleanup runs
	}
	redistest.Start(t) // skips where there is none
	cmd := exec.Command(os.Args[0], "-test.run=^TestAServerDiesWithItsProcess$")
	cmd.Env = append(os.Environ(), holdServer+"=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	addr := strings.TrimSpace(strings.TrimPrefix(line, "addr "))
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = c.Close() }()

	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	// The end of this connection, and not its port, which another server may have by now, shows that the
	// server is gone.
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server outlived the process that started it")
}

func TestAServerOutlivesTheThreadThatAskedForIt(t *testing.T) {
	s := redistest.Start(t)
	thread, release := make(chan int), make(chan struct{})
	defer close(release)
	restart := func() {
		runtime.LockOSThread() // never unlocked below: the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			thread <- 0
			<-release // the main thread would not end; meanwhile nobody else gets it
			runtime.UnlockOSThread()
			return
		}
		s.Restart()
		thread <- syscall.Gettid()
	}
	go restart()
	id := <-thread
	if id == 0 {
		go restart()
		id = <-thread
	}
	redistest.Eventually(t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id))
		return err != nil
	}, "the thread has not ended")
	_, err := dial(t, s.Addr).Do("PING")
	require.NoError(t, err)
}
