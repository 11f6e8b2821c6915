package lease

import (
	"cmp"
	"context"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/store"
)

// Release ends a lease of the caller's own. It is effective before it returns, and may be said twice.
func (b *Broker) Release(_ context.Context, caller identity.Caller, id string) (Ended, error) {
	defer b.uses.gone()
	b.mu.Lock()
	ended, w, err := b.giveBack(caller, id)
	b.mu.Unlock()
	if err != nil {
		return Ended{}, b.denied(caller, "", id, "release", "", "", err)
	}
	if w.pending != nil {
		if _, err := b.settle(w); err != nil {
			return Ended{}, b.unrecorded(err, "this lease has ended and gives nothing more")
		}
	}
	return ended, nil
}

func (b *Broker) giveBack(caller identity.Caller, id string) (Ended, written, error) {
	now := b.now()
	tooFast := b.begin(caller, now)
	if b.broken != nil && codeOf(tooFast) == Unavailable {
		if l, err := b.find(caller.Principal, id, now); err == nil {
			_, _, tooFast = b.end(l, store.EventLeaseReleased, caller, now, "")
		}
		if past, ok := b.ix.ended.get(id, caller.Principal, now); ok {
			tooFast = b.unrecorded(tooFast, "this lease has ended and gives nothing more")
			return Ended{id, past.State, past.At, past.At.Sub(past.Issued)}, written{}, tooFast
		}
	}
	if tooFast != nil && codeOf(tooFast) != RateLimited {
		return Ended{}, written{}, tooFast
	}
	switch l := b.ix.leases[id]; {
	case l == nil:
		if past, ok := b.ix.ended.get(id, caller.Principal, now); ok {
			return Ended{id, past.State, past.At, past.At.Sub(past.Issued)}, b.newest, nil // which may not be on disk yet
		}
	case l.owner == caller.Principal && l.held.cut != nil:
		return b.end(l, store.EventLeaseRevoked, identity.Caller{}, now, "")
	}
	l, err := b.find(caller.Principal, id, now)
	if err != nil { // giving back what one holds is never rate limited, anything else is
		return Ended{}, written{}, cmp.Or(tooFast, err)
	}
	ended, w, err := b.end(l, store.EventLeaseReleased, caller, now, "")
	return ended, w, err
}

// end writes a lease's one terminal Entry. What a cutoff ended was over then, whoever comes now. Caller holds mu.
func (b *Broker) end(l *lease, event store.Event, by identity.Caller, now time.Time, reason string) (Ended, written, error) {
	at := now
	if c := l.held.cut; c != nil {
		event, by, at, reason = store.EventLeaseRevoked, identity.Caller{Principal: c.By}, c.At, c.Reason
	}
	if by.Principal == (identity.Principal{}) {
		by.Principal = l.owner
	}
	e := l.entry(event, by, now)
	e.Details = store.DetailsOf("held_for", ttl.Format(at.Sub(l.issued)))
	if reason != "" {
		e.Details.Set("reason", reason)
	}
	if e.Identity.By != l.owner.By || e.Identity.Name != l.owner.Name {
		e.Details.Set("by", "admin")
	}
	w, err := b.submit(store.Change{Entry: e, Owed: event != store.EventLeaseExpired}, nil)
	state, why := Released, "the lease was released"
	switch event {
	case store.EventLeaseExpired:
		state, why = Expired, "the lease has expired"
	case store.EventLeaseRevoked:
		state, why = Revoked, "the lease was revoked"
	}
	b.uses.end(l.id, cmp.Or(reason, why))
	return Ended{l.id, state, at, at.Sub(l.issued)}, w, err
}
