package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/rs/zerolog"
)

// After an unclean stop, and where there are tables that the MANIFEST does not name, the database is opened on trial
// before it is opened: a copy of it, by another process. There Badger may panic, in goroutines of its own too, and cut
// and delete what it likes. After an orderly stop there is no log to replay and checkTables has looked at every block of
// every table that there is: nothing is left that Badger could repair by destroying it, and the start is shorter.

// ErrDied is what Options.Trial returns where the process that it started died of the database.
var ErrDied = errors.New("the trial opening of the database died")

// trialTime is how long a trial may take: many times what reading 1 GB of tables from a slow disk takes.
const trialTime = time.Minute

const trialName = "store.trial"

// tried is what a trial found. It needs no key: what it says is only believed where it is bad news.
type tried struct {
	End uint64 `json:"end"`           // the last event, as the header of the last group says
	Gap uint64 `json:"gap,omitempty"` // the first event that is missing behind others; looked for where tables are not named
}

// trial opens a copy of the database in another process. Caller has the lock of the folder that is copied.
func trial(o Options, known anchored) error {
	left, _ := filepath.Glob(filepath.Join(o.Dir, trialName+"*"))
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	// A trial outlives a daemon that is killed, and its Badger removes the logs that it has read: not those of ours.
	dir := filepath.Join(o.Dir, trialName+"-"+strconv.Itoa(os.Getpid()))
	defer os.RemoveAll(dir)
	if err := copyStore(storeDir(o.Dir), dir, true); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), trialTime)
	defer cancel()
	hold := o.Trial
	if hold == nil {
		hold = holdHere
	}
	out, err := hold(ctx, dir)
	var found tried
	switch {
	case errors.Is(err, ErrDied), ctx.Err() != nil:
		return fmt.Errorf("%w: %s: %w", ErrIntegrity, storeDir(o.Dir), err)
	case err != nil:
		return fmt.Errorf("no trial could be held: %w", err)
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return fmt.Errorf("the trial answered %q", out[:min(len(out), 80)])
	}
	if found.End < known.seq {
		return withSuspects(missingEvents(found.End, known.seq, "the anchor outside the data folder"), storeDir(o.Dir))
	}
	if found.Gap > 0 {
		return withSuspects(fmt.Errorf("%w: event %d: it is missing", ErrIntegrity, found.Gap), storeDir(o.Dir))
	}
	return nil
}

// errMissing is of every error that missingEvents makes.
var errMissing = fmt.Errorf("%w: the trail", ErrIntegrity)

// missingEvents is the error for a trail that ends at end where known says that it went further.
func missingEvents(end, known uint64, what string) error {
	return fmt.Errorf("%w ends at event %d but %s knows %d: %d events are missing, from event %d on",
		errMissing, end, what, known, known-end, end+1)
}

// withSuspects adds which files of the folder, as it was before Badger opened it, may be why.
func withSuspects(err error, dir string) error {
	if said := suspects(dir); said != "" {
		return fmt.Errorf("%w%s", err, said)
	}
	return err
}

// TryOut opens the copy of a database in dir as Open would and writes to w what it found. It belongs in a process of
// its own, which ends after it: see Options.Trial. It refuses any folder that is not such a copy.
func TryOut(dir string, w io.Writer) error {
	if !strings.HasPrefix(filepath.Base(dir), trialName) {
		return fmt.Errorf("%s is no copy made for a trial", dir)
	}
	privateFiles()
	whole := len(unnamed(dir)) > 0 // Badger removes them
	db, err := badger.Open(trialOptions(dir, zerolog.Nop()))
	if err != nil {
		return badgerError(fmt.Errorf("opening %s: %w", dir, err))
	}
	return tell(db, whole, w) // its death closes it
}

func tell(db *badger.DB, whole bool, w io.Writer) error {
	var found tried
	err := db.View(func(txn *badger.Txn) (err error) {
		if found.End, err = lastByHeader(txn); err == nil && whole {
			found.Gap, err = gapByHeaders(txn)
		}
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(found)
}

// holdHere is a trial in this process, for who has no other: where Badger panics in a goroutine of its own, this one
// dies.
func holdHere(_ context.Context, dir string) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDied, p)
		}
	}()
	whole := len(unnamed(dir)) > 0
	db, err := badger.Open(trialOptions(dir, zerolog.Nop()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDied, badgerError(err))
	}
	var said bytes.Buffer
	err = tell(db, whole, &said)
	return said.Bytes(), errors.Join(err, (&Store{db: db}).closeDB())
}

// trialOptions are those for a copy whose tables are hard links. There must be no compaction: Badger empties a table
// before it removes it.
func trialOptions(dir string, log zerolog.Logger) badger.Options {
	return badgerOptions(dir, log).WithNumCompactors(0).WithNumLevelZeroTablesStall(1 << 20)
}

// lastByHeader is the last event that the header of the last group speaks of. Nobody has authenticated it.
func lastByHeader(txn *badger.Txn) (end uint64, err error) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix(), Reverse: true})
	defer it.Close()
	if it.Seek(groupKey(^uint64(0))); !it.Valid() {
		return 0, nil
	}
	first := groupSeq(it.Item().Key())
	err = it.Item().Value(func(b []byte) error {
		if len(b) < groupHeader {
			return errGroup
		}
		end = first + uint64(binary.BigEndian.Uint16(b[17:])) - 1
		return nil
	})
	return end, err
}

// gapByHeaders is the first event that no group holds though one before it and one behind it do; 0: there is none. A
// table that goes because no MANIFEST names it may have held events from the middle.
func gapByHeaders(txn *badger.Txn) (gap uint64, err error) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
	defer it.Close()
	next := uint64(0)
	for it.Rewind(); it.Valid(); it.Next() {
		first := groupSeq(it.Item().Key())
		if next != 0 && first > next {
			return next, nil
		}
		err = it.Item().Value(func(b []byte) error {
			if len(b) < groupHeader {
				return errGroup
			}
			next = first + uint64(binary.BigEndian.Uint16(b[17:]))
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}
