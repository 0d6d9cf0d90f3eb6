package resp_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
)

func replyOf(size int) string {
	return fmt.Sprintf("$%d\r\n%s\r\n", size, strings.Repeat("v", size))
}

// endless says the same reply again and again. It copies in large pieces, so that what is measured
// is not the source.
func endless(reply string) *repeat {
	return &repeat{block: strings.Repeat(reply, 1+(1<<17)/len(reply))}
}

var replies = []struct{ name, in string }{
	{"value=100B", replyOf(100)},
	{"value=10kB", replyOf(10_000)},
	{"value=1MB", replyOf(1_000_000)},
	{"miss", "$-1\r\n"},
	{"ok", "+OK\r\n"},
	{"int", ":12345678\r\n"},
	{"array=100", "*100\r\n" + strings.Repeat(replyOf(100), 100)},
}

func BenchmarkRead(b *testing.B) {
	for _, c := range replies {
		b.Run(c.name, func(b *testing.B) {
			r := resp.NewReader(endless(c.in), resp.Limits{})
			b.ReportAllocs()
			b.SetBytes(int64(len(c.in)))
			for b.Loop() {
				if _, err := r.Read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRedigoReceive is what BenchmarkRead is to be compared with.
func BenchmarkRedigoReceive(b *testing.B) {
	for _, c := range replies {
		b.Run(c.name, func(b *testing.B) {
			conn := redis.NewConn(&memory{Reader: endless(c.in)}, 0, 0)
			b.ReportAllocs()
			b.SetBytes(int64(len(c.in)))
			for b.Loop() {
				if _, err := conn.Receive(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendSet(b *testing.B) {
	buf, key, value := make([]byte, 0, 1024), "user:1234567", make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendSet(buf[:0], key, value, 60_000)
	}
}

func BenchmarkAppendGet(b *testing.B) {
	buf, key := make([]byte, 0, 1024), "user:1234567"
	b.ReportAllocs()
	for b.Loop() {
		buf = resp.AppendArray(buf[:0], 2)
		buf = resp.AppendBulk(buf, "GET")
		buf = resp.AppendBulk(buf, key)
	}
}

// BenchmarkRedigoSendSet is what BenchmarkAppendSet is to be compared with.
func BenchmarkRedigoSendSet(b *testing.B) {
	m := &memory{}
	conn, key, value := redis.NewConn(m, 0, 0), "user:1234567", make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if err := conn.Send("SET", key, value, "PX", 60_000); err != nil {
			b.Fatal(err)
		}
		m.written.Reset()
	}
}
