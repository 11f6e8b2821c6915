package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestAfterAnErrorOfTheDiskBadgerIsOpenedAnewInPlace(t *testing.T) {
	o := testOptions(t)
	var broken atomic.Bool
	o.Fault = func(write func() error) error {
		if broken.Load() {
			return fmt.Errorf("sync: %w", syscall.EIO)
		}
		return write()
	}
	s := mustOpen(t, o)
	before := record(t, s, leaseCreated(0))
	was := s.db
	broken.Store(true)
	owed := leaseCreated(1)
	owed.Owed = true
	for _, c := range []Change{owed, leaseCreated(2)} {
		if _, err := s.Submit(c).Wait(); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if is := s.Trouble(); is == nil || is.State != Failing || is.Since.IsZero() {
		t.Errorf("%+v", is)
	}
	if err := s.Entries(t.Context(), 0, func(*Entry) error { return nil }); !errors.Is(err, ErrUnavailable) {
		t.Errorf("it is read meanwhile: %v", err)
	}
	if lost := s.Lost(); len(lost) != 1 || lost[0].Entry.LeaseID != owed.Entry.LeaseID || s.Lost() != nil {
		t.Errorf("lost: %+v", lost)
	}
	broken.Store(false)
	for deadline := time.Now().Add(10 * time.Second); s.Recover() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.Failed())
		}
	}
	if s.db == was || s.Trouble() != nil {
		t.Error("it goes on with a database that could not write")
	}
	if after := record(t, s, leaseCreated(3)); after.Seq != before.Seq+1 {
		t.Errorf("seq %d", after.Seq)
	}
	mustClose(t, s)
	if s = mustOpen(t, o); len(all(t, s)) != 2 {
		t.Error("not what was recorded")
	}
}

func TestTheBallastIsLetGoWhenTheReserveIsReachedAndMadeAgainWhenThereIsRoom(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is none here")
	}
	o := testOptions(t)
	const size = 1 << 20
	o.Ballast = size
	var others atomic.Int64 // what is free with the ballast in its place
	path := filepath.Join(o.Dir, ballastFile)
	o.Free = func(string) (uint64, error) {
		if _, err := os.Stat(path); err != nil {
			return uint64(others.Load() + size), nil
		}
		return uint64(others.Load()), nil
	}
	others.Store(comfort + slack)
	s := mustOpen(t, o)
	s.makeBallast()
	if ballastIn(o.Dir) != size {
		if s.ballast.Load() == 0 {
			t.Skip("the disk of the tests is one in memory")
		}
		t.Fatal("it was not made")
	}
	at := func(free int64) {
		others.Store(free)
		s.space.Store(nil)
	}
	if at(comfort); s.Full() {
		t.Error("full while there is room")
	}
	if at(comfort - 1); !s.Full() || s.FullSince().IsZero() {
		t.Error("new things are begun where there is too little room")
	}
	if record(t, s, leaseCreated(0)); ballastIn(o.Dir) == 0 {
		t.Error("it was let go too early")
	}
	at(reserve - size)
	if record(t, s, leaseCreated(1)); ballastIn(o.Dir) != 0 {
		t.Error("it was kept while the disk was full")
	}
	at(reserve - size - 1)
	if _, err := s.Submit(leaseCreated(2)).Wait(); !errors.Is(err, ErrFull) || s.Trouble().State != Full {
		t.Errorf("it writes where that could kill it: %v", err)
	}
	if at(comfort - 1); !s.Full() {
		t.Error("what the ballast gave up is lent on")
	}
	at(comfort + slack - 1)
	if s.makeBallast(); ballastIn(o.Dir) != 0 {
		t.Error("it is made again at once")
	}
	at(comfort + slack)
	if s.makeBallast(); ballastIn(o.Dir) != size {
		t.Error("it is not made again")
	}
	if err := s.Recover(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)

	// A start: with the ballast gone there is room, or there is not.
	at(reserve - size)
	s = mustOpen(t, o)
	mustClose(t, s)
	at(reserve - size - 1)
	if _, err := Open(o); !errors.Is(err, ErrFull) {
		t.Errorf("opening on a full disk: %v", err)
	}
}
