// Package client puts the Redis clients of the comparison behind one small
// interface, one file for each library. Every configuration is tuned as the
// library's own documentation says; the comment in front of it names the place.
package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Client is what the load needs of a Redis client. It is safe for concurrent
// use.
type Client interface {
	// Get returns the value of key, in memory that the caller owns. A missing
	// key is an error or an empty value.
	Get(ctx context.Context, key string) ([]byte, error)
	// Set stores value under key without expiry. It keeps nothing of value after
	// it returned.
	Set(ctx context.Context, key string, value []byte) error
	// Close ends the client and its connections.
	Close() error
}

// Many is what a client with verbs of many keys adds: each library's own way.
type Many interface {
	Client
	// GetMany gets the keys and calls each with every value that exists, which each
	// does not keep, and with its place among the keys.
	GetMany(ctx context.Context, keys []string, each func(i int, value []byte)) error
	// SetMany stores the batch with an expiry of ttl, which is whole seconds.
	SetMany(ctx context.Context, b *Batch, ttl time.Duration) error
	// DeleteMany deletes the keys.
	DeleteMany(ctx context.Context, keys []string) error
}

// Batch is many keys with their values, in the two forms that libraries take.
type Batch struct {
	Keys   []string
	Values [][]byte
	Items  map[string][]byte
}

// Target is where to connect, and for what.
type Target struct {
	Addr    string      // a host and a port
	TLS     *tls.Config // nil connects without TLS
	Callers int         // how many callers there will be
}

// Config is a client in one configuration.
type Config struct {
	// Name is what tables, plots and the -clients flag call it.
	Name string
	// Module is the path of the library's module.
	Module string
	// About says in one line what was set.
	About string
	// Sections names the sections of the report that the configuration is for. None
	// means all of them.
	Sections []string
	// Open connects to the target.
	Open func(ctx context.Context, t Target) (Client, error)
}

// In reports whether the configuration is for a section of the report.
func (c Config) In(section string) bool {
	return len(c.Sections) == 0 || slices.Contains(c.Sections, section)
}

// Own reports whether the configuration is one of this library.
func (c Config) Own() bool { return c.Module == ownModule }

// Sections of the report that name themselves in a configuration.
const (
	SectionMany = "many"
	SectionBusy = "busy"
)

// single are the sections in which a call has one key.
var single = []string{"matrix", "tls", "large", "open", SectionBusy, "http"}

// Own is the name of this library's configuration with its defaults.
const Own = "rediscache"

const ownModule = "github.com/rediscache/rediscache"

// poolSize is the number of connections of every pool that takes a size: what
// the tutorial behind this library configured (maxsize=50) and this library's
// own default.
const poolSize = 50

// All returns every configuration, this library's first.
func All() []Config {
	all := slices.Concat(rediscacheConfigs, []Config{redigoConfig}, goRedisConfigs)
	all = append(all, rueidisConfigs...)
	return append(all, radixConfigs...)
}

// Choose returns the configurations whose names a comma-separated list holds,
// in the order of [All]. The empty list means all; a name ending in * means all
// that begin so.
func Choose(list string) ([]Config, error) {
	if list == "" {
		return All(), nil
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, c := range All() {
			if matches(c.Name, strings.TrimSpace(name)) {
				wanted[c.Name], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("bench: no client is called %q; there are %s", name, names())
		}
	}
	var chosen []Config
	for _, c := range All() {
		if wanted[c.Name] {
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

func matches(name, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return name == pattern
}

func names() string {
	var all []string
	for _, c := range All() {
		all = append(all, c.Name)
	}
	return strings.Join(all, ", ")
}
