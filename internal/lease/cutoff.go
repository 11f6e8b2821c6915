package lease

import (
	"context"
	"slices"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// holding is what one identity holds between two cutoffs. To end all of it the holding is marked and set aside, which
// takes the same time for one lease as for a hundred thousand; the next lease of that identity opens another holding.
// So it is the order of the trail that tells what was held before and after, never the clock.
type holding struct {
	of     identity.Holder
	leases leaseSet
	counts map[string]*ruleCount // by the rule's name; of those that were asked for
	cut    *cutoff               // nil: it goes on
}

// cutoff ended a holding. Each of its leases gives nothing from there on; the sweeper writes its terminal Entry later.
type cutoff struct {
	At     time.Time          `json:"at"`
	By     identity.Principal `json:"by"` // the admin
	Reason string             `json:"reason"`
}

// held returns the leases of an identity since its last cutoff.
func (ix *index) held(of identity.Holder) leaseSet {
	if h := ix.holders[of]; h != nil {
		return h.leases
	}
	return nil
}

// ownedBy returns those of p's identity that p itself opened.
func (ix *index) ownedBy(p identity.Principal) (set leaseSet) {
	for _, l := range ix.held(p.Holder()) {
		if l.owner == p {
			set = append(set, l)
		}
	}
	return set
}

// holdingOf returns what of holds, to add to.
func (ix *index) holdingOf(of identity.Holder) *holding {
	h := ix.holders[of]
	if h == nil {
		h = &holding{of: of}
		ix.holders[of] = h
	}
	return h
}

// letGo takes an ended lease out of its holding.
func (ix *index) letGo(l *lease) {
	h := l.held
	if h.drop(l); len(h.leases) > 0 {
		return
	}
	if h.cut != nil {
		ix.cut = slices.DeleteFunc(ix.cut, func(c *holding) bool { return c == h })
	} else {
		delete(ix.holders, h.of)
	}
}

// applyLeasesEnded sets aside what the Entry's identity holds.
func (ix *index) applyLeasesEnded(e *store.Entry) {
	of := identity.Holder{Type: identity.Type(e.Details.Get("identity_type")), Name: e.Details.Get("identity")}
	h := ix.holders[of]
	if h == nil {
		return
	}
	if id := e.Details.Get("token_id"); id != "" {
		if h = ix.takenWith(h, identity.Principal{Type: of.Type, Name: of.Name, Proof: identity.Token, By: "token:" + id}); len(h.leases) == 0 {
			return
		}
	}
	by := identity.Principal{Type: identity.Type(e.Identity.Type), Name: e.Identity.Name, By: e.Identity.By}
	h.cut = &cutoff{At: e.Time, By: by, Reason: e.Details.Get("reason")}
	if ix.holders[of] == h {
		delete(ix.holders, of)
	}
	ix.cut = append(ix.cut, h)
}

// takenWith takes out of h what p holds, as a holding of its own: others may have leases under the same name.
func (ix *index) takenWith(h *holding, p identity.Principal) *holding {
	out := &holding{of: h.of}
	for _, l := range ix.ownedBy(p) {
		h.drop(l)
		l.held = out
		out.add(l)
	}
	if len(h.leases) == 0 {
		delete(ix.holders, h.of)
	}
	return out
}

// cutOffToken ends all that was taken with a token, by one Entry. Caller holds mu, and waits for the disk.
func (b *Broker) cutOffToken(admin identity.Caller, t *token, reason string) error {
	now := b.now()
	if b.broken == nil {
		if err := b.expireDue(now); err != nil {
			return err
		}
	}
	n := len(b.ix.ownedBy(t.principal()))
	if n == 0 {
		return nil
	}
	e := entry(store.EventLeasesEnded, admin)
	e.Time = now
	e.Details = store.DetailsOf("identity", t.rec.Identity, "identity_type", string(t.rec.Type), "token_id", t.rec.ID,
		"leases", strconv.Itoa(n), "reason", reason)
	_, err := b.submit(store.Change{Entry: e, Owed: true}, nil)
	if err != nil && b.broken == nil {
		return err
	}
	b.uses.endWhere(func(id string) bool { l := b.ix.leases[id]; return l == nil || l.held.cut != nil }, reason)
	b.poke()
	return err
}

// cutOff ends all that the identities of f hold, by one Entry each, and returns how many leases that were.
// Caller holds mu.
func (b *Broker) cutOff(admin identity.Caller, f Filter, reason string) (int, error) {
	now := b.now()
	if b.broken == nil {
		if err := b.expireDue(now); err != nil { // so that what is held now is live
			return 0, err
		}
	}
	ended := 0
	for _, typ := range []identity.Type{identity.Agent, identity.Human} {
		n := len(b.ix.held(identity.Holder{Type: typ, Name: f.Identity}))
		if n == 0 || f.Type != "" && f.Type != typ {
			continue
		}
		e := entry(store.EventLeasesEnded, admin)
		e.Time = now
		e.Details = store.DetailsOf("identity", f.Identity, "identity_type", string(typ), "leases", strconv.Itoa(n), "reason", reason)
		if _, err := b.submit(store.Change{Entry: e, Owed: true}, nil); err != nil && b.broken == nil {
			return 0, err
		}
		ended += n
	}
	b.uses.endWhere(func(id string) bool { l := b.ix.leases[id]; return l == nil || l.held.cut != nil }, reason)
	b.poke()
	return ended, b.barrier()
}

// writeCut writes the terminal Entries of at most max leases that a cutoff ended. Caller holds mu.
func (b *Broker) writeCut(now time.Time, max int) (all []written, err error) {
	for len(b.ix.cut) > 0 {
		if len(all) >= max {
			return all, nil
		}
		held := b.ix.cut[0].leases
		_, w, err := b.end(held[len(held)-1], store.EventLeaseRevoked, identity.Caller{}, now, "")
		if err != nil {
			return all, err
		}
		all = append(all, w)
	}
	return all, nil
}

// RevokeLeases ends every lease that f picks and returns how many those were. All that one identity holds ends by one
// Entry, however much it is: each lease gives nothing from then on, and its lease.revoked follows when the sweeper
// comes to it.
func (b *Broker) RevokeLeases(_ context.Context, admin identity.Caller, f Filter) (int, error) {
	const reason = "revoked by an admin"
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	const what = "these leases have ended and give nothing more"
	if err := b.ends(); err != nil {
		return 0, err
	}
	if f.Identity != "" && f.Credential == "" && f.LeaseID == "" {
		n, err := b.cutOff(admin, f, reason)
		return n, b.unrecorded(err, what)
	}
	var set leaseSet
	for _, l := range b.ix.leases {
		if f.picks(l) {
			set = append(set, l)
		}
	}
	n, err := b.revokeAll(admin, set, reason)
	return n, b.unrecorded(err, what)
}
