package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/wholefile"
)

// Loss is what an operator accepted: the store goes on with what was left.
type Loss struct {
	Held    uint64 // the last event that was left; 0: none
	Known   uint64 // the last that was known of; Held where the end is not what was lost; 0 where nobody can tell
	Reason  string // what was found
	Aside   string // the folder that holds everything as it was found
	Emptied bool   // nothing tells what was before the events that are left: no credential is known any more
	Unknown bool   // the anchor was lost too: nobody can tell how many events are missing
}

// Missing is how many events are known to be missing.
func (l Loss) Missing() uint64 { return max(l.Known, l.Held) - l.Held }

// ErrNothingLost is why OpenLosing refuses a store that Open opens.
var ErrNothingLost = errors.New("nothing is lost: the store opens, and its whole trail holds")

// OpenLosing opens a store that Open refuses with ErrIntegrity, with what is left of it: the trail up to the first
// event that can't be believed, and the records that it speaks of. It begins a new epoch there with one Entry,
// EventLossAccepted, which ends all leases and approvals and disables all tokens. A store that has nothing wrong with it
// is refused with ErrNothingLost; one whose keycheck is damaged can't be opened at all.
//
// It goes in this order; a crash after each step leaves
//
//	1 lost-<time>/, a copy of everything      what was there is refused as before
//	2 the files made such that Badger opens   the same: nothing was added, and the anchor was not touched
//	3 the trail cut where it stops holding    the same
//	4 the new epoch (epoch.go)                done
func OpenLosing(o Options) (*Store, Loss, error) {
	o.Create = false
	loss, err := whatIsLost(o)
	if err != nil {
		return nil, loss, err
	}
	if loss.Aside, err = setAside(o); err != nil {
		return nil, loss, fmt.Errorf("putting a copy of the store aside: %w", err)
	}
	if err := salvage(o); err != nil {
		return nil, loss, err
	}
	s, err := openChecked(o, true, func(s *Store) error { return s.takeWhatHolds(&loss) })
	if err != nil {
		return nil, loss, fmt.Errorf("opening what is left: %w", err)
	}
	return s, loss, s.beginEpoch(loss.entry())
}

func (l Loss) entry() Entry {
	missing := strconv.FormatUint(l.Missing(), 10)
	if l.Unknown {
		missing = "unknown"
	}
	return Entry{Event: EventLossAccepted, Details: DetailsOf("held", strconv.FormatUint(l.Held, 10),
		"missing", missing, "reason", l.Reason, "aside", filepath.Base(l.Aside))}
}

// whatIsLost opens the store as Open does, and reads all of it.
func whatIsLost(o Options) (Loss, error) {
	s, err := openChecked(o, false, (*Store).readHead)
	if err == nil {
		err = errors.Join(s.wholeTrail(), s.Close())
		if err == nil {
			return Loss{}, ErrNothingLost
		}
	}
	if !errors.Is(err, ErrIntegrity) || errors.Is(err, ErrKeycheck) {
		return Loss{}, err
	}
	return Loss{Reason: err.Error()}, nil
}

// wholeTrail reads the trail from its beginning and loads what it tells.
func (s *Store) wholeTrail() error {
	err := s.Entries(context.Background(), 0, func(*Entry) error { return nil })
	if err != nil {
		return err
	}
	return s.Load(func([]byte, uint64) error { return nil }, func(*Entry) error { return nil })
}

// setAside copies the whole store into a folder of its own, on disk when it returns.
func setAside(o Options) (string, error) {
	aside := filepath.Join(o.Dir, "lost-"+o.Now().UTC().Format("20060102T150405Z"))
	for n := 2; ; n++ {
		err := os.Mkdir(aside, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) || n > 100 {
			return "", err
		}
		aside = filepath.Join(o.Dir, fmt.Sprintf("lost-%s-%d", o.Now().UTC().Format("20060102T150405Z"), n))
	}
	unlock, err := lockStore(storeDir(o.Dir))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return "", err
	default:
		defer unlock()
		if err := copyStore(storeDir(o.Dir), filepath.Join(aside, "store"), false); err != nil {
			return "", err
		}
	}
	kc, err := readKeycheck(o.Dir)
	if err != nil {
		return "", err
	}
	id := kc.id()
	for from, to := range map[string]string{anchorPath(o.AnchorDir, id): "anchor", filepath.Join(o.Dir, keycheckName): keycheckName} {
		if _, err := copySparse(from, filepath.Join(aside, to)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return aside, syncAll(aside, o.Dir)
}

// syncAll makes a folder, all under it, and its name in parent durable.
func syncAll(dir, parent string) error {
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return wholefile.SyncFolder(path) // of a file it does the same
	})
	return errors.Join(err, wholefile.SyncFolder(parent))
}

// takeWhatHolds cuts the trail where it stops holding, and believes the rest.
func (s *Store) takeWhatHolds(loss *Loss) error {
	if s.anchor.lost != nil {
		loss.Unknown = true
	} else {
		loss.Known = s.anchor.seq
	}
	if signed, err := s.readSigned(); err == nil {
		loss.Known = max(loss.Known, signed.seq)
	}
	if err := s.mendBase(); err != nil {
		return fmt.Errorf("finding where the trail begins: %w", err)
	}
	end, last := uint64(0), uint64(0)
	err := s.view(func(txn *badger.Txn) (err error) {
		last, _ = lastByHeader(txn) // of a last group that can't be read the events are not counted
		err = s.walk(context.Background(), txn, 0, math.MaxUint64, func(e *Entry) error {
			end = e.Seq
			return nil
		})
		if bad := (*fault)(nil); errors.As(err, &bad) { // at the latest at the end: there is no such event
			end, err = bad.seq-1, nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading what is left of the trail: %w", err)
	}
	loss.Known = max(loss.Known, last)
	for {
		if err := s.cutAfter(end); err != nil {
			return fmt.Errorf("cutting the trail after event %d: %w", end, err)
		}
		err := s.takeAsItIs()
		if !errors.Is(err, ErrIntegrity) || end == 0 {
			if err != nil {
				return err
			}
			break
		}
		if end, err = s.startOfLast(); err != nil { // it holds only in part: it goes whole
			return err
		}
	}
	loss.Held = s.durable().seq
	return s.emptyUnlessTold(loss)
}

// mendBase makes a trail whose beginning is not where its base says, or that has lost the record of its base, begin
// with the first group that is left. What was before is told by the snapshot, or by nobody: see emptyUnlessTold.
func (s *Store) mendBase() error {
	base, err := s.readBase()
	if err != nil && !errors.Is(err, ErrIntegrity) {
		return err
	}
	mended := base
	err = s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
		defer it.Close()
		reader := groupReader{keys: s.keys}
		for it.Seek(groupKey(base.Seq + 1)); it.Valid(); it.Next() {
			first := groupSeq(it.Item().Key())
			var g group
			err := it.Item().Value(func(b []byte) (err error) {
				g, err = reader.open(first, b)
				return err
			})
			if err == nil && first > 0 {
				mended = Base{Seq: first - 1, Hash: g.prev, Pruned: s.now()}
				return nil
			}
		}
		return nil
	})
	if err != nil || mended.Seq <= base.Seq {
		return err
	}
	return s.moveBase(mended)
}

// emptyUnlessTold makes the store one that knows of nothing, where the trail does not go back to its beginning and no
// snapshot tells the rest: by a snapshot that is empty.
func (s *Store) emptyUnlessTold(loss *Loss) error {
	base, err := s.readBase()
	if err != nil || base.Seq == 0 {
		return err
	}
	told := false
	err = s.view(func(txn *badger.Txn) error {
		for _, key := range []string{manifestKey, olderKey} {
			if _, at, err := s.readSnapshot(txn, key, loss.Held); err == nil && at.seq >= base.Seq {
				told = true
			}
		}
		return nil
	})
	if err != nil || told {
		return err
	}
	loss.Emptied = true
	return s.Snapshot([]byte{})
}

// startOfLast is the event before the last group.
func (s *Store) startOfLast() (before uint64, err error) {
	err = s.view(func(txn *badger.Txn) error {
		before = groupWith(txn, math.MaxUint64) - 1
		return nil
	})
	return before, err
}

// cutAfter removes the groups that begin after event end, and a snapshot that was taken later.
func (s *Store) cutAfter(end uint64) error {
	var gone []write
	err := s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
		defer it.Close()
		for it.Seek(groupKey(end + 1)); it.Valid(); it.Next() {
			gone = append(gone, write{key: it.Item().KeyCopy(nil)})
		}
		for _, key := range []string{manifestKey, olderKey} {
			if _, at, err := s.readSnapshot(txn, key, end); err != nil || at.seq > end {
				gone = append(gone, write{key: []byte(key)})
			}
		}
		return nil
	})
	const most = 1000 // well under what a Badger transaction takes
	for ; err == nil && len(gone) > 0; gone = gone[min(most, len(gone)):] {
		err = s.write(gone[:min(most, len(gone))])
	}
	return err
}
