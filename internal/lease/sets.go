package lease

import (
	"cmp"
	"slices"
	"time"

	"keylease/policy"
)

// leaseSet is a set of leases in no order. Each lease knows its place in it, so that adding and taking out cost the
// same however many there are; a map for each of a hundred thousand small sets would cost more than the leases.
type leaseSet []*lease

// inSet is a kind of set that a lease is in one of.
type inSet int

const (
	ofCredential inSet = iota
	ofHolding
	setKinds
)

func (s *leaseSet) add(l *lease, kind inSet) {
	l.place[kind] = len(*s)
	*s = append(*s, l)
}

func (s *leaseSet) drop(l *lease, kind inSet) {
	all := *s
	last := all[len(all)-1]
	all[l.place[kind]], last.place[kind] = last, l.place[kind]
	all[len(all)-1] = nil
	if all = all[:len(all)-1]; len(all) == 0 && cap(all) > 4 { // after a crowd; few come again
		all = nil
	}
	*s = all
}

// live counts those that are live at now.
func (s leaseSet) live(now time.Time) (n int) {
	for _, l := range s {
		if l.live(now) {
			n++
		}
	}
	return n
}

func sooner(a, b *lease) int {
	return cmp.Or(a.deadline().Compare(b.deadline()), cmp.Compare(a.id, b.id))
}

// byExpiry returns the leases in set that are live at now, the one that ends first at the front.
func byExpiry(set leaseSet, now time.Time) []*lease {
	live := make([]*lease, 0, len(set))
	for _, l := range set {
		if l.live(now) {
			live = append(live, l)
		}
	}
	slices.SortFunc(live, sooner)
	return live
}

// soonest returns the n leases in set that end first, of those that are live at now and that pick picks. It keeps no
// more than those in order; where they are many, it orders all at once.
func soonest(set leaseSet, n int, now time.Time, pick func(*lease) bool) []*lease {
	if n > 10*ownShown {
		all := slices.DeleteFunc(byExpiry(set, now), func(l *lease) bool { return !pick(l) })
		return all[:min(n, len(all))]
	}
	var first []*lease
	for _, l := range set {
		if !l.live(now) || len(first) == n && sooner(l, first[n-1]) > 0 || !pick(l) {
			continue
		}
		at, _ := slices.BinarySearchFunc(first, l, sooner)
		if first = slices.Insert(first, at, l); len(first) > n {
			first = first[:n]
		}
	}
	return first
}

// ruleCount is how many leases of a holding a rule covers, kept from the first time that its limit is asked for, so
// that a limit costs the same whatever one identity holds.
type ruleCount struct {
	of      *policy.Policy
	changed int // the index's, when it was counted: what a rule covers depends on the credential's record
	covers  func(policy.Credential) bool
	n       int
}

func (h *holding) add(l *lease) {
	h.leases.add(l, ofHolding)
	h.count(l, 1)
}

func (h *holding) drop(l *lease) {
	h.leases.drop(l, ofHolding)
	h.count(l, -1)
}

func (h *holding) count(l *lease, by int) {
	for _, c := range h.counts {
		if c.covers(l.cred.view()) {
			c.n += by
		}
	}
}

// covered counts what h holds under limit, a rule of p. Those whose time is up must have been ended before.
func (ix *index) covered(h *holding, p *policy.Policy, limit *policy.Limit) int {
	c := h.counts[limit.Rule]
	if c != nil && c.of == p && c.changed == ix.changed {
		return c.n
	}
	c = &ruleCount{of: p, changed: ix.changed, covers: limit.Covers}
	for _, l := range h.leases {
		if c.covers(l.cred.view()) {
			c.n++
		}
	}
	if h.counts == nil || len(h.counts) >= maxCounts {
		h.counts = map[string]*ruleCount{}
	}
	h.counts[limit.Rule] = c
	return c.n
}

// maxCounts is how many rules are counted for one holding. A policy has few that one identity meets.
const maxCounts = 64
