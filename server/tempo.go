package server

import (
	"context"
	"sync"
	"time"

	"keylease/internal/pace"
)

// Limits is how much callers may ask of the daemon. A zero rate or number of connections is no limit.
type Limits struct {
	// CallRate is how many messages per second one identity may send: all declared names of one uid together, over all
	// connections and sessions. One local process or HTTP connection has half of it. CallBurst is how many may come at
	// once. Local callers over it are read later, HTTP ones wait and are then refused (429).
	CallRate  float64
	CallBurst int
	// FailureRate is how many requests per second without a valid token one address may send before it is made to wait.
	FailureRate  float64
	FailureBurst int
	// LocalConnections and HTTPConnections are how many may be open. Beyond it whoever has the most loses one, an idle one
	// where there is any. Local ones are counted once they said hello; before, and for admin commands, there is other room.
	LocalConnections, HTTPConnections int
}

// DefaultLimits are far above what agents that are run by models ask for. With all connections in use and idle, the
// daemon is about 20 MB larger than without.
func DefaultLimits() Limits {
	return Limits{CallRate: 200, CallBurst: 200, FailureRate: 20, FailureBurst: 200, LocalConnections: 512, HTTPConnections: 768}
}

// tempo says when a message may be looked at: before any of it is parsed.
type tempo struct {
	each *pace.Paces // by local process or HTTP connection: half of all
	all  *pace.Paces // by identity.RateKey
	now  func() time.Time
}

func newTempo(l Limits, now func() time.Time) *tempo {
	return &tempo{each: pace.New(l.CallRate/2, l.CallBurst/2), all: pace.New(l.CallRate, l.CallBurst), now: now}
}

const (
	// reserved is the part of an identity's bucket that is left to those of its connections that send little: one agent
	// of many under one uid that sends without end slows itself and not the others.
	reserved = 0.25
	longWait = time.Second
)

// turn takes one message of connection one, which belongs to identity all, from both rates; or takes nothing and says
// after how long to ask again.
func (t *tempo) turn(one, all string) (wait time.Duration) { return t.turnAfter(0, one, all) }

// turnAfter is turn for a message that has waited already. After longWait it may have of what is left to others too:
// a connection that sends much comes late, and not never.
func (t *tempo) turnAfter(waited time.Duration, one, all string) (wait time.Duration) {
	if t == nil || t.all.Unlimited() {
		return 0
	}
	now, spare := t.now(), 0
	if t.each.Left(one, now) < 0.5 && waited < longWait {
		spare = t.all.Part(reserved)
	}
	if wait = t.each.Wait(one, now); wait == 0 {
		wait = t.all.Take(all, now, spare)
	}
	if wait == 0 {
		t.each.Take(one, now, 0)
	}
	return wait
}

// await waits for a turn until done is closed or longest has passed; 0 is for ever. It reports whether it came.
func (t *tempo) await(done <-chan struct{}, longest time.Duration, one, all string) bool {
	wait := t.turn(one, all)
	if wait == 0 {
		return true
	}
	begin := time.Now()
	var over <-chan time.Time
	if longest > 0 {
		end := time.NewTimer(longest)
		defer end.Stop()
		over = end.C
	}
	next := time.NewTimer(0)
	defer next.Stop()
	// Many may wait for what is enough for one: who has waited longer asks more often, so that all get their turn.
	for pause := 60 * time.Millisecond; wait > 0; wait = t.turnAfter(time.Since(begin), one, all) {
		next.Reset(pause)
		pause = max(pause/2, 20*time.Millisecond)
		select {
		case <-next.C:
		case <-over:
			return false
		case <-done:
			return false
		}
	}
	return true
}

// gates bound how many calls of one party run at a time, over all its connections.
type gates struct {
	width int

	mu sync.Mutex // guards what follows
	by map[string]*turnstile
}

type turnstile struct {
	slots chan struct{}
	users int // connections that hold on to it
}

func newGates(width int) *gates { return &gates{width: width, by: map[string]*turnstile{}} }

// of returns the party's gate; done must be called when it is no longer needed.
func (g *gates) of(party string) (slots chan struct{}, done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.by[party]
	if one == nil {
		one = &turnstile{slots: make(chan struct{}, g.width)}
		g.by[party] = one
	}
	one.users++
	return one.slots, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(g.by, party)
		}
	}
}

// sleep waits for d, or less where ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
