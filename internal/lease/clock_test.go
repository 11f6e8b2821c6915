package lease

import (
	"testing"
	"time"
)

func TestTheClockNeverGoesBackAndNeverStandsStill(t *testing.T) {
	start := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	wall := start
	c := newClock(func() time.Time { return wall }, start.Add(10*time.Second))
	if got := c.now(); !got.Equal(start.Add(10 * time.Second)) {
		t.Errorf("behind the newest entry: %v", got)
	}
	wall = wall.Add(5 * time.Second)
	if got := c.now(); !got.Equal(start.Add(15 * time.Second)) {
		t.Errorf("stands still: %v", got)
	}
	wall = wall.Add(-time.Hour)
	before := c.now()
	wall = wall.Add(30 * time.Second)
	if got := c.now(); got.Sub(before) != 30*time.Second {
		t.Errorf("set back by an hour, it counts %v for 30s", got.Sub(before))
	}
}
