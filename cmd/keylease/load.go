package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// lean is how much of what is alive may lie around as garbage, in percent. Badger's buffers are 20 MB that are alive
	// and mostly never touched; Go's default of 100 would allow as much garbage again, which is touched. It costs a busy
	// daemon a tenth of its computing.
	lean = 50

	// whileReading is the same while the store is opened: what is read in stays, and to find it alive again and again took
	// a quarter of a start with a million leases.
	whileReading = 400

	// memoryLimit is where the collector begins to work hard: what Badger needs for a moment, over and over, is taken
	// from what it had before. What is held comes on top: a limit near what is alive has the collector work all the
	// time (a start with a million leases took 9 s). A lease is 0.8 KB with all that points to it, a credential 1.4 KB, and
	// while a snapshot is made they are there twice.
	memoryLimit = 256 << 20
	memoryEach  = 4 << 10

	// threadsEach is how many threads compute at a time for each core of a busy daemon. With one, as Go has it, whoever
	// waits gets a turn after 10 ms, and Badger's merging computes for 200 ms. The kernel takes turns faster: 64 callers over
	// the socket get 15 % more done, and their p99.9 went from 40 to 17 ms. One caller alone waits 3 to 10 % longer with it.
	threadsEach = 2

	// Bytes allocated in a second; a lease or a release over the socket takes 13 KB. One caller without a pause takes 24 MB
	// over the socket, 64 take 250.
	little  = 4 << 20
	much    = 32 << 20
	several = 64 << 20 // callers at once
	// calm is after how many seconds of little what was garbage goes back to the system: not before Badger has let go of
	// the buffers that it builds tables with, of which it keeps up to eight and drops one every two seconds.
	calm = 20
)

// load keeps what lies around small, and gives back what a busy time or a start left behind once it is over. While a
// daemon is busy more threads compute.
type load struct {
	mu    sync.Mutex
	last  uint64 // bytes allocated by then
	busy  bool
	owes  bool // what a busy time or the reading of the store left
	quiet int  // seconds, while it owes

	size    func() int // how many leases and credentials are held; nil: not known yet
	reading bool       // the store: leave it alone
	limit   int64
	cores   int // 0: how many threads compute is somebody else's to say
}

// tend does so until over is called.
func (l *load) tend() (over func()) {
	if n := runtime.GOMAXPROCS(0); n == runtime.NumCPU() && os.Getenv("GOMAXPROCS") == "" { // no quota of a container either
		l.cores = n
	}
	debug.SetGCPercent(lean)
	ctx, cancel := context.WithCancel(context.Background())
	var tending sync.WaitGroup
	tending.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.look(allocated())
			}
		}
	})
	return func() {
		cancel()
		tending.Wait()
		l.pace(false)
	}
}

// read leaves it alone until done is called: it is for opening the store.
func (l *load) read() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = true
	debug.SetGCPercent(whileReading)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reading = false
		l.limitIt()
		l.owes, l.quiet = true, 0
		debug.SetGCPercent(lean)
	}
}

// of says whose size counts.
func (l *load) of(size func() int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = size
}

func (l *load) limitIt() {
	if l.size == nil {
		return
	}
	limit := memoryLimit + memoryEach*int64(l.size())
	if l.limit != limit {
		l.limit = limit
		debug.SetMemoryLimit(limit)
	}
}

// look is told how many bytes were ever allocated, once a second.
func (l *load) look(now uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	each := now - l.last
	l.last = now
	if l.reading {
		return
	}
	l.limitIt()
	switch {
	case each > much:
		l.owes, l.quiet = true, 0
		l.pace(l.busy || each > several)
	case !l.owes:
	case each > little:
		l.quiet = 0
	default:
		if l.quiet++; l.quiet == calm {
			l.owes, l.quiet = false, 0
			l.pace(false)
			debug.FreeOSMemory()
		}
	}
}

// pace gives the daemon the threads of a busy one, or those that Go gives to any.
func (l *load) pace(busy bool) {
	if l.cores == 0 || busy == l.busy {
		return
	}
	if l.busy = busy; busy {
		runtime.GOMAXPROCS(threadsEach * l.cores)
	} else {
		runtime.SetDefaultGOMAXPROCS()
	}
}

func allocated() uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	return sample[0].Value.Uint64()
}
