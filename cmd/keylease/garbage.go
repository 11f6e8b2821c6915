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
	// and mostly never touched; Go's default of 100 would allow as much garbage again, which is touched. It costs a busy
	// daemon a tenth of its computing.
	lean = 50

	// whileReading is the same while the store is opened: what is read in stays, and to find it alive again and again took
	// a quarter of a start with a million leases.
	whileReading = 400

	much   = 32 << 20 // bytes allocated in a second: some 500 leases
	little = 4 << 20
	// calm is after how many seconds of little what was garbage goes back to the system: not before Badger has let go of
	// the buffers that it builds tables with, of which it keeps up to eight and drops one every two seconds.
	calm = 20
)

// tendGarbage keeps garbage small, and gives back what a busy time left behind once it is over, until over is called.
// There is no limit to memory: what is alive has to stay, and a limit near it has the collector work all the time (a
// start with a million leases took 9 s instead of 3).
func tendGarbage() (over func()) {
	debug.SetGCPercent(lean)
	ctx, cancel := context.WithCancel(context.Background())
	var tending sync.WaitGroup
	tending.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for g := (garbage{last: allocated()}); ; g.tend(allocated()) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); tending.Wait() }
}

// garbage is what tendGarbage knows from one second to the next.
type garbage struct {
	last  uint64 // bytes allocated by then
	busy  bool
	quiet int // seconds, while busy
}

func (g *garbage) tend(now uint64) {
	each := now - g.last
	g.last = now
	switch {
	case each > much:
		g.quiet = 0
		g.busy = true
	case !g.busy:
	case each > little:
		g.quiet = 0
	default:
		if g.quiet++; g.quiet == calm {
			*g = garbage{last: now}
			debug.FreeOSMemory()
		}
	}
}

func allocated() uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	return sample[0].Value.Uint64()
}
