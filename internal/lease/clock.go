package lease

import (
	"sync"
	"time"
)

// clock never goes back and never stands still: a lease lasts no longer than was granted, whatever is done to the
// wall clock. It follows the wall clock forward, and where that is set back, or stood behind the newest Entry at the
// start, it counts on by the monotonic clock.
type clock struct {
	wall func() time.Time

	mu sync.Mutex // guards what follows
	at time.Time  // the wall clock at the last look, with its monotonic reading
	is time.Time  // what that look returned
}

func newClock(wall func() time.Time, floor time.Time) *clock {
	c := &clock{wall: wall, at: wall()}
	c.is = c.at.Round(0)
	if floor.After(c.is) {
		c.is = floor
	}
	return c
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wall()
	c.is = c.is.Add(max(w.Sub(c.at), 0))
	if w.After(c.is) {
		c.is = w.Round(0)
	}
	c.at = w
	return c.is.UTC()
}
