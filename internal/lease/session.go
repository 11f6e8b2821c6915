package lease

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// manyLeft is from how many leases on the next session of their holder adopts them in one Entry. Up to it each has one,
// which tells whoever looks for that lease; a hundred thousand would hold up everyone else for seconds.
const manyLeft = 64

// Attach says that a session of caller is alive. The first time, it adopts the leases that the same principal's
// ended sessions left behind. Cheap and idempotent; callers without a session are nobody to attach.
func (b *Broker) Attach(_ context.Context, caller identity.Caller) {
	if caller.Session == "" || caller.Principal == (identity.Principal{}) {
		return
	}
	b.mu.Lock()
	w := b.attach(caller)
	b.mu.Unlock()
	b.settleAll(w)
}

func (b *Broker) attach(caller identity.Caller) (all []written) {
	if b.sessions[caller.Session] == caller.Principal {
		return nil
	}
	b.sessions[caller.Session] = caller.Principal
	delete(b.lapsed, caller.Session)
	if b.ready() != nil {
		return nil // meetSessions adopts once it can be recorded
	}
	return b.adopt(caller)
}

func (b *Broker) adopt(caller identity.Caller) (all []written) {
	if b.proven(caller.Principal) != nil {
		return nil // what it was lent under another configuration ends with the grace
	}
	now := b.now()
	if b.overBudget(caller.RateKey(), now) {
		return nil // coming and going would be recorded each time: its leases end with the grace
	}
	left := slices.DeleteFunc(slices.Clone(b.ix.held(caller.Holder())), func(l *lease) bool { return !l.adoptable(caller.Principal, now) })
	if len(left) > manyLeft {
		e := entry(store.EventLeasesAdopted, caller)
		e.Time, e.Details = now, store.DetailsOf("leases", strconv.Itoa(len(left)), "session", caller.Session)
		if w, err := b.submit(store.Change{Entry: e}, nil); err == nil {
			all = append(all, w)
		}
		return all
	}
	slices.SortFunc(left, sooner)
	for _, l := range left {
		if w, err := b.adoptInto(l, caller.Session, now); err == nil {
			all = append(all, w)
		}
	}
	return all
}

// adoptable reports whether l was left behind by a session of p.
func (l *lease) adoptable(p identity.Principal, now time.Time) bool {
	return l.owner == p && !l.orphanEnd.IsZero() && l.live(now)
}

// Detach says that a session is gone. Its leases are orphaned: they end after the grace unless the next session of
// the same principal adopts them.
func (b *Broker) Detach(_ context.Context, session string) {
	if session == "" {
		return
	}
	b.mu.Lock()
	w := b.detach(session)
	b.mu.Unlock()
	b.settleAll(w)
	b.poke()
}

// Lapse forgets a session that was quiet for long. That is not a disconnect: its leases go on, whichever session of
// the same principal renews them, until they end or this one comes back and leaves.
func (b *Broker) Lapse(session string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.sessions[session]
	delete(b.sessions, session)
	if !ok {
		return
	}
	if len(b.lapsed) > 2*len(b.ix.leases) {
		b.forgetLapsed()
	}
	for _, l := range b.ix.held(p.Holder()) {
		if l.owner == p && l.session == session {
			b.lapsed[session] = true
			return
		}
	}
}

// forgetLapsed forgets the sessions whose leases have all ended. Caller holds mu.
func (b *Broker) forgetLapsed() {
	bound := map[string]bool{}
	for _, l := range b.ix.leases {
		bound[l.session] = true
	}
	maps.DeleteFunc(b.lapsed, func(session string, _ bool) bool { return !bound[session] })
}

// attached reports whether l has nobody to wait for: it is bound to no session, to one that lives, or to one that was
// forgotten for being quiet. Caller holds mu.
func (b *Broker) attached(l *lease) bool {
	return l.session == "" || b.lapsed[l.session] || b.sessions[l.session] == l.owner
}

func (b *Broker) detach(session string) (all []written) {
	p, ok := b.sessions[session]
	delete(b.sessions, session)
	if !ok || b.ready() != nil {
		return nil
	}
	now := b.now()
	for _, l := range byExpiry(b.ix.held(p.Holder()), now) {
		if l.owner != p || l.session != session {
			continue
		}
		leave := func() (written, error) { return b.orphan(l, now, "session ended") }
		if runs := b.uses.holder(l.id); runs != "" && runs != session { // a command holds it now
			leave = func() (written, error) { return b.adoptInto(l, runs, now) }
		}
		if w, err := leave(); err == nil {
			all = append(all, w)
		}
	}
	return all
}

func (b *Broker) orphan(l *lease, now time.Time, reason string) (written, error) {
	e := l.entry(store.EventLeaseOrphaned, identity.Caller{Principal: l.owner, Session: l.session}, now)
	e.Details = store.DetailsOf("ends_at", stamp(now.Add(b.cfg.Grace)), "reason", reason)
	return b.submit(store.Change{Entry: e}, nil)
}

// orphanAll is for a start: no session of the previous run is alive. That is one Entry, however many leases they left:
// one for each would be a hundred thousand before the first caller is answered. Caller holds mu.
func (b *Broker) orphanAll() error {
	now, bound := b.now(), 0
	for _, l := range b.ix.leases {
		if l.session != "" && l.live(now) {
			bound++
		}
	}
	if bound == 0 {
		return nil
	}
	_, err := b.change(store.Change{Entry: store.Entry{Event: store.EventLeasesOrphaned, Time: now, Details: store.DetailsOf(
		"leases", strconv.Itoa(bound), "ends_at", stamp(now.Add(b.cfg.Grace)), "reason", "daemon restarted")}}, nil)
	return err
}

// meetSessions is for after a rebuild: sessions that came or ended while nothing could be recorded are met with what
// the trail knows. Caller holds mu.
func (b *Broker) meetSessions() error {
	for session, p := range b.sessions {
		b.adopt(identity.Caller{Principal: p, Session: session})
	}
	now := b.now()
	for _, l := range b.ix.leases {
		if !l.live(now) || b.attached(l) {
			continue
		}
		if _, err := b.orphan(l, now, "session ended"); err != nil {
			return err
		}
	}
	return nil
}

// settleAll waits for changes that nobody else waits for. A failure was logged and undone by settle.
func (b *Broker) settleAll(all []written) {
	for _, w := range all {
		_, _ = b.settle(w)
	}
}
