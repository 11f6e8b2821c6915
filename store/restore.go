package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/wholefile"
)

// A restore builds the store beside its place and moves it there in the end, so that a crash leaves
//
//	1 .NAME.restore-* is being filled    nothing: the folder is not looked at by anybody, and can be removed
//	2 the backup was read to its end, the trail verified; the caller looks at the records    the same
//	3 the new epoch began in it          the same
//	4 it has the name of the data folder the epoch is one ahead of the anchor's, and the next open moves the anchor (epoch.go)
//	5 the anchor is of the new epoch     all is done
//
// Where there is no anchor, or one that is older than the backup, 5 comes before 4: an anchor without a folder is
// refused, and the restore done again.

// Restoration is a backup that was read to its end and stands beside its place, verified. Finish or Discard it.
type Restoration struct {
	Backup
	Store *Store // as it was when it was backed up; not to be changed
	Known *Known // nil: there is no anchor of this store here, so nobody can say what came after the backup

	at      Options // where it stands
	to      Options // where it belongs
	scratch string
	keys    *keyring
	anchor  anchored // the one there is, or zero
}

// Known is what the anchor knows of a store.
type Known struct {
	Epoch uint64    `json:"epoch"`
	Seq   uint64    `json:"seq"`
	Until time.Time `json:"until"` // about when it last was written to
}

// Missing is how many events the anchor knows that the backup does not have, if both are of one epoch; 0 if none.
func (r *Restoration) Missing() uint64 {
	if r.Known == nil || r.Known.Epoch != r.Epoch || r.Known.Seq < r.HeadSeq {
		return 0
	}
	return r.Known.Seq - r.HeadSeq
}

// KeyFinder returns the root key of a store whose key came from source, and where it comes from here, which is
// recorded. The key is wiped by whoever asked.
type KeyFinder func(source string) (key []byte, from string, err error)

// Unpack reads a backup to its end, verifies every frame and the whole trail, and opens the store that it holds in a
// folder beside o.Dir, which must not exist or be empty. o's root key and its source are asked of find. Errors: ErrOccupied, ErrWrongKey, ErrBackup (it was changed or
// cut), ErrIntegrity (what was backed up was damaged then), ErrLocked (a daemon works with this store's anchor).
// After an error nothing is left.
func Unpack(ctx context.Context, in io.Reader, o Options, find KeyFinder) (_ *Restoration, err error) {
	privateFiles()
	if err := vacant(o.Dir); err != nil {
		return nil, err
	}
	b, err := readBackup(in)
	if err != nil {
		return nil, err
	}
	if o.RootKey, o.KeySource, err = find(b.header.Keycheck.KeySource); err != nil {
		return nil, err
	}
	if err := b.unlock(o.RootKey); err != nil {
		clear(o.RootKey)
		return nil, err
	}
	r := &Restoration{to: o, keys: b.keys}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Discard())
		}
	}()
	if err := r.readAnchor(); err != nil {
		return nil, err
	}
	parent := filepath.Dir(o.Dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder: %w", err)
	}
	if r.scratch, err = os.MkdirTemp(parent, "."+filepath.Base(o.Dir)+".restore-*"); err != nil {
		return nil, fmt.Errorf("making a folder to restore into: %w", err)
	}
	r.at = o
	r.at.Dir, r.at.AnchorDir, r.at.Create = filepath.Join(r.scratch, "data"), filepath.Join(r.scratch, "anchor"), false
	if err := r.fill(ctx, b); err != nil {
		return nil, err
	}
	r.Backup = b.is
	return r, r.verify(ctx)
}

// vacant refuses a data folder that holds anything.
func vacant(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder", ErrOccupied, dir)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: %s holds %s", ErrOccupied, dir, left[0].Name())
	}
	return nil
}

// readAnchor reads the anchor where the store belongs, if there is one.
func (r *Restoration) readAnchor() error {
	if err := trustAnchorFolder(r.to.AnchorDir, false); err != nil {
		return err
	}
	f, err := openPlain(anchorPath(r.to.AnchorDir, r.keys.store[:]), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the anchor: %w", err)
	}
	defer f.Close()
	if err := lockFile(f); err != nil {
		return fmt.Errorf("%w: a daemon works with this store, in another data folder: stop it, or restore beside another configuration (--config)", ErrLocked)
	}
	r.anchor, err = (&anchor{file: f}).read(r.keys)
	switch {
	case errors.Is(err, ErrIntegrity):
		return nil // it tells nothing, and is replaced
	case err != nil:
		return err
	}
	r.Known = &Known{r.anchor.epoch, r.anchor.seq, r.anchor.time}
	return nil
}

// fillBytes is how much is written before the disk is asked for room again: less than the reserve by far.
const fillBytes = 1 << 20

// fill makes the folder of all that is in the backup.
func (r *Restoration) fill(ctx context.Context, b *backupReader) (err error) {
	if err := errors.Join(os.Mkdir(r.at.Dir, 0o700), os.Mkdir(r.at.AnchorDir, 0o700)); err != nil {
		return err
	}
	room := Store{dir: r.at.Dir, free: r.at.Free}
	if room.free == nil {
		room.free = freeBytes
	}
	if err := room.room(); err != nil { // before Badger makes its log: where the disk is full it is the end of the process
		return err
	}
	db, err := badger.Open(badgerOptions(storeDir(r.at.Dir), r.at.Log).WithSyncWrites(true)) // nobody else syncs here
	if err != nil {
		return badgerError(fmt.Errorf("making %s: %w", storeDir(r.at.Dir), err))
	}
	batch, since := db.NewWriteBatch(), 0
	err = b.items(func(key, value []byte) error {
		if since += len(key) + len(value); since > fillBytes {
			since = 0
			if err := errors.Join(ctx.Err(), room.room()); err != nil {
				return err
			}
		}
		return batch.SetEntry(badger.NewEntry(bytes.Clone(key), bytes.Clone(value)))
	})
	if err == nil {
		err = batch.Flush()
	} else {
		batch.Cancel()
	}
	if err = errors.Join(err, (&Store{db: db}).closeDB()); err != nil {
		return fmt.Errorf("filling the store: %w", err)
	}
	moved := b.header.Keycheck
	moved.KeySource = r.to.KeySource
	moved.seal(b.keys.keks.Load().now, b.keys.master)
	kc, err := moved.encode()
	if err != nil {
		return err
	}
	if err := writeOnce(filepath.Join(r.at.Dir, keycheckName), kc); err != nil {
		return err
	}
	return r.putAnchor(anchored{epoch: b.is.Epoch, head: head{b.is.HeadSeq, b.is.Head}})
}

// putAnchor writes the anchor of the store that is being made.
func (r *Restoration) putAnchor(a anchored) error {
	if r.anchor.time.After(a.time) {
		a.time = r.anchor.time // what the clock had come to here
	}
	return replaceFile(anchorPath(r.at.AnchorDir, r.keys.store[:]), encodeAnchor(r.keys, a))
}

// verify opens the store, checks all of the trail, and that it ends where the backup says.
func (r *Restoration) verify(ctx context.Context) (err error) {
	if r.Store, err = Open(r.at); err != nil {
		return fmt.Errorf("opening what was backed up: %w", err)
	}
	report, err := r.Store.Verify(ctx, "")
	switch seq, hash := r.Store.Head(); {
	case err != nil:
		return err
	case report.Problem != "":
		return fmt.Errorf("%w: what was backed up does not hold, at event %d: %s", ErrIntegrity, report.FirstBad, report.Problem)
	case seq != r.HeadSeq || hash != r.Head:
		return fmt.Errorf("%w: its trail ends at event %d, and its end speaks of event %d", ErrBackup, seq, r.HeadSeq)
	}
	return nil
}

// Finish begins a new epoch with e — EventStoreRestored, whose details get the epoch — and puts the store and its
// anchor where they belong. When it returns without error both are on disk.
func (r *Restoration) Finish(e Entry) error {
	err := r.Store.Close()
	r.Store = nil
	if err == nil {
		err = r.putAnchor(anchored{epoch: max(r.anchor.epoch, r.Epoch), head: head{r.HeadSeq, r.Head}})
	}
	if err == nil {
		var s *Store
		if s, err = openAnew(r.at, e); err == nil {
			err = s.Close()
		}
	}
	if err == nil {
		err = vacant(r.to.Dir) // somebody may have made a store in the meantime
	}
	if err == nil {
		err = r.place()
	}
	return errors.Join(err, r.Discard())
}

func (r *Restoration) place() error {
	path := anchorPath(r.to.AnchorDir, r.keys.store[:])
	data, err := os.ReadFile(anchorPath(r.at.AnchorDir, r.keys.store[:]))
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return moveFolder(r.at.Dir, r.to.Dir) },
		func() error { return replaceFile(path, data) },
	}
	if r.anchor.epoch < r.Epoch { // the next open would not know what to make of the old one, or of none
		steps[0], steps[1] = steps[1], steps[0]
	}
	if err := makeFolder(r.to.AnchorDir, true); err != nil {
		return err
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("putting the store in its place: %w", err)
		}
	}
	return nil
}

// moveFolder gives the folder at from the name to, which is free or an empty folder's.
func moveFolder(from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) { // goes only if it is empty
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(wholefile.SyncFolder(to), wholefile.SyncFolder(filepath.Dir(to)))
}

// Discard removes what was built beside. After Finish it does nothing.
func (r *Restoration) Discard() error {
	var err error
	if r.Store != nil {
		err, r.Store = r.Store.Close(), nil
	}
	clear(r.to.RootKey)
	if r.scratch != "" {
		err = errors.Join(err, os.RemoveAll(r.scratch))
	}
	return err
}
