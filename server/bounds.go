package server

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"keylease/internal/identity"
)

const (
	lineTime   = 10 * time.Second // how long a line that has begun may take to come
	lineBuffer = 4 << 10          // bytes; kept for each connection
	maxLong    = 16               // lines of one process at a time that are longer than that
	maxAbsent  = 4096             // sessions put aside that are remembered
)

// bounds is what the connections of the local socket share, so that none of them takes from the others: by the process
// at the other end, which the kernel names, and by caller. A name is not enough, as it costs nothing.
type bounds struct {
	*tempo
	running *gates
	long    *gates
	absent  *absentees

	lineTime, writeTime time.Duration
}

func newBounds(l Limits, now func() time.Time) *bounds {
	return &bounds{tempo: newTempo(l, now), running: newGates(maxInFlight), long: newGates(maxLong), absent: &absentees{},
		lineTime: lineTime, writeTime: writeTime}
}

// process is whose connection it is as long as nothing else is known.
func (p *localPeer) process() string { return fmt.Sprintf("uid:%d pid:%d", p.UID, p.PID) }

func (p *localPeer) user() string { return fmt.Sprintf("uid:%d", p.UID) }

func principalGate(p identity.Principal) string {
	return fmt.Sprintf("caller %s %s %s %s", p.Type, p.Name, p.Proof, p.By)
}

// absentees are sessions that were put aside, and whose they are: their relays come back to them. Where there are too
// many, who has the most of them (as rates count) has its oldest forgotten. That costs its relay no lease; only that
// these leases then end with their time instead of with the client.
type absentees struct {
	mu    sync.Mutex // guards what follows
	all   []absentee // oldest first
	count map[string]int
}

type absentee struct {
	session string
	of      identity.Principal
}

func (a *absentees) note(session string, p identity.Principal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count == nil {
		a.count = map[string]int{}
	}
	a.count[p.RateKey()]++
	a.all = append(a.all, absentee{session, p})
	if len(a.all) > maxAbsent {
		most := 0
		for _, n := range a.count {
			most = max(most, n)
		}
		a.forget(slices.IndexFunc(a.all, func(one absentee) bool { return a.count[one.of.RateKey()] == most }))
	}
}

// forget wants mu held.
func (a *absentees) forget(i int) {
	key := a.all[i].of.RateKey()
	if a.count[key]--; a.count[key] == 0 {
		delete(a.count, key)
	}
	a.all = slices.Delete(a.all, i, i+1)
}

// back reports whether session was put aside and is p's, once.
func (a *absentees) back(session string, p identity.Principal) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.Index(a.all, absentee{session, p})
	if i < 0 {
		return false
	}
	a.forget(i)
	return true
}

// nextLine waits for the next line for as long as it takes to begin, and no longer than lineTime for the rest of it.
func (c *mcpConn) nextLine() ([]byte, error) {
	if _, err := c.r.Peek(1); err != nil {
		return nil, err
	}
	if c.lineBuffered() {
		return readLine(c.r, maxLine)
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(c.lineTime))
	if c.stopWhy.Load() != nil { // stop's own deadline may have been before ours
		return nil, os.ErrDeadlineExceeded
	}
	line, err := c.longLine()
	if c.stopWhy.Load() == nil {
		_ = c.conn.SetReadDeadline(time.Time{})
	}
	return line, err
}

func (c *mcpConn) lineBuffered() bool {
	have, _ := c.r.Peek(c.r.Buffered())
	return bytes.IndexByte(have, '\n') >= 0
}

// longLine reads a line that may not fit into the buffer. Only so many of those come in at a time: else a process with
// many connections could have us keep the longest line for each.
func (c *mcpConn) longLine() ([]byte, error) {
	for have := c.r.Buffered(); have < c.r.Size(); have = c.r.Buffered() {
		_, err := c.r.Peek(have + 1)
		if err != nil || c.lineBuffered() {
			return readLine(c.r, maxLine)
		}
	}
	slots, done := c.long.of(c.peer.process())
	defer done()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-c.stopped:
		return nil, os.ErrDeadlineExceeded
	}
	return readLine(c.r, maxLine)
}

// enter waits until one more call may run for the process and for the caller. A connection that waits here may be asked
// to make room: only what runs is spared, and that is bounded.
func (c *mcpConn) enter() (leave func(), ok bool) {
	taken := make([]chan struct{}, 0, 2)
	giveBack := func() {
		for _, slots := range taken {
			<-slots
		}
	}
	for _, slots := range []chan struct{}{c.process, c.slots} {
		if slots == nil {
			continue
		}
		select {
		case slots <- struct{}{}:
			taken = append(taken, slots)
		case <-c.stopped:
			giveBack()
			return nil, false
		}
	}
	c.guest.begin()
	return func() { giveBack(); c.guest.end() }, true
}
