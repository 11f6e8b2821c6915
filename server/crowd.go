package server

import (
	"container/list"
	"sync"
)

// crowd is who is connected by one door, and how much room it has. When it is full, a newcomer gets the place of a party
// that has as many connections as his or more: of those with a quiet one, the party with the most gives up the one that
// it has not used for longest. One that is at work goes only where nothing is quiet, or where a party has all of more
// than twice as many at work, and would still have as many as the newcomer's. So whoever opens thousands makes room with
// their own, and nobody with few is put out or turned away for them. Turned away is only who would take from parties
// that have no more than his own, and use all of it.
type crowd struct {
	room  int  // connections; 0: no limit
	never bool // turns anybody away: where nothing else is left, what has been at work for longest makes room

	mu      sync.Mutex // guards all below, and every guest of it
	here    int
	parties map[string]*company
	clock   uint64 // counts the times that somebody fell quiet or began to work
}

// company is the connections of one party.
type company struct {
	here        int
	quiet, busy list.List // of *guest, longest so first
}

// of is those of it that are quiet, or those that are not.
func (p *company) of(busy bool) *list.List {
	if busy {
		return &p.busy
	}
	return &p.quiet
}

// guest is one connection. It is quiet while nothing runs for it. What only waits, be it for its rate or for a call to
// end, is quiet: else it would cost nothing to hold a place for good.
type guest struct {
	crowd *crowd
	party string
	runs  int           // how much runs for it
	at    *list.Element // in its company's quiet or busy
	since uint64        // when it came to be there, by the crowd's clock
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
		if out = c.makesRoom(party); out == nil {
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

// makesRoom says whose place a newcomer of party gets; nil: nobody's.
func (c *crowd) makesRoom(party string) *guest {
	his := 0
	if p := c.parties[party]; p != nil {
		his = p.here
	}
	out, atWork := c.longest(false, his), c.longest(true, his+2)
	if out == nil && atWork == nil && c.never {
		return c.longest(true, 0)
	}
	if out == nil || atWork != nil && c.parties[atWork.party].here > 2*c.parties[out.party].here {
		return atWork
	}
	return out
}

// longest is the guest that is busy, or quiet, for longest of the party that has the most and at least so many.
func (c *crowd) longest(busy bool, least int) (out *guest) {
	most := least
	for _, p := range c.parties {
		if p.of(busy).Len() == 0 || p.here < most {
			continue
		}
		if g := p.of(busy).Front().Value.(*guest); out == nil || p.here > most || g.since < out.since {
			out, most = g, p.here
		}
	}
	return out
}

// place puts g at the end of its party's quiet or busy ones. It wants mu held.
func (g *guest) place() {
	g.crowd.clock++
	g.since = g.crowd.clock
	g.at = g.crowd.parties[g.party].of(g.runs > 0).PushBack(g)
}

// sit counts g among its party, and rise takes it out. Both want mu held.
func (g *guest) sit() {
	p := g.crowd.parties[g.party]
	if p == nil {
		p = &company{}
		g.crowd.parties[g.party] = p
	}
	p.here++
	g.place()
}

func (g *guest) rise() {
	p := g.crowd.parties[g.party]
	p.of(g.runs > 0).Remove(g.at)
	if p.here--; p.here == 0 {
		delete(g.crowd.parties, g.party)
	}
}

// begin says that something runs for g; end, which must follow, that it no longer does.
func (g *guest) begin() { g.work(1) }

func (g *guest) end() { g.work(-1) }

func (g *guest) work(more int) {
	g.change(func() {
		was := g.runs > 0
		g.runs += more
		if is := g.runs > 0; is != was {
			g.crowd.parties[g.party].of(was).Remove(g.at)
			g.place()
		}
	})
}

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
