//go:build !unix

package child

import "syscall"

// Apart returns nil: this system has no process groups to set.
func Apart() *syscall.SysProcAttr { return nil }
