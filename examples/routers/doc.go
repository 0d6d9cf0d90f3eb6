// Package routers mounts the handler of rediscache on seven routers. Each file mounts
// it on one router, alone and in a group, and its test sends the same keys to both.
//
//	cd examples/routers && go test .
//
// Look at the file of your router. A key is the same behind every router. Where a
// router redirects or refuses a path before the handler sees it, the comment of the
// function says so.
package routers
