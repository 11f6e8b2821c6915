package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// walk passes the Entries from seq from to seq to, in order, each checked: its group opens, its number is the next,
// its prev is the hash of the one before. What is not so is a *fault that names the first bad seq. What was pruned is
// passed over. txn is what it sees: what is written meanwhile does not disturb.
func (s *Store) walk(ctx context.Context, txn *badger.Txn, from, to uint64, fn func(*Entry) error) error {
	return s.walkWith(ctx, txn, &walker{from: from, to: to, fn: fn})
}

func (s *Store) walkWith(ctx context.Context, txn *badger.Txn, w *walker) error {
	w.groups.keys = s.keys
	it, err := s.beginWalk(txn, w)
	if err != nil || it == nil {
		return err
	}
	defer it.Close()
	for ; it.Valid() && w.next <= w.to; it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := groupSeq(it.Item().Key())
		if first != w.next {
			return &fault{w.next, fmt.Sprintf("it is missing: the next group begins with event %d", first)}
		}
		inFn := false
		err := it.Item().Value(func(b []byte) (err error) {
			inFn = true
			return w.group(first, b)
		})
		if err != nil && !inFn {
			err = &fault{first, "its group can't be read: " + err.Error()}
		}
		if err != nil {
			return err
		}
	}
	if w.next <= w.to {
		return &fault{w.next, fmt.Sprintf("it is missing, and all up to %d", w.to)}
	}
	return nil
}

// beginWalk puts an iterator on the first group of a walk; nil if there is nothing to pass. The trail begins where the
// base of this moment says, not of txn's: pruning takes groups away from whoever reads, except from iterators that are
// open.
func (s *Store) beginWalk(txn *badger.Txn, w *walker) (*badger.Iterator, error) {
	s.dropping.RLock()
	defer s.dropping.RUnlock()
	base, err := s.readBase()
	if err != nil {
		return nil, err
	}
	if w.whole && w.from <= base.Seq {
		return nil, errPruned
	}
	w.from = max(w.from, base.Seq+1)
	if w.from > w.to {
		return nil, nil
	}
	if w.next = groupWith(txn, w.from); w.next <= base.Seq+1 { // what a crash left before it is not looked at
		w.next, w.prev, w.linked = base.Seq+1, base.Hash, true
	}
	it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
	it.Seek(groupKey(w.next))
	return it, nil
}

// walker is where a walk stands.
type walker struct {
	groups   groupReader
	decode   decoder
	from, to uint64
	next     uint64 // the seq that has to come
	prev     Digest // the hash before it
	linked   bool   // prev is known
	fn       func(*Entry) error
	begin    func(first uint64) error // told of each group, if it is not nil
	whole    bool                     // nothing that was pruned may be passed over: errPruned
	skim     bool                     // fn wants Seq, Prev and Hash alone, and keeps nothing
	skimmed  Entry
}

func (w *walker) group(first uint64, b []byte) error {
	g, err := w.groups.open(first, b)
	if err != nil {
		return &fault{first, err.Error()}
	}
	if w.linked && g.prev != w.prev {
		return &fault{first, "it does not follow the event before it"}
	}
	w.prev, w.linked = g.prev, true
	if w.begin != nil {
		if err := w.begin(first); err != nil {
			return err
		}
	}
	for range g.count {
		b, err := g.next()
		if err != nil {
			return &fault{w.next, err.Error()}
		}
		e, err := w.entry(b)
		switch {
		case err != nil:
			return &fault{w.next, err.Error()}
		case e.Seq != w.next:
			return &fault{w.next, fmt.Sprintf("event %d stands in its place", e.Seq)}
		case e.Prev != w.prev:
			return &fault{w.next, "it does not follow the event before it"}
		}
		w.prev = e.Hash
		w.next++
		if e.Seq < w.from || e.Seq > w.to {
			continue
		}
		if err := w.fn(e); err != nil {
			return err
		}
	}
	if len(g.encoded) != 0 || g.count == 0 {
		return &fault{first, errEncoding.Error()}
	}
	return nil
}

// entry decodes one Entry, or as much of it as the walk is about.
func (w *walker) entry(b []byte) (*Entry, error) {
	if w.skim {
		return &w.skimmed, w.decode.skim(b, &w.skimmed)
	}
	return w.decode.entry(b)
}

func groupSeq(key []byte) uint64 {
	if len(key) != 9 {
		return 0 // no group begins so: a fault where it stands
	}
	return binary.BigEndian.Uint64(key[1:])
}

// groupWith returns the first seq of the group that seq is in; 1 if there is none, so that a walk finds the gap.
func groupWith(txn *badger.Txn, seq uint64) uint64 {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix(), Reverse: true})
	defer it.Close()
	if it.Seek(groupKey(seq)); it.Valid() {
		return max(groupSeq(it.Item().Key()), 1)
	}
	return 1
}

// lastOnDisk reads the last group and returns where the trail ends.
func (s *Store) lastOnDisk() (h head, err error) {
	base, err := s.readBase()
	if err != nil {
		return head{}, err
	}
	defer func() {
		if err == nil && h.seq <= base.Seq { // what is there was to be dropped
			h = base.head()
		}
	}()
	err = s.view(func(txn *badger.Txn) error {
		first := groupWith(txn, ^uint64(0))
		item, err := txn.Get(groupKey(first))
		if err == badger.ErrKeyNotFound && first == 1 {
			return nil // an empty trail
		}
		if err != nil {
			return fmt.Errorf("%w: the last group: %w", ErrIntegrity, err)
		}
		return item.Value(func(b []byte) error {
			w := walker{groups: groupReader{keys: s.keys}, next: first, from: first, to: ^uint64(0)}
			w.fn = func(e *Entry) error {
				h = head{e.Seq, e.Hash}
				return nil
			}
			return w.group(first, b)
		})
	})
	return h, err
}

func (s *Store) entryAt(seq uint64) (found *Entry, err error) {
	err = s.view(func(txn *badger.Txn) error {
		return s.walk(context.Background(), txn, seq, seq, func(e *Entry) error {
			found = e
			return nil
		})
	})
	return found, err
}

// Entries passes the trail from seq from (0 and 1: the beginning) to its end at the time of the call, and stops at
// the first error, which it returns. fn may keep the Entry.
func (s *Store) Entries(ctx context.Context, from uint64, fn func(*Entry) error) error {
	to := s.durable().seq
	return s.view(func(txn *badger.Txn) error { return s.walk(ctx, txn, from, to, fn) })
}

// Load rebuilds what the trail tells: it passes the last snapshot and its seq to restore (nil and 0 if there is none),
// then each Entry after it to apply. A snapshot that does not hold, or that restore refuses, is left aside for the one
// before it, and that for none, since the trail tells all: restore begins anew each time that it is called. Of a trail
// that was pruned it does not, and without a snapshot that goes as far as its base that is ErrIntegrity.
func (s *Store) Load(restore func(snapshot []byte, seq uint64) error, apply func(*Entry) error) error {
	for {
		to := s.durable().seq
		err := s.view(func(txn *badger.Txn) error {
			at, err := s.restoreNewest(txn, to, restore)
			if err != nil {
				return err
			}
			return s.walkWith(context.Background(), txn, &walker{from: at.seq + 1, to: to, fn: apply, whole: true})
		})
		if !errors.Is(err, errPruned) {
			return err
		}
	}
}

// errPruned is why a walk does not begin: a later snapshot was stored, and the trail pruned up to it, since the one that
// it would go on from was read. It happens once in a while and not twice in a row: nothing is pruned before a snapshot.
var errPruned = errors.New("what follows the snapshot was pruned")

// restoreNewest passes the newest snapshot that is good to restore, and returns where it was taken.
func (s *Store) restoreNewest(txn *badger.Txn, to uint64, restore func([]byte, uint64) error) (head, error) {
	base, err := s.readBase()
	if err != nil {
		return head{}, err
	}
	for _, key := range []string{manifestKey, olderKey} {
		data, at, err := s.readSnapshot(txn, key, to)
		if err == nil && (data == nil || at.seq < base.Seq) {
			continue
		}
		if err == nil {
			err = restore(data, at.seq)
		}
		if err == nil {
			s.snapped.Store(max(at.seq, s.snapped.Load()))
			return at, nil
		}
		s.log.Error().Err(err).Msg("a snapshot is damaged and not used; more of the trail is read instead")
	}
	if base.Seq > 0 {
		return head{}, fmt.Errorf("%w: the trail begins after event %d, and the snapshot that tells what was before is missing or damaged: restore the folder from a backup",
			ErrIntegrity, base.Seq)
	}
	if err := restore(nil, 0); err != nil {
		return head{}, fmt.Errorf("beginning at the first event: %w", err)
	}
	return head{}, nil
}
