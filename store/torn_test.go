package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/boottime"
)

// recovered has s take changes again, or fails.
func recovered(t *testing.T, s *Store) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.Recover() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.Failed())
		}
	}
}

// TestNothingIsAcknowledgedOnALogThatMayHaveAHole: after a sync that failed the next one says yes, whatever reached the
// disk, and Badger drops what follows a hole. So it must not matter what it was that could not be synced.
func TestNothingIsAcknowledgedOnALogThatMayHaveAHole(t *testing.T) {
	for what, do := range map[string]func(*Store) error{
		"a snapshot":      func(s *Store) error { return s.Snapshot([]byte("obviously a fake state")) },
		"a root key":      func(s *Store) error { return s.RotateRoot(make([]byte, 32)) },
		"the signed head": func(s *Store) error { return s.checkpoint() },
	} {
		t.Run(what, func(t *testing.T) {
			s := mustOpen(t, testOptions(t))
			first := record(t, s, leaseCreated(0))
			inject(s, func(real func([]write) error, w []write) error {
				s.torn.Store(true) // as transact does
				return errors.Join(real(w), fmt.Errorf("fdatasync: %w", syscall.EIO))
			})
			if err := do(s); err == nil {
				t.Fatal("it did not fail")
			}
			heal(s)
			if e, err := s.Submit(leaseCreated(1)).Wait(); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("event %d was acknowledged: %v", e.Seq, err)
			}
			if err := s.Destroy([]ValueRef{{CredentialID: "cr_1", Version: 1}}); !errors.Is(err, ErrUnavailable) {
				t.Errorf("something was destroyed: %v", err)
			}
			recovered(t, s)
			if e := record(t, s, leaseCreated(2)); e.Prev != first.Hash {
				t.Errorf("event %d does not follow the first", e.Seq)
			}
		})
	}
}

// TestATornLogIsNoticedWithoutACaller: without a caller nobody would have the database opened anew.
func TestATornLogIsNoticedWithoutACaller(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	s.torn.Store(true)
	for deadline := time.Now().Add(5 * time.Second); s.Trouble() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("all is well, it says")
		}
	}
	recovered(t, s)
	record(t, s, leaseCreated(0))
}

// TestNoSafetyCopyOutlivesTheRecovery: one that is left whole is put back by the next start, over all that was
// acknowledged since.
func TestNoSafetyCopyOutlivesTheRecovery(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(0))
	c := safetyOf(o.Dir)
	real := s.openAgain
	failed := false
	s.openAgain = func() (*badger.DB, safetyCopy, error) {
		db, copy, err := real()
		if !failed { // the copy can't be renamed
			failed = true
			copy.part = filepath.Join(o.Dir, keycheckName) // a file
		}
		return db, copy, err
	}
	s.torn.Store(true)
	if _, err := s.Submit(leaseCreated(1)).Wait(); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	recovered(t, s)
	if !failed {
		t.Fatal("the test shows nothing")
	}
	record(t, s, leaseCreated(2))
	if _, err := os.Lstat(c.safe); err == nil {
		t.Error("the copy is still there: the next start after a kill puts it back")
	}
}

// TestADropThatFailsIsNotWrittenAfter: Badger has no log then, and its next write ends the process.
func TestADropThatFailsIsNotWrittenAfter(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	putCredential(t, s, "cr_1", 1, "{}", "sk-obviously-fake")
	logs, err := filepath.Glob(filepath.Join(storeDir(s.dir), "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	var n int
	if _, err := fmt.Sscanf(filepath.Base(slices.Max(logs)), "%d.mem", &n); err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(storeDir(s.dir), fmt.Sprintf("%05d.mem", n+1))
	if err := os.Mkdir(next, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy([]ValueRef{{CredentialID: "cr_1", Version: 1}}); err == nil {
		t.Fatal("it did not fail")
	}
	if _, err := s.Submit(leaseCreated(1)).Wait(); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := os.Remove(next); err != nil {
		t.Fatal(err)
	}
	recovered(t, s)
	record(t, s, leaseCreated(2))
	if got := all(t, s); len(got) != 2 {
		t.Errorf("%d events", len(got))
	}
}

// TestTheTimeIsAskedForAndNotedWhileNoDiskAnswers: the Broker does both with everybody waiting.
func TestTheTimeIsAskedForAndNotedWhileNoDiskAnswers(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	moment := Moment{Time: day.Add(time.Hour), Boot: boottime.ID{1}, Up: time.Hour}
	later := Moment{Time: day.Add(2 * time.Hour), Boot: boottime.ID{1}, Up: 2 * time.Hour}
	s.disk.Lock()
	s.anchor.mu.Lock()
	done := make(chan error, 1)
	go func() {
		err := errors.Join(s.Observe(moment), s.Observe(later))
		if s.Seen() != later || !s.HighWater().Equal(later.Time) {
			err = errors.Join(err, fmt.Errorf("seen %v, high-water %v", s.Seen(), s.HighWater()))
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * time.Second):
		t.Error("it waits for the disk")
	}
	s.anchor.mu.Unlock()
	s.disk.Unlock()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if is, err := s.anchor.look(s.keys); err != nil {
			t.Fatal(err)
		} else if is.seen == later && is.time.Equal(later.Time) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what was observed was not written when the disk came back")
		}
	}
}

// TestLoadWhileTheTrailIsPruned: what a later snapshot tells must not be missing between the one that was read and where
// the trail begins by then.
func TestLoadWhileTheTrailIsPruned(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	var entries []Entry
	for i := range 6 {
		entries = append(entries, record(t, s, leaseCreated(i)))
	}
	never := func() error { return nil }
	if err := s.SnapshotAt(2, []byte("two"), never); err != nil {
		t.Fatal(err)
	}
	at, times := uint64(0), 0
	err := s.Load(func(_ []byte, seq uint64) error {
		if times++; times == 1 {
			if err := s.SnapshotAt(4, []byte("four"), never); err != nil {
				return err
			}
			base, _, err := s.Prune(t.Context(), PruneLimits{Before: day.Add(time.Hour), Exported: 5, Hash: entries[4].Hash})
			if err != nil || base.Seq != 4 {
				t.Errorf("pruned up to %d: %v", base.Seq, err)
			}
		}
		at = seq
		return nil
	}, func(e *Entry) error {
		if e.Seq != at+1 {
			t.Errorf("event %d follows %d", e.Seq, at)
		}
		at = e.Seq
		return nil
	})
	if err != nil || at != 6 || times != 2 {
		t.Errorf("loaded up to %d at try %d: %v", at, times, err)
	}
}

// TestWhatCantBeReadNowIsNotTakenForDamaged: while the database is opened anew nobody can say what is in it.
func TestWhatCantBeReadNowIsNotTakenForDamaged(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	e := putCredential(t, s, "cr_1", 1, "{}", "sk-obviously-fake")
	s.open.Lock() // as reopen does
	_, value := s.Value("cr_1", 1, e.Records[1])
	_, rec := s.Record(KindCredential, "cr_1", e.Records[0])
	_, base := s.Base()
	_, signed := s.readSigned()
	s.open.Unlock()
	for what, err := range map[string]error{"value": value, "record": rec, "base": base, "signed head": signed} {
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Value("cr_1", 1, e.Records[1]); err != nil {
		t.Error(err)
	}
}
