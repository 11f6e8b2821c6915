package main

import (
	"runtime"
	"testing"
)

func TestABusyDaemonHasMoreThreadsUntilItIsCalm(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	cores := runtime.NumCPU()
	l, bytes := &load{cores: cores}, uint64(0)
	second := func(allocated uint64, busy, owes bool) {
		t.Helper()
		bytes += allocated
		l.look(bytes)
		threads := cores
		if busy {
			threads *= threadsEach
		}
		if n := runtime.GOMAXPROCS(0); n != threads && (busy || n != was) || l.owes != owes {
			t.Fatalf("%d threads of %d cores, busy %t; owes %t", n, cores, busy, l.owes)
		}
	}
	second(much, false, false)
	second(several, false, true)
	second(several+1, true, true)
	second(several, true, true)
	for range calm - 1 {
		second(little, true, true)
	}
	second(little+1, true, true) // not calm yet: it begins anew
	for range calm - 1 {
		second(little, true, true)
	}
	second(little, false, false)

	done := l.read()
	second(10*much, false, false) // is no load
	done()
	for range calm - 1 {
		second(0, false, true)
	}
	second(0, false, false)
}
