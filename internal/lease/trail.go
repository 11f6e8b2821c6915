package lease

import (
	"context"
	"time"

	"keylease/store"
)

// EntryFilter picks Entries of the trail; empty fields pick all.
type EntryFilter struct {
	From       uint64 // the first seq
	Since      time.Time
	Identity   string
	Credential string
	Event      string
	LeaseID    string
}

func (f EntryFilter) picks(e *store.Entry) bool {
	return !e.Time.Before(f.Since) && (f.Identity == "" || f.Identity == e.Identity.Name) &&
		(f.Credential == "" || f.Credential == e.Credential) && (f.Event == "" || f.Event == string(e.Event)) &&
		(f.LeaseID == "" || f.LeaseID == e.LeaseID)
}

// Entries reads the trail from f.From on and gives fn what f picks, in order.
func (b *Broker) Entries(ctx context.Context, f EntryFilter, fn func(*store.Entry) error) error {
	return b.store.Entries(ctx, max(f.From, 1), func(e *store.Entry) error {
		if !f.picks(e) {
			return nil
		}
		return fn(e)
	})
}

// Follow returns when the trail has an Entry with a seq of from or more, or ctx ends.
func (b *Broker) Follow(ctx context.Context, from uint64) error {
	for {
		grown := b.newEntry.wait()
		if seq, _ := b.store.Head(); seq >= from {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		case <-time.After(time.Second): // Entries nobody waited for
		}
	}
}

// Verify recomputes the whole trail. pinned is the fingerprint that the operator noted at init, or empty.
func (b *Broker) Verify(ctx context.Context, pinned string) (store.Report, error) {
	return b.store.Verify(ctx, pinned)
}
