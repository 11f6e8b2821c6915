package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestABusyDaemonHasMoreThreadsUntilItIsCalm(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(lean))
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	l, bytes := &load{threads: was}, uint64(0)
	second := func(allocated uint64, threads, percent int) {
		t.Helper()
		bytes += allocated
		l.look(bytes)
		got := debug.SetGCPercent(lean)
		debug.SetGCPercent(got)
		if n := runtime.GOMAXPROCS(0); n != threads || got != percent {
			t.Fatalf("%d threads and %d %% of garbage; want %d and %d %%", n, got, threads, percent)
		}
	}
	second(much, was, lean)
	second(much+1, threadsEach*was, pressed)
	for range calm - 1 {
		second(little, threadsEach*was, pressed)
	}
	second(little+1, threadsEach*was, pressed) // not calm yet: it begins anew
	for range calm - 1 {
		second(little, threadsEach*was, pressed)
	}
	second(little, was, lean)

	done := l.read()
	second(10*much, was, whileReading) // is no load
	done()
	second(0, was, lean)
}
