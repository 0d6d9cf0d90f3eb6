// Package hook lets package rediscachetest use what package rediscache does not export.
package hook

// WaitIdle waits until no load of a *rediscache.Cache runs. Package rediscache sets it.
var WaitIdle func(cache any)
