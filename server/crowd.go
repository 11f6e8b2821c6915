package server

import (
	"container/list"
	"sync"
)

// crowd is who is connected to one listener, and how much room it has. When it is full, the party with the most
// connections gives up the one that it has not used for longest: whoever opens thousands makes room with their own,
// and nobody else is locked out or put out for them. Only where nothing is quiet is the newcomer turned away.
type crowd struct {
	room int // connections; 0: no limit

	mu      sync.Mutex // guards all below, and every guest of it
	here    int
	parties map[string]*company
	clock   uint64 // counts the times that somebody fell quiet
}

// company is the connections of one party.
type company struct {
	here  int
	quiet list.List // of *guest: those that may be asked to go, longest quiet first
}

// guest is one connection. It is quiet while nothing runs for it that somebody has proved to be entitled to.
type guest struct {
	crowd *crowd
	party string
	busy  int
	quiet *list.Element // nil: busy, or gone
	since uint64        // when it fell quiet, by the crowd's clock
	gone  bool
	leave func() // asks the connection to go; does not block
}

func newCrowd(room int) *crowd { return &crowd{room: room, parties: map[string]*company{}} }

// enter lets a connection of party in, or returns nil where there is no room for it. leave is called at most once, and
// may be called before enter returns to another.
func (c *crowd) enter(party string, leave func()) *guest {
	c.mu.Lock()
	var out *guest
	if c.room > 0 && c.here >= c.room {
		if out = c.longestQuiet(); out == nil {
			c.mu.Unlock()
			return nil
		}
		out.exitLocked()
	}
	g := &guest{crowd: c, party: party, leave: leave}
	c.here++
	g.sit()
	c.mu.Unlock()
	if out != nil {
		out.leave()
	}
	return g
}

func (c *crowd) longestQuiet() *guest {
	var out *guest
	most := 0
	for _, p := range c.parties {
		if p.quiet.Len() == 0 || p.here < most {
			continue
		}
		if g := p.quiet.Front().Value.(*guest); p.here > most || g.since < out.since {
			out, most = g, p.here
		}
	}
	return out
}

// hush puts g at the end of its party's quiet ones. It wants mu held.
func (g *guest) hush() {
	g.crowd.clock++
	g.since = g.crowd.clock
	g.quiet = g.crowd.parties[g.party].quiet.PushBack(g)
}

// sit counts g among its party, and rise takes it out. Both want mu held.
func (g *guest) sit() {
	p := g.crowd.parties[g.party]
	if p == nil {
		p = &company{}
		g.crowd.parties[g.party] = p
	}
	p.here++
	if g.busy == 0 {
		g.hush()
	}
}

func (g *guest) rise() {
	p := g.crowd.parties[g.party]
	if g.quiet != nil {
		p.quiet.Remove(g.quiet)
		g.quiet = nil
	}
	if p.here--; p.here == 0 {
		delete(g.crowd.parties, g.party)
	}
}

// begin says that something runs for g; end, which must follow, that it no longer does.
func (g *guest) begin() { g.change(func() { g.busy++ }) }

func (g *guest) end() { g.change(func() { g.busy-- }) }

// belong says whose connection it turned out to be.
func (g *guest) belong(party string) {
	g.change(func() {
		if g.party != party {
			g.rise()
			g.party = party
			g.sit()
		}
	})
}

// asked replaces how g is asked to leave.
func (g *guest) asked(leave func()) { g.change(func() { g.leave = leave }) }

func (g *guest) change(do func()) {
	if g == nil { // a connection that nobody counts: a test's
		return
	}
	g.crowd.mu.Lock()
	defer g.crowd.mu.Unlock()
	if g.gone {
		return
	}
	do()
	p := g.crowd.parties[g.party]
	switch {
	case g.busy > 0 && g.quiet != nil:
		p.quiet.Remove(g.quiet)
		g.quiet = nil
	case g.busy == 0 && g.quiet == nil:
		g.hush()
	}
}

// exit says that the connection is closed. It may be called again.
func (g *guest) exit() {
	if g == nil {
		return
	}
	g.crowd.mu.Lock()
	defer g.crowd.mu.Unlock()
	g.exitLocked()
}

func (g *guest) exitLocked() {
	if !g.gone {
		g.gone = true
		g.rise()
		g.crowd.here--
	}
}
