//go:build !unix

// Package child holds what the benchmark's child processes have in common.
package child

import "syscall"

// Apart returns nil: this system has no process groups to set.
func Apart() *syscall.SysProcAttr { return nil }
