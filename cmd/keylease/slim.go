package main

import (
	"runtime/debug"
	"time"
)

// slimAfter is when a relay has started: by then it has passed on its client's first words.
const slimAfter = time.Second

// slim has a relay that has started hold no more than it needs to wait: there is one for each client, for as long as that
// runs. stop is for one that has ended before.
func slim() (stop func() bool) {
	debug.SetGCPercent(lean)
	return time.AfterFunc(slimAfter, func() {
		debug.FreeOSMemory()
		forgetCode()
	}).Stop
}
