package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// pruneSlice is how many events one Prune takes at most: dropping stops writes, for about a fifth of a second with so
// many events of 450 bytes. It is what one byte of a group's key spans twice, so few prefixes name all of it.
const pruneSlice = 1 << 16

// errSlice ends a walk that has seen enough.
var errSlice = errors.New("enough")

// PruneLimits say what of the trail may go. All of them hold.
type PruneLimits struct {
	Before   time.Time // only what happened before this
	Exported uint64    // only what confirmed exports hold: up to this event
	Hash     Digest    // of that event
}

// Prune takes the oldest events out of the trail, whole groups of them, at most pruneSlice at a time: what l allows, and
// never what the newest good snapshot does not tell, since a start could not know it any more, nor the last group.
// more: there is something left that could go, so call again when it is quiet. Writes wait while the bytes are taken
// out of the files.
//
// In this order; a crash after each step leaves
//
//	1 the head signed, the anchor synced    as it was: and both lie behind any base that follows
//	2 the new base written                  a trail that begins later; the groups before it are in the way of nobody
//	3 the groups before the base dropped    the same, without them
//
// so what step 3 did not come to is dropped by the next call.
func (s *Store) Prune(ctx context.Context, l PruneLimits) (base Base, more bool, err error) {
	s.pruning.Lock()
	defer s.pruning.Unlock()
	if base, err = s.readBase(); err != nil {
		return base, false, err
	}
	if err := s.dropBefore(base.Seq); err != nil { // left behind by a crash
		return base, false, err
	}
	if l.Exported <= base.Seq {
		return base, false, nil
	}
	if hash, err := s.hashAt(l.Exported); err != nil || hash != l.Hash {
		return base, false, errors.Join(fmt.Errorf("%w: event %d is not the one that was exported", ErrIntegrity, l.Exported), err)
	}
	if err := errors.Join(s.checkpoint(), s.Failed()); err != nil { // a checkpoint leaves what failed alone
		return base, false, err
	}
	next, more, err := s.nextBase(ctx, base, l)
	if err != nil || next == base {
		return base, false, err
	}
	next.Pruned, next.Exported = s.now(), l.Exported
	if err := s.moveBase(next); err != nil {
		return base, false, fmt.Errorf("pruning the trail: %w", err)
	}
	return next, more, s.dropBefore(next.Seq)
}

// nextBase finds how far the trail can go, and recomputes it up to there: a base stands for what it replaces.
func (s *Store) nextBase(ctx context.Context, base Base, l PruneLimits) (next Base, more bool, err error) {
	next = base
	err = s.view(func(txn *badger.Txn) error {
		_, snapshot, err := s.readSnapshot(txn, manifestKey, s.durable().seq)
		if err != nil {
			return fmt.Errorf("%w: the snapshot that a start would need does not hold: %w", ErrIntegrity, err)
		}
		limit := min(l.Exported, snapshot.seq)
		var before Entry // the last one that was passed
		w := walker{from: base.Seq + 1, to: groupWith(txn, ^uint64(0))}
		w.begin = func(first uint64) error {
			if before.Seq != first-1 || before.Seq > limit {
				return nil
			}
			next = Base{Seq: before.Seq, Hash: before.Hash, Time: before.Time}
			if more = next.Seq-base.Seq >= pruneSlice; more {
				return errSlice
			}
			return nil
		}
		w.fn = func(e *Entry) error {
			if e.Seq > limit || !e.Time.Before(l.Before) {
				return errSlice
			}
			before = *e
			return nil
		}
		return s.walkWith(ctx, txn, &w)
	})
	if errors.Is(err, errSlice) {
		err = nil
	}
	return next, more, err
}

func (s *Store) moveBase(to Base) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	return s.write([]write{{[]byte(baseKey), seal(s.keys.record, s.keys.signBase(to), s.keys.baseAAD())}})
}

// dropBefore takes the groups up to seq out of the files. Deleting them would leave their bytes in the tables, and
// tombstones to be read over.
func (s *Store) dropBefore(seq uint64) error {
	first := s.firstGroup()
	if first == 0 || first > seq {
		return nil
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	s.dropping.Lock()
	defer s.dropping.Unlock()
	if err := s.drop(groupPrefixes(first, seq)...); err != nil {
		return fmt.Errorf("dropping events %d to %d: %w", first, seq, err)
	}
	return nil
}

// firstGroup returns the first seq of the first group that is there; 0 if none is.
func (s *Store) firstGroup() (first uint64) {
	_ = s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
		defer it.Close()
		if it.Rewind(); it.Valid() {
			first = groupSeq(it.Item().Key())
		}
		return nil
	})
	return first
}

// groupPrefixes returns what the keys of the groups that begin with from to to begin with, and no others that are
// there: nothing is left before from, so it may as well begin where few prefixes name all.
func groupPrefixes(from, to uint64) (prefixes [][]byte) {
	from -= from % pruneSlice
	for from <= to {
		keep, size := 9, uint64(1)
		for size < 1<<48 && from%(size<<8) == 0 && to-from >= size<<8-1 {
			keep, size = keep-1, size<<8
		}
		prefixes = append(prefixes, groupKey(from)[:keep])
		from += size
	}
	return prefixes
}
