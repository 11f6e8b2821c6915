package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/rs/zerolog"
)

const (
	memTable = 16 << 20
	magic    = 0x4b4c // "KL": another program's Badger folder is refused by Badger itself

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
		WithNumLevelZeroTablesStall(6).
		WithNumCompactors(2).
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

// openBadger opens or makes the database. used: events are known to be in it, so that a missing MANIFEST is damage —
// Badger would open empty, without an error, and delete its tables.
func openBadger(dir string, used bool, log zerolog.Logger) (db *badger.DB, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder: %w", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "MANIFEST")); used && (err != nil || info.Size() == 0) {
		return nil, fmt.Errorf("%w: %s has no MANIFEST: restore the folder from a backup", ErrIntegrity, dir)
	}
	if err := dropEmptyMemtables(dir); err != nil {
		return nil, err
	}
	if err := checkTables(dir); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil { // it panics on some damaged files
			db, err = nil, fmt.Errorf("%w: opening %s: %v", ErrIntegrity, dir, p)
		}
	}()
	db, err = badger.Open(badgerOptions(dir, log))
	if err != nil {
		return nil, badgerError(fmt.Errorf("opening %s: %w", dir, err))
	}
	return db, nil
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
	if err := txn.Commit(); err != nil {
		return err
	}
	return s.wal.sync()
}

// get returns a copy of the value under key; badger.ErrKeyNotFound if there is none.
func (s *Store) get(key []byte) (value []byte, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
}

// Full reports whether the disk has so little room left that nothing new should be begun: giving leases back, ending
// and recording them goes on until the reserve is reached. It costs a microsecond or two.
// What it says may be lookAgain old.
func (s *Store) Full() bool {
	now := time.Now()
	if seen := s.space.Load(); seen != nil && now.Sub(seen.at) < lookAgain {
		return seen.full
	}
	free, err := freeBytes(s.dir)
	full := err == nil && free < comfort
	s.space.Store(&spaceSeen{now, full})
	return full
}

// lookAgain is how long what was seen of the disk's space is believed: at 50 MB/s it loses half a megabyte meanwhile.
const lookAgain = 10 * time.Millisecond

type spaceSeen struct {
	at   time.Time
	full bool
}

// room refuses to write where it could kill the process.
func (s *Store) room() error {
	if free, err := freeBytes(s.dir); err == nil && free < reserve {
		return fmt.Errorf("the disk of %s is full: %d MiB free, %d MiB needed", s.dir, free>>20, reserve>>20)
	}
	return nil
}

// usable refuses what would write to a full disk or a closed database. Caller holds disk.
func (s *Store) usable() error {
	if s.db.IsClosed() {
		return fmt.Errorf("%w: it is closed", ErrUnavailable)
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
