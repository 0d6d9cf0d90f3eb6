//go:build !linux

package proxy

import "time"

func preciseSleep() {}

func sleepUntil(due time.Time) { time.Sleep(untilDue(due)) }
