//go:build unix && !linux

package redistest

import "syscall"

const (
	sigstop = syscall.SIGSTOP
	sigcont = syscall.SIGCONT
)

// dieWithParent does nothing: there is no such signal here, and a child outlives a test process
// that is killed.
func dieWithParent() *syscall.SysProcAttr { return nil }
