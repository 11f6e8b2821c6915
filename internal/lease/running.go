package lease

import (
	"context"
	"errors"
	"time"

	"keylease/store"
)

// A snapshot is written at an orderly stop, and every so often while keylease runs, so that a start after a kill is short
// too. The one of a running keylease is made beside it: of the snapshot before and the Entries since, as they are read
// from the store, in an index of its own. No lock of the Broker is held, and half of the time it rests.
const (
	// snapshotAfter is after how many Entries another is worth its writing: to read them back takes 0.2 to 0.4 s. Where
	// more is live than that, it is as many Entries as the index is large, so that what is written stays in proportion
	// to the trail: 150 bytes for each 500 of it.
	snapshotAfter = 100_000
	// snapshotCalm is how many Entries may have come since the last look for it to be a good moment: reading Entries
	// back costs as much as making them. While more come it waits until three times as many are worth it, which a start
	// after a kill reads back in about a second.
	snapshotCalm = 5000
	// snapshotLook is how often it is asked.
	snapshotLook = 2 * time.Second
	// snapshotPiece is how long it works before it rests for as long.
	snapshotPiece = 5 * time.Millisecond
)

// runSnapshots keeps the newest snapshot near the end of the trail until ctx ends.
func (b *Broker) runSnapshots(ctx context.Context, after, calm uint64, look time.Duration) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for was, _ := b.store.Head(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		large := uint64(len(b.ix.leases) + len(b.ix.creds))
		b.mu.Unlock()
		end, _ := b.store.Head()
		worth := after
		if end-was > calm {
			worth *= 3
		}
		if was = end; end-b.store.SnapshotSeq() < max(worth, large) || b.store.Failed() != nil {
			continue
		}
		begun := time.Now()
		seq, err := shadow(ctx, b.store)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			b.cfg.Log.Warn().Err(err).Msg("no snapshot could be written; the next start would take longer")
		default:
			b.cfg.Log.Debug().Uint64("seq", seq).Dur("took", time.Since(begun)).Msg("a snapshot was written")
		}
	}
}

// shadow writes a snapshot of what the store tells now, and returns the event it goes to.
func shadow(ctx context.Context, s *store.Store) (uint64, error) {
	rest := pacer{ctx: ctx, since: time.Now()}
	ix, err := readIndex(s, rest.step)
	if err != nil {
		return 0, err
	}
	if ix.seq == 0 {
		return 0, errors.New("there is nothing to take it of")
	}
	data, err := ix.snapshot()
	if err != nil {
		return 0, err
	}
	return ix.seq, s.SnapshotAt(ix.seq, data, rest.now)
}

// pacer makes work rest as long as it worked.
type pacer struct {
	ctx   context.Context
	since time.Time
	steps int
}

func (p *pacer) step() error {
	if p.steps++; p.steps%256 != 0 || time.Since(p.since) < snapshotPiece {
		return nil
	}
	return p.now()
}

func (p *pacer) now() error {
	select {
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-time.After(time.Since(p.since)):
	}
	p.since = time.Now()
	return nil
}
