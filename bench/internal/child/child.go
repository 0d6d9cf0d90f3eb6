// Package child starts this program again as a child process.
package child

import (
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Process is this program, running a second time. It ends when its standard input
// does, which happens too when its parent dies.
type Process struct {
	In  io.WriteCloser // its standard input
	Out io.ReadCloser  // its standard output

	cmd  *exec.Cmd
	name string
}

// Start starts this program again with the arguments; the first one names what
// the child is. The caller must call Close.
func Start(args ...string) (*Process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = Apart()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("bench: start %s: %w", args[0], err)
	}
	return &Process{In: in, Out: out, cmd: cmd, name: args[0]}, nil
}

// Close ends the child's standard input and waits until the child has ended.
func (p *Process) Close() error {
	_ = p.In.Close() // the child ends by it
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("bench: %s: %w", p.name, err)
	}
	return nil
}

// Kill ends the child at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it has ended already
	_ = p.cmd.Wait()         // killed
}
