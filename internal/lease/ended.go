package lease

import (
	"iter"
	"time"

	"keylease/internal/identity"
)

// Ended leases are remembered so that their holder can release twice and be told how it ended: the last
// endedMax of them, for endedFor at most. Older ids are not_available.
const (
	endedMax = 65_536
	endedFor = 24 * time.Hour
)

type endedLease struct {
	ID         string
	Owner      identity.Principal
	State      State
	Issued, At time.Time
}

// endedRing overwrites the oldest when it is full.
type endedRing struct {
	ring []endedLease
	next int
	at   map[string]int // by id: where it is in ring
}

func newEndedRing() endedRing { return endedRing{at: map[string]int{}} }

func (r *endedRing) add(e endedLease) {
	if len(r.ring) < endedMax {
		r.ring = append(r.ring, e)
	} else {
		delete(r.at, r.ring[r.next].ID)
		r.ring[r.next] = e
	}
	r.at[e.ID] = r.next
	r.next = (r.next + 1) % endedMax
}

// byID returns the lease with id, whosever it was.
func (r *endedRing) byID(id string) (endedLease, bool) {
	at, ok := r.at[id]
	if !ok {
		return endedLease{}, false
	}
	return r.ring[at], true
}

// get returns the lease with id if it ended not long ago and was p's.
func (r *endedRing) get(id string, p identity.Principal, now time.Time) (endedLease, bool) {
	e, ok := r.byID(id)
	if !ok || e.Owner != p || now.Sub(e.At) > endedFor {
		return endedLease{}, false
	}
	return e, true
}

// all passes what is remembered, oldest first.
func (r *endedRing) all() iter.Seq[endedLease] {
	return func(yield func(endedLease) bool) {
		for i := range r.ring {
			at := i
			if len(r.ring) == endedMax {
				at = (r.next + i) % endedMax
			}
			if !yield(r.ring[at]) {
				return
			}
		}
	}
}
