package server

import (
	"context"
	"testing"
)

// What the transport costs: one call at a time through socket and daemon, and through a relay as well.
func BenchmarkCallOverTheSocket(b *testing.B) {
	h, p := newHouse(), shortDir(b)
	h.open(b, Options{Paths: p})
	w := dialWire(b, p, hello{As: "x"})
	for b.Loop() {
		w.ask(call1("1", "whoami", ""))
	}
}

func BenchmarkCallThroughARelay(b *testing.B) {
	h, p := newHouse(), shortDir(b)
	h.open(b, Options{Paths: p})
	s := startRelay(b, context.Background(), RelayOptions{Paths: p})
	for b.Loop() {
		s.ask(call1("1", "whoami", ""))
	}
}

func BenchmarkStrictJSON(b *testing.B) {
	line := []byte(modernLine("1", "tools/call", "claude-code", `"name":"lease_credential","arguments":{"credential":"openai","ttl":"30m","purpose":"run the tests"},`))
	for b.Loop() {
		if err := strictJSON(line); err != nil {
			b.Fatal(err)
		}
	}
}
