// Package proof holds, in its tests, what takes more than the root module may require or its tests may
// last.
//
// # Order
//
// Get, Set and Delete of a rediscache.Cache are linearizable, key by key, while the network and the
// server fail.
//
// Clients use a few keys of a real redis-server at once, through a proxy, while connections are
// slowed, cut, reset, held and refused, and the server kills its clients, pauses, freezes, or is
// killed itself and loads what it had acknowledged. Each call is written down with its times and
// its outcome, and porcupine looks for one order of all calls to a key that explains every outcome,
// with each call taking effect at one moment between its beginning and its end. The documented
// contract allows two exceptions: a write that returned ErrOutcomeUnknown takes effect at any time
// after its beginning, or never, and one with any other error never does. Where there is no such
// order the test fails, and says where porcupine's picture of the calls and the faults is.
//
//	cd proof && go test -run Linearizable -v                      # seconds
//	cd proof && go test -run Linearizable -v -soak 10m -timeout 0 # a quarter for each kind of cache
//
// A run names its seed. With -seed the faults and each client's calls are the same again, but not
// how they meet.
//
// # The server example
//
// examples/server, built and started as a user would, is put under thousands of connections, without
// enough of Redis, to a stop under load, and among clients that mean harm.
//
//	cd proof && go test -run Thousands -v -soak 60s
package proof
