package store

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/secret"
)

func all(t testing.TB, s *Store) []*Entry {
	t.Helper()
	var entries []*Entry
	err := s.Entries(t.Context(), 0, func(e *Entry) error {
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// inject puts a faulty disk in front of the real one.
func inject(s *Store, disk func(real func([]write) error, w []write) error) {
	s.disk.Lock()
	defer s.disk.Unlock()
	real := s.transact
	s.write = func(w []write) error { return disk(real, w) }
}

func heal(s *Store) {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.write = s.transact
}

func TestOrderOfSubmitIsTheOrderOfTheTrail(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	const n = 3000
	pending := make([]*Pending, n)
	s.disk.Lock() // the committer waits, so that what a group takes does not depend on the scheduler
	for i := range pending {
		pending[i] = s.Submit(leaseCreated(i))
	}
	s.disk.Unlock()
	for i, p := range pending {
		e, err := p.Wait()
		if err != nil || e.Seq != uint64(i+1) {
			t.Fatalf("%d: seq %d, %v", i, e.Seq, err)
		}
	}
	mustClose(t, s)
	s = mustOpen(t, o)
	entries := all(t, s)
	if len(entries) != n {
		t.Fatalf("%d entries", len(entries))
	}
	for i, e := range entries {
		want, _ := pending[i].Wait()
		if e.Hash != want.Hash || e.LeaseID != want.LeaseID || !e.Time.Equal(want.Time) || e.Salt != want.Salt {
			t.Fatalf("entry %d is not what was acknowledged", e.Seq)
		}
	}
	if groups := countKeys(t, s, trailPrefix); groups > 12 {
		t.Errorf("%d groups for %d events: they were not packed", groups, n)
	}
}

func countKeys(t testing.TB, s *Store, prefix byte) (n int) {
	err := s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{prefix}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFailedWriteAnswersNothingAndStopsWhatFollows(t *testing.T) {
	disks := map[string]struct {
		disk func(real func([]write) error, w []write) error
		kept uint64 // how many of the failed events are on disk nevertheless
	}{
		"and nothing is on disk": {func(func([]write) error, []write) error { return errors.New("EIO") }, 0},
		"though all is on disk": {func(real func([]write) error, w []write) error {
			return errors.Join(real(w), errors.New("EIO"))
		}, 1},
	}
	for name, c := range disks {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			s := mustOpen(t, o)
			before := record(t, s, leaseCreated(0))
			inject(s, c.disk)
			if _, err := s.Submit(leaseCreated(1)).Wait(); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			heal(s)
			if _, err := s.Submit(leaseCreated(2)).Wait(); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("a later change went through before Recover: %v", err)
			}
			if seq, hash := s.Head(); seq != before.Seq || hash != before.Hash {
				t.Error("the head moved")
			}
			if err := s.Recover(); err != nil {
				t.Fatal(err)
			}
			if seq, _ := s.Head(); seq != before.Seq+c.kept {
				t.Errorf("head after Recover: %d", seq)
			}
			after := record(t, s, leaseCreated(3))
			if after.Seq != before.Seq+c.kept+1 {
				t.Errorf("seq %d", after.Seq)
			}
			if r, err := s.Verify(t.Context(), s.Fingerprint()); err != nil || r.Problem != "" || !r.Authenticated {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestQueueBehindAFailedGroupFailsToo(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	reached, release := make(chan bool), make(chan bool)
	inject(s, func(func([]write) error, []write) error {
		reached <- true
		<-release
		return errors.New("EIO")
	})
	first := s.Submit(leaseCreated(0))
	<-reached
	later := []*Pending{s.Submit(leaseCreated(1)), s.Submit(leaseCreated(2))}
	release <- true
	for _, p := range append(later, first) {
		if _, err := p.Wait(); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
	heal(s)
	if err := s.Recover(); err != nil {
		t.Fatal(err)
	}
	if n := len(all(t, s)); n != 0 {
		t.Errorf("%d events are on disk", n)
	}
}

func TestDetailsAreAnAllowList(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for name, e := range map[string]Entry{
		"field":  {Event: EventLeaseReleased, Details: DetailsOf("value", "sk-fake-1")},
		"event":  {Event: "lease.invented"},
		"size":   {Event: EventLeaseReleased, Details: DetailsOf("reason", strings.Repeat("x", maxEntry))},
		"number": {Event: EventLeaseReleased, Version: -1},
	} {
		_, err := s.Submit(Change{Entry: e}).Wait()
		if err == nil || errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "sk-fake") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if seq, _ := s.Head(); seq != 0 {
		t.Error("something was written")
	}
	record(t, s, leaseCreated(0))
}

func TestManyCallersAtOnce(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	var callers sync.WaitGroup
	for c := range 32 {
		callers.Go(func() {
			for i := range 20 {
				if _, err := s.Submit(leaseCreated(c*1000 + i)).Wait(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" || r.Authenticated {
			t.Errorf("while written: %+v, %v", r, err)
		}
	}
	callers.Wait()
	if n := len(all(t, s)); n != 640 {
		t.Errorf("%d events", n)
	}
}

func TestLargeValuesSplitGroups(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	var pending []*Pending
	for i := range 20 {
		pending = append(pending, s.Submit(Change{
			Entry:  Entry{Event: EventCredentialRotated, CredentialID: "cr_1", Version: i + 1},
			Values: []ValueWrite{{"cr_1", i + 1, secret.New(make([]byte, 64<<10))}},
		}))
	}
	for i, p := range pending {
		e, err := p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if v, err := s.Value("cr_1", i+1, e.Records[0]); err != nil || v.Len() != 64<<10 {
			t.Fatal(err)
		}
	}
	huge := Change{Entry: Entry{Event: EventCredentialRotated}, Values: []ValueWrite{{"cr_1", 99, secret.New(make([]byte, maxChange))}}}
	if _, err := s.Submit(huge).Wait(); err == nil || errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

func TestTimeIsTheCallersOrNow(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	c := leaseCreated(0)
	c.Entry.Time = day.Add(-time.Hour).In(time.FixedZone("x", 3600))
	if e := record(t, s, c); e.Time != day.Add(-time.Hour) {
		t.Error(e.Time)
	}
	if e := record(t, s, leaseCreated(1)); e.Time != day {
		t.Error(e.Time)
	}
}

func TestCloseDrainsAndThenRefuses(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	var pending []*Pending
	for i := range 500 {
		pending = append(pending, s.Submit(leaseCreated(i)))
	}
	mustClose(t, s)
	for _, p := range pending {
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Submit(leaseCreated(1)).Wait(); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	for name, err := range map[string]error{"Destroy": s.Destroy([]ValueRef{{"cr_1", 1}}), "Snapshot": s.Snapshot(nil), "Recover": s.Recover()} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s = mustOpen(t, o)
	if seq, _ := s.Head(); seq != 500 {
		t.Errorf("head %d", seq)
	}
	signed, err := s.readSigned()
	if err != nil || signed.seq != 500 {
		t.Errorf("signed head: %+v, %v", signed, err)
	}
}

func TestEntriesBeginsWhereAsked(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for i := range 300 {
		s.Submit(leaseCreated(i))
	}
	record(t, s, leaseCreated(300))
	for _, from := range []uint64{0, 1, 2, 150, 300, 301, 302, 1 << 60} {
		var got []uint64
		err := s.Entries(t.Context(), from, func(e *Entry) error {
			got = append(got, e.Seq)
			return nil
		})
		var want []uint64
		for seq := max(from, 1); seq <= 301; seq++ {
			want = append(want, seq)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("from %d: %d entries, %v", from, len(got), err)
		}
	}
	stop := errors.New("enough")
	if err := s.Entries(t.Context(), 1, func(*Entry) error { return stop }); err != stop {
		t.Error(err)
	}
}
