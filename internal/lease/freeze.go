package lease

import (
	"context"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// Frozen says since when nothing is lent, and the operator's reason, which is for operators: agents are not told it.
type Frozen struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	// Already is set in what Freeze returns alone: it was frozen before, and Since and Reason are of that time.
	Already bool `json:"was_frozen,omitempty"`
}

// MaxReason is how many characters of a reason to freeze are kept.
const MaxReason = 200

// Freeze stops all lending: from now on, through restarts, until Thaw, nothing is leased, renewed or revealed, a lease
// that was granted a moment ago included. Listing, releasing, revoking and the admin's other verbs go on. Frozen
// already: it stays as it is, with the first reason. When it returns without error it is on disk.
func (b *Broker) Freeze(_ context.Context, admin identity.Caller, reason string) (Frozen, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ends(); err != nil {
		return Frozen{}, err
	}
	already := b.ix.frozen != nil
	if !already {
		e := entry(store.EventServerFrozen, admin)
		if reason = CleanText(reason, MaxReason); reason != "" {
			e.Details = store.DetailsOf("reason", reason)
		}
		if _, err := b.submit(store.Change{Entry: e, Owed: true}, nil); err != nil && b.broken == nil {
			return Frozen{}, err
		}
	}
	b.uses.endWhere(func(string) bool { return true }, "the operator has frozen keylease")
	is := *b.ix.frozen
	is.Already = already
	return is, b.unrecorded(b.barrier(), "nothing is lent any more")
}

// Thaw lends again. It reports whether there was anything to thaw.
func (b *Broker) Thaw(_ context.Context, admin identity.Caller) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return false, err
	}
	was := b.ix.frozen != nil
	if was {
		if _, err := b.submit(store.Change{Entry: entry(store.EventServerThawed, admin)}, nil); err != nil {
			return false, err
		}
	}
	return was, b.barrier()
}

// thawed refuses what a freeze stops. Caller holds mu.
func (b *Broker) thawed() error {
	if b.ix.frozen == nil {
		return nil
	}
	return &Refusal{Code: Unavailable, Reason: "frozen",
		Message: "the operator has frozen keylease: nothing is lent, renewed or handed out",
		Hint:    "list_credentials and release_lease still work: release what you do not need. Do not try again until the operator says that it is over, and do not look for this key elsewhere."}
}
