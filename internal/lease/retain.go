package lease

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/store"
)

// Export writes the trail to w as store.Export does: from the first Entry of since or later; rest: only what no
// confirmed export holds.
func (b *Broker) Export(ctx context.Context, w io.Writer, since time.Time, rest bool) (store.ExportEnd, error) {
	from := uint64(0)
	if rest {
		b.mu.Lock()
		from = b.ix.books.Exported.Seq + 1
		b.mu.Unlock()
	}
	return b.store.Export(ctx, w, from, since)
}

// Exported records that admin has a whole and verified export, which ends so, in a file that will last: what it holds
// may be pruned. Files that leave a gap behind those before are recorded and allow nothing. file is for people.
func (b *Broker) Exported(_ context.Context, admin identity.Caller, end store.ExportEnd, file string) (TrailStatus, error) {
	if err := b.store.CheckExport(end); err != nil {
		return TrailStatus{}, refuse(Conflict, "this is no export of this store's trail: "+err.Error(), "Export again: keylease audit export FILE.")
	}
	head, _ := end.Hash.MarshalText()
	e := entry(store.EventTrailExported, admin)
	e.Details = store.DetailsOf("from", strconv.FormatUint(end.From, 10), "to", strconv.FormatUint(end.Seq, 10),
		"head", string(head), "file", CleanText(file, 300))
	b.mu.Lock()
	err := b.ready()
	if err == nil {
		_, err = b.change(store.Change{Entry: e}, nil)
	}
	b.mu.Unlock()
	if err != nil {
		return TrailStatus{}, err
	}
	return b.TrailStatus()
}

// TrailStatus is how much trail there is.
type TrailStatus struct {
	Head     uint64      `json:"head"`     // the last event
	Base     *store.Base `json:"base"`     // what was pruned; null: nothing
	Exported *ExportMark `json:"exported"` // null: nothing
	Keep     string      `json:"keep"`     // what the configuration wants; "": for ever
	Disk     store.Disk  `json:"disk"`
}

// TrailStatus reports it. It costs a read and no scan.
func (b *Broker) TrailStatus() (TrailStatus, error) {
	base, err := b.store.Base()
	if err != nil {
		return TrailStatus{}, err
	}
	s := TrailStatus{Disk: b.store.Disk()}
	s.Head, _ = b.store.Head()
	if base.Seq > 0 {
		s.Base = &base
	}
	if b.cfg.KeepTrail > 0 {
		s.Keep = ttl.Format(b.cfg.KeepTrail)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ix.books.Exported.Seq > 0 {
		mark := b.ix.books.Exported
		s.Exported = &mark
	}
	return s, nil
}

const (
	// pruneEvery is how often it is looked whether the oldest events are old enough, where they are kept for long.
	pruneEvery = time.Hour
	// pruneStep is the pause between two slices, and while somebody calls: pruning stops writes for a moment.
	pruneStep = time.Second
)

// pruneTrail prunes what was kept long enough and is exported, a slice at a time and when it is quiet, until ctx ends.
func (b *Broker) pruneTrail(ctx context.Context) {
	every := min(max(b.cfg.KeepTrail, pruneStep), pruneEvery)
	wait, due := every, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		now := b.now()
		if due.IsZero() {
			due = now
		}
		if !b.quiet(now) && now.Sub(due) < patience {
			wait = pruneStep
			continue
		}
		more, err := b.pruneOnce(ctx, now)
		if wait = every; err != nil {
			b.cfg.Log.Error().Err(err).Msg("the trail could not be pruned; trying again later")
		} else if more {
			wait = pruneStep
		}
		due = time.Time{}
	}
}

func (b *Broker) quiet(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Sub(b.lastCall) >= quiet
}

func (b *Broker) pruneOnce(ctx context.Context, now time.Time) (more bool, err error) {
	b.mu.Lock()
	exported, err := b.ix.books.Exported, b.ready()
	b.mu.Unlock()
	if err != nil || exported.Seq == 0 {
		return false, err
	}
	before, err := b.store.Base()
	if err != nil {
		return false, err
	}
	base, more, err := b.store.Prune(ctx, store.PruneLimits{Before: now.Add(-b.cfg.KeepTrail), Exported: exported.Seq, Hash: exported.Hash})
	if base.Seq == before.Seq {
		return more, err
	}
	head, _ := base.Hash.MarshalText()
	told := b.note(store.EventTrailPruned, store.DetailsOf("from", strconv.FormatUint(before.Seq+1, 10), "to", strconv.FormatUint(base.Seq, 10), "head", string(head)))
	if err == nil && told != nil {
		err = fmt.Errorf("recording that the trail was pruned: %w", told)
	}
	return more, err
}
