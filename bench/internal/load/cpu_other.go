//go:build !unix

package load

import "time"

// ProcessCPU returns zero: this system has no getrusage.
func ProcessCPU() time.Duration { return 0 }
