//go:build unix

package child

import "syscall"

// Apart puts a child in a process group of its own: a terminal sends an
// interrupt to the whole group of the program in front, and the children must
// outlive the clients.
func Apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
