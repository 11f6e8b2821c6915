package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// lean is how much of what is alive may lie around as garbage, in percent. Badger's buffers are 20 MB that are alive
	// and mostly never touched; Go's default of 100 would allow as much garbage again, which is touched.
	lean = 50

	// pressed is the same for a busy daemon, of which lean took a tenth of the computing.
	pressed = 100

	// whileReading is the same while the store is opened: what is read in stays, and to find it alive again and again took
	// a quarter of a start with a million leases.
	whileReading = 400

	// memoryLimit is where the collector begins to work hard: what Badger needs for a moment, over and over, is taken
	// from what it had before. What is held comes on top: a limit near what is alive has the collector work all the
	// time (a start with a million leases took 9 s). A lease is 0.8 KB with all that points to it, a credential 1.4 KB, and
	// while a snapshot is made they are there twice.
	memoryLimit = 256 << 20
	memoryEach  = 4 << 10

	much   = 32 << 20 // bytes allocated in a second: some 500 leases
	little = 4 << 20
	// calm is after how many seconds of little what was garbage goes back to the system: not before Badger has let go of
	// the buffers that it builds tables with, of which it keeps up to eight and drops one every two seconds.
	calm = 20
)

// garbage keeps what lies around small, and gives back what a busy time left behind once it is over.
type garbage struct {
	mu    sync.Mutex
	last  uint64 // bytes allocated by then
	busy  bool
	quiet int // seconds, while busy

	size    func() int // how many leases and credentials are held; nil: not known yet
	reading bool       // the store: leave it alone
	limit   int64
}

// tend does so until over is called.
func (g *garbage) tend() (over func()) {
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
				g.look(allocated())
			}
		}
	})
	return func() { cancel(); tending.Wait() }
}

// read leaves it alone until done is called: it is for opening the store.
func (g *garbage) read() (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reading = true
	debug.SetGCPercent(whileReading)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.reading, g.busy = false, false
		g.limitIt()
		debug.SetGCPercent(lean)
	}
}

// of says whose size counts.
func (g *garbage) of(size func() int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.size = size
}

func (g *garbage) limitIt() {
	if g.size == nil {
		return
	}
	limit := memoryLimit + memoryEach*int64(g.size())
	if g.limit != limit {
		g.limit = limit
		debug.SetMemoryLimit(limit)
	}
}

// look is told how many bytes were ever allocated, once a second.
func (g *garbage) look(now uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reading {
		return
	}
	g.limitIt()
	each := now - g.last
	g.last = now
	switch {
	case each > much:
		if g.quiet = 0; !g.busy {
			g.busy = true
			debug.SetGCPercent(pressed)
		}
	case !g.busy:
	case each > little:
		g.quiet = 0
	default:
		if g.quiet++; g.quiet == calm {
			g.busy, g.quiet = false, 0
			debug.SetGCPercent(lean)
			debug.FreeOSMemory()
		}
	}
}

func allocated() uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	return sample[0].Value.Uint64()
}
