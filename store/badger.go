package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/rs/zerolog"

	"keylease/internal/wholefile"
)

const (
	memTable    = 16 << 20
	mergedTable = 4 << 20 // 10 GB of trail are 2,500 files, each open; Badger's 2 MiB would be 5,000
	magic       = 0x4b4c  // "KL": another program's Badger folder is refused by Badger itself

	// stallAt is how many tables may wait to be merged before Badger stops writing until one is.
	stallAt = 6

	// reserve is what must be free before a group is written. Badger's log is a sparse mapped file: where the disk
	// is full the process dies of SIGBUS, so we stop before.
	reserve = 3 * memTable
	// comfort is what must be free before new things are begun: see Full.
	comfort = 2 * reserve
)

// badgerOptions: what is not obvious is measured. Writes are synced, by us or by Badger (a power cut lost 26,212
// acknowledged ones without); no encryption and no caches, since all values are sealed by us; checksums when a table is opened, which
// turns a flipped byte into a clean error; no conflict detection, since there is one writer.
func badgerOptions(dir string, log zerolog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(badgerSyncs).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(stallAt).
		WithNumCompactors(2).
		WithBaseLevelSize(1 << 40). // merged once, into the last level: what overlaps nothing gains nothing by more
		WithBaseTableSize(mergedTable).
		WithValueLogFileSize(16 << 20).
		WithValueThreshold(maxWrite).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnTableRead).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithMetricsEnabled(false).
		WithExternalMagic(magic).
		WithLogger(badgerLog{log.With().Str("part", "badger").Logger()})
}

// openBadger opens or makes the database of a store whose anchor is a. It never changes what Badger could not open: what
// it leaves behind is the folder as it was, but for 0-byte logs. The safety copy is the caller's to drop once what was
// opened has stood the check, or to put back.
func openBadger(o Options, a *anchor) (db *badger.DB, safety safetyCopy, err error) {
	safety = safetyOf(o.Dir)
	if err := os.Mkdir(safety.dir, 0o700); err == nil {
		err = wholefile.SyncFolder(o.Dir) // or a power cut takes the folder, and all that was synced in it
		if err != nil {
			return nil, safety, fmt.Errorf("making the folder: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, safety, fmt.Errorf("making the folder: %w", err)
	}
	if err := lookAround(o, a, safety); err != nil {
		return nil, safety, err
	}
	defer func() {
		if p := recover(); p != nil { // it panics on some damaged files
			db, err = nil, fmt.Errorf("%w: opening %s: %v", ErrIntegrity, safety.dir, p)
		}
		if db == nil && !errors.Is(err, ErrLocked) {
			err = errors.Join(err, asItWas(safety, o.Log))
		}
	}()
	db, err = badger.Open(badgerOptions(safety.dir, o.Log))
	if err != nil {
		return nil, safety, badgerError(fmt.Errorf("opening %s: %w", safety.dir, err))
	}
	return db, safety, nil
}

// asItWas makes the folder what it was before Badger opened it. Badger has let go of it.
func asItWas(c safetyCopy, log zerolog.Logger) error {
	unlock, err := lockStore(c.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return c.putBack(log)
}

// lookAround does what comes before Badger's opening, under its lock.
func lookAround(o Options, a *anchor, safety safetyCopy) error {
	unlock, err := lockStore(safety.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := plainFiles(safety.dir); err != nil {
		return err
	}
	if err := safety.putBack(o.Log); err != nil {
		return err
	}
	if err := dropEmptyMemtables(safety.dir); err != nil {
		return err
	}
	if err := checkFiles(safety.dir, a.seq > 0 && !a.anew); err != nil {
		return err
	}
	err = safety.make()
	unclean := a.found&markOpen != 0 && o.Trial != nil
	if err == nil && !a.anew && (unclean || len(unnamed(safety.dir)) > 0) {
		err = trial(o, a.anchored)
	}
	switch {
	case errors.Is(err, ErrIntegrity):
		return errors.Join(err, safety.drop())
	case err != nil: // no room, a disk without hard links, no process to be had: none of it is a reason not to start
		o.Log.Warn().Err(err).Msg("the database is opened without having been copied and tried first")
	}
	return nil
}

// dropEmptyMemtables removes the 0-byte logs that a kill during Badger's rotation leaves and that fail its next open.
// Caller has Badger's lock: for a process that is alive such a file is about to be used.
func dropEmptyMemtables(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		if info, err := os.Lstat(log); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			if err := os.Remove(log); err != nil {
				return err
			}
		}
	}
	return nil
}

// badgerError gives an error of badger.Open its kind. Badger has no value for a held lock: this is the one place that
// knows its words.
func badgerError(err error) error {
	var path *fs.PathError
	switch {
	case strings.Contains(err.Error(), "Cannot acquire directory lock"):
		return fmt.Errorf("%w: %w", ErrLocked, err)
	case errors.As(err, &path):
		return err
	}
	return fmt.Errorf("%w: %w", ErrIntegrity, err)
}

// write is one key to be set, or deleted where value is nil.
type write struct{ key, value []byte }

// maxWrite is more than any value that is written: Badger would put it into its value log, which is not synced.
const maxWrite = 1 << 20

// transact does all writes in one synced transaction. Caller holds disk.
func (s *Store) transact(writes []write) error {
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	for _, w := range writes {
		if len(w.value) >= maxWrite {
			return fmt.Errorf("a value of %d bytes is too large for the store", len(w.value))
		}
		var err error
		if w.value == nil {
			err = txn.Delete(w.key)
		} else {
			err = txn.Set(w.key, w.value)
		}
		if err != nil {
			return err
		}
	}
	err := txn.Commit()
	if err == nil {
		err = s.wal.sync()
	}
	if err != nil {
		s.torn.Store(true)
	}
	return err
}

// view reads. While the database is not one to read from, see reopen, it is ErrUnavailable at once.
func (s *Store) view(fn func(*badger.Txn) error) error {
	if s.torn.Load() || !s.open.TryRLock() {
		return fmt.Errorf("%w: it can't be read before it was opened anew", ErrUnavailable)
	}
	defer s.open.RUnlock()
	return s.db.View(fn)
}

// drop takes all that begins with one of the prefixes out of the files: deleting it would leave the bytes there. After
// an error Badger may have no log to write to any more. Caller holds disk.
func (s *Store) drop(prefixes ...[]byte) error {
	err := s.db.DropPrefix(prefixes...)
	s.values.drop() // after it: what was read meanwhile goes too
	if err != nil {
		s.torn.Store(true)
		return err
	}
	return s.view(func(txn *badger.Txn) error { // it does not always say so
		for _, p := range prefixes {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: p})
			it.Rewind()
			left := it.Valid()
			it.Close()
			if left {
				return errors.New("some of it is still there")
			}
		}
		return nil
	})
}

// get returns a copy of the value under key; badger.ErrKeyNotFound if there is none.
func (s *Store) get(key []byte) (value []byte, err error) {
	err = s.view(func(txn *badger.Txn) (err error) {
		value, err = valueAt(txn, key)
		return err
	})
	return value, err
}

func valueAt(txn *badger.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

// errTorn is why nothing may be written, though the disk may take it: after a write that failed the log can have a hole,
// and what follows a hole is lost at the next power cut, with every sync of it answered yes.
var errTorn = errors.New("a write before this one failed, and the database was not opened anew since")

// usable refuses what would write to a full disk, or to a database that is closed or torn. Caller holds disk.
func (s *Store) usable() error {
	if s.db.IsClosed() {
		return fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	if s.torn.Load() {
		return fmt.Errorf("%w: %w", ErrUnavailable, errTorn)
	}
	if err := s.room(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// badgerLog passes Badger's chatter on, its information as debugging.
type badgerLog struct{ log zerolog.Logger }

func (l badgerLog) Errorf(f string, v ...any)   { l.log.Error().Msg(line(f, v)) }
func (l badgerLog) Warningf(f string, v ...any) { l.log.Warn().Msg(line(f, v)) }
func (l badgerLog) Infof(f string, v ...any)    { l.log.Debug().Msg(line(f, v)) }
func (l badgerLog) Debugf(f string, v ...any)   { l.log.Trace().Msg(line(f, v)) }

func line(f string, v []any) string { return strings.TrimSpace(fmt.Sprintf(f, v...)) }
