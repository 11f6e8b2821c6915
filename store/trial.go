package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/rs/zerolog"
)

// After an unclean stop the database is opened on trial before it is opened: a copy of it, by another process. There
// Badger may panic, in goroutines of its own too, and cut and delete what it likes. After an orderly stop there is no
// log to replay and each table was looked at by checkTables; the safety copy is enough then, and the start 30 ms
// shorter.

// ErrDied is what Options.Trial returns where the process that it started died of the database.
var ErrDied = errors.New("the trial opening of the database died")

// trialTime is how long a trial may take: many times what reading 1 GB of tables from a slow disk takes.
const trialTime = time.Minute

const trialName = "store.trial"

// tried is what a trial found. It needs no key: what it says is only believed where it is bad news.
type tried struct {
	End uint64 `json:"end"` // the last event, as the header of the last group says
}

// trial opens a copy of the database in another process. Caller has the lock of the folder that is copied.
func trial(o Options, known anchored) error {
	if o.Trial == nil {
		return nil
	}
	dir := filepath.Join(o.Dir, trialName)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyStore(storeDir(o.Dir), dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), trialTime)
	defer cancel()
	out, err := o.Trial(ctx, dir)
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
		return missingEvents(found.End, known.seq, "the anchor outside the data folder")
	}
	return nil
}

// missingEvents is the error for a trail that ends at end where known says that it went further.
func missingEvents(end, known uint64, what string) error {
	return fmt.Errorf("%w: the trail ends at event %d but %s knows %d: %d events are missing, from event %d on",
		ErrIntegrity, end, what, known, known-end, end+1)
}

// TryOut opens the copy of a database in dir as Open would and writes to w what it found. It belongs in a process of
// its own, which ends after it: see Options.Trial. It refuses any folder that is not such a copy.
func TryOut(dir string, w io.Writer) error {
	if filepath.Base(dir) != trialName {
		return fmt.Errorf("%s is no copy made for a trial", dir)
	}
	privateFiles()
	db, err := badger.Open(badgerOptions(dir, zerolog.Nop()).WithNumCompactors(0))
	if err != nil {
		return badgerError(fmt.Errorf("opening %s: %w", dir, err))
	}
	found := tried{}
	err = db.View(func(txn *badger.Txn) error {
		found.End, err = lastByHeader(txn)
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(found)
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
