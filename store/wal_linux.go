package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// badgerSyncs: we sync ourselves what Badger wrote.
const badgerSyncs = false

// wal syncs Badger's log after each transaction. Badger could do so, but syncs two files then, each by a flush of the
// disk: the log, and a value log that nothing we write is large enough for. That took 1.6 times as long.
//
// The logs are named by a number that grows; a transaction lies whole in the newest. It is not for use by two
// goroutines.
type wal struct {
	dir  string
	file *os.File
	next string // the log that follows file, once Badger begins it
}

// sync returns when all that was written is on the disk.
func (w *wal) sync() error {
	if w.file == nil || w.left() {
		if err := w.find(); err != nil {
			return err
		}
	}
	for {
		switch err := unix.Fdatasync(int(w.file.Fd())); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &os.PathError{Op: "fdatasync", Path: w.file.Name(), Err: err}
		}
	}
}

// left reports whether Badger has gone on to another log: the next is there, or this one was removed already.
func (w *wal) left() bool {
	var st unix.Stat_t
	err := unix.Fstat(int(w.file.Fd()), &st)
	return err != nil || st.Nlink == 0 || unix.Access(w.next, unix.F_OK) == nil
}

// find opens the newest log and syncs the folder, so that the log is found after a power cut.
func (w *wal) find() error {
	w.close()
	logs, err := filepath.Glob(filepath.Join(w.dir, "*.mem"))
	if err != nil {
		return err
	}
	newest := -1
	for _, path := range logs {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(path), "%d.mem", &n); err == nil {
			newest = max(newest, n)
		}
	}
	at := slices.Index(logs, w.log(newest))
	if at < 0 {
		return fmt.Errorf("%s has no log of Badger's", w.dir)
	}
	d, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	if w.file, err = os.OpenFile(logs[at], os.O_RDWR, 0); err != nil {
		return err
	}
	w.next = w.log(newest + 1)
	return nil
}

func (w *wal) log(n int) string { return filepath.Join(w.dir, fmt.Sprintf("%05d.mem", n)) }

func (w *wal) close() {
	if w.file != nil {
		_ = w.file.Close() // nothing was written through it
		w.file = nil
	}
}
