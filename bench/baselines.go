//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// What the disk itself can do, and what a store does that nobody made faster: these hold one event of 512 bytes, no
// state, no policy and no sealing.

const eventSize = 512

// appended is a file to which one caller appends, syncing each time.
func (r *run) appended() (func(time.Duration) (sample, error), error) {
	f, err := r.file("append", 0)
	if err != nil {
		return nil, err
	}
	event := bytes.Repeat([]byte{'x'}, eventSize)
	return func(d time.Duration) (sample, error) {
		return load(1, d, one(func(int) error {
			if _, err := f.Write(event); err != nil {
				return err
			}
			return unix.Fdatasync(int(f.Fd()))
		}))
	}, nil
}

func (r *run) file(name string, size int64) (*os.File, error) {
	dir, err := r.folder()
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	r.later(func() { _ = f.Close() })
	for left := size; left > 0; left -= 1 << 20 { // written, not sparse: writing in place changes no metadata
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return nil, err
		}
	}
	return f, f.Sync()
}

// rawLog is the limit: events written in place into a file that is there already, one write and one sync for all that
// wait, nothing else. It goes round in 64 MiB.
type rawLog struct {
	f    *os.File
	at   int64
	mu   sync.Mutex
	cond *sync.Cond
	wait []waiting
	over bool
}

// waiting is one event that is to be written.
type waiting struct {
	event []byte
	done  chan error
}

const rawLogSize = 64 << 20

func (r *run) rawLog() (*rawLog, error) {
	f, err := r.file("log", rawLogSize)
	if err != nil {
		return nil, err
	}
	l := &rawLog{f: f}
	l.cond = sync.NewCond(&l.mu)
	ended := make(chan struct{})
	go func() { defer close(ended); l.loop() }()
	r.later(func() {
		l.mu.Lock()
		l.over = true
		l.cond.Broadcast()
		l.mu.Unlock()
		<-ended
	})
	return l, nil
}

func (l *rawLog) loop() {
	const most = 1024
	buf := make([]byte, most*eventSize)
	last := 0
	for {
		if last > 1 { // wait a little for those that were just answered, as keylease does
			for began := time.Now(); time.Since(began) < 50*time.Microsecond; {
				l.mu.Lock()
				enough := len(l.wait) >= last
				l.mu.Unlock()
				if enough {
					break
				}
				yield()
			}
		}
		l.mu.Lock()
		for len(l.wait) == 0 && !l.over {
			l.cond.Wait()
		}
		if l.over {
			l.mu.Unlock()
			return
		}
		n := min(len(l.wait), most)
		group := append([]waiting(nil), l.wait[:n]...)
		l.wait = append(l.wait[:0], l.wait[n:]...)
		l.mu.Unlock()
		if l.at+int64(n*eventSize) > rawLogSize {
			l.at = 0
		}
		for i, w := range group {
			copy(buf[i*eventSize:], w.event)
		}
		_, err := l.f.WriteAt(buf[:n*eventSize], l.at)
		if err == nil {
			err = unix.Fdatasync(int(l.f.Fd()))
		}
		l.at += int64(n * eventSize)
		for _, w := range group {
			w.done <- err
		}
		last = n
	}
}

func (l *rawLog) turn(callers int) func(time.Duration) (sample, error) {
	all := make([]waiting, callers)
	for i := range all {
		all[i] = waiting{bytes.Repeat([]byte{'x'}, eventSize), make(chan error, 1)}
	}
	return func(d time.Duration) (sample, error) {
		return load(callers, d, one(func(caller int) error {
			l.mu.Lock()
			l.wait = append(l.wait, all[caller])
			l.cond.Signal()
			l.mu.Unlock()
			return <-all[caller].done
		}))
	}
}

// mutexed is Badger as one would first use it: a synced transaction for each change, behind a mutex that keeps the count
// of leases exact.
func (r *run) mutexed() (func(callers int) func(time.Duration) (sample, error), error) {
	dir, err := r.folder()
	if err != nil {
		return nil, err
	}
	db, err := badger.Open(badger.DefaultOptions(dir).WithSyncWrites(true).WithLogger(nil).WithMemTableSize(16 << 20))
	if err != nil {
		return nil, err
	}
	r.later(func() { _ = db.Close() })
	var mu sync.Mutex
	var seq uint64
	event := bytes.Repeat([]byte{'x'}, eventSize)
	return func(callers int) func(time.Duration) (sample, error) {
		return func(d time.Duration) (sample, error) {
			return load(callers, d, one(func(int) error {
				mu.Lock()
				defer mu.Unlock()
				seq++
				key := binary.BigEndian.AppendUint64([]byte("t"), seq)
				return db.Update(func(txn *badger.Txn) error { return txn.Set(key, event) })
			}))
		}
	}, nil
}
