package main

import (
	"strconv"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

// nineToOne is the mix of the sections that do not vary it.
var nineToOne = load.Mix{Gets: 9, Sets: 1}

// small is the value of the sections that do not vary it, in bytes.
const small = 100

// overTLS is the section in which every client verifies the server's certificate.
func (b *session) overTLS() plan {
	p := plan{section: &report.Section{
		Title: "TLS", Unit: "op", Axes: []string{"value", "GET:SET", "callers"},
		About: "The same over TLS 1.3 with an ECDSA P-256 certificate that the bench made; every client verifies it.",
		Main:  report.PerSec, Tail: report.P99, Plot: true,
	}}
	for _, callers := range b.o.callers {
		p.rows = append(p.rows, rowPlan{
			row: report.Row{
				At:     []string{report.Size(small), nineToOne.String(), strconv.Itoa(callers)},
				Group:  "TLS, " + report.Size(small) + ", " + nineToOne.String(),
				Column: report.Callers(callers),
			},
			prepare: b.fill(b.keys, small),
			turns: b.turns("tls", func() (client.Target, error) {
				return client.Target{Addr: b.srv.TLSAddr(), TLS: b.pair.Config(), Callers: callers}, nil
			}, b.closedLoop(callers, b.keys, small, nineToOne)),
		})
	}
	return p
}
