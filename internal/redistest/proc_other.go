//go:build !unix

package redistest

import "syscall"

// Signals that this system does not have: sending one is an error.
const (
	sigstop = syscall.Signal(0x13)
	sigcont = syscall.Signal(0x12)
)

func dieWithParent() *syscall.SysProcAttr { return nil }
