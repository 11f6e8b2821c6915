package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// groups writes n groups of one event each.
func groups(t testing.TB, s *Store, n int) {
	t.Helper()
	for i := range n {
		record(t, s, leaseCreated(i))
	}
}

func drop(t testing.TB, s *Store, key []byte) {
	t.Helper()
	if err := s.db.Update(func(txn *badger.Txn) error { return txn.Delete(key) }); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyNamesTheFirstBadEvent(t *testing.T) {
	cases := []struct {
		name   string
		damage func(t *testing.T, s *Store)
		bad    uint64
	}{
		{"a flipped byte", func(t *testing.T, s *Store) {
			b := peek(t, s, groupKey(4))
			b[len(b)/2] ^= 1
			tamper(t, s, groupKey(4), b)
		}, 4},
		{"a flipped header", func(t *testing.T, s *Store) {
			b := peek(t, s, groupKey(4))
			b[groupHeader-1] ^= 1
			tamper(t, s, groupKey(4), b)
		}, 4},
		{"a group cut short", func(t *testing.T, s *Store) { tamper(t, s, groupKey(3), peek(t, s, groupKey(3))[:40]) }, 3},
		{"a group missing", func(t *testing.T, s *Store) { drop(t, s, groupKey(2)) }, 2},
		{"the first missing", func(t *testing.T, s *Store) { drop(t, s, groupKey(1)) }, 1},
		{"the last missing", func(t *testing.T, s *Store) { drop(t, s, groupKey(6)) }, 6},
		{"two swapped", func(t *testing.T, s *Store) {
			three, four := peek(t, s, groupKey(3)), peek(t, s, groupKey(4))
			tamper(t, s, groupKey(3), four)
			tamper(t, s, groupKey(4), three)
		}, 3},
		{"a key that is none", func(t *testing.T, s *Store) { tamper(t, s, append(groupKey(2), 'x'), []byte("x")) }, 3},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := mustOpen(t, testOptions(t))
			groups(t, s, 6)
			if r, err := s.Verify(t.Context(), s.Fingerprint()); err != nil || r.Problem != "" || !r.Authenticated || r.Entries != 6 {
				t.Fatalf("before: %+v, %v", r, err)
			}
			c.damage(t, s)
			r, err := s.Verify(t.Context(), s.Fingerprint())
			if err != nil || r.FirstBad != c.bad || r.Problem == "" || r.Authenticated {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestVerifyWantsThePinnedKey(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	groups(t, s, 2)
	if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" || r.Authenticated {
		t.Errorf("nothing pinned: %+v, %v", r, err)
	}
	if r, err := s.Verify(t.Context(), "SHA256:another"); err != nil || r.Problem == "" || r.Authenticated {
		t.Errorf("another pinned: %+v, %v", r, err)
	}
}

func TestVerifyChecksAnchorAndSignedHead(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	groups(t, s, 2)
	sealed := seal(s.keys.record, s.keys.signHead(signedHead{1, head{2, Digest{1}}, day}), s.keys.headAAD())
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	tamper(t, s, []byte(headKey), sealed)
	if r, _ := s.Verify(t.Context(), ""); r.FirstBad != 2 {
		t.Errorf("a signed head of another trail: %+v", r)
	}
	tamper(t, s, []byte(headKey), []byte("x"))
	if r, _ := s.Verify(t.Context(), ""); r.Problem == "" {
		t.Errorf("a signed head that is garbage: %+v", r)
	}
	if _, err := s.anchor.file.WriteAt([]byte{1, 2, 3}, 60); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.Verify(t.Context(), ""); r.Problem == "" {
		t.Errorf("an anchor that was changed: %+v", r)
	}
}

// Somebody who has the keys, but not the anchor's folder, writes the end of the trail anew: all of it authenticates.
func TestTrailRewrittenBehindTheAnchorIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		seq  uint64 // the event that is forged; later ones are dropped
		says string
	}{
		"shorter":   {3, "1 events are missing"},
		"as long":   {4, "event 4: it is not the one that the anchor"},
		"the first": {1, "3 events are missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			s := mustOpen(t, o)
			groups(t, s, 4)
			forged := forge(t, s, c.seq)
			mustClose(t, s)
			db, err := openBadgerUnchecked(o)
			if err != nil {
				t.Fatal(err)
			}
			s.db = db
			tamper(t, s, groupKey(c.seq), forged)
			for seq := c.seq + 1; seq <= 4; seq++ {
				drop(t, s, groupKey(seq))
			}
			drop(t, s, []byte(headKey))
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(o); !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// forge seals a group of one other event in the place of seq.
func forge(t *testing.T, s *Store, seq uint64) []byte {
	t.Helper()
	p := &Pending{change: leaseCreated(99)}
	if err := p.prepare(s.now); err != nil {
		t.Fatal(err)
	}
	e := &p.change.Entry
	e.Seq = seq
	if seq > 1 {
		before, err := s.entryAt(seq - 1)
		if err != nil {
			t.Fatal(err)
		}
		e.Prev = before.Hash
	}
	encoded := appendEntry(nil, e, *p.body)
	var g sealer
	sealed, err := g.seal(s.keys, seq, e.Prev, 1, append(binary.AppendUvarint(nil, uint64(len(encoded))), encoded...))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func openBadgerUnchecked(o Options) (*badger.DB, error) {
	db, err := badger.Open(badgerOptions(storeDir(o.Dir), o.Log))
	if err != nil {
		return nil, badgerError(err)
	}
	return db, nil
}

// tale is a state that a trail tells, in the order it was told.
type tale struct{ Leases []string }

func load(t testing.TB, s *Store) (told tale, from uint64, replayed int) {
	t.Helper()
	err := s.Load(
		func(snapshot []byte, seq uint64) error {
			from = seq
			if snapshot == nil {
				return nil
			}
			return json.Unmarshal(snapshot, &told)
		},
		func(e *Entry) error {
			replayed++
			told.Leases = append(told.Leases, e.LeaseID)
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return told, from, replayed
}

func TestSnapshotAndReplayTellWhatTheWholeTrailTells(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	if told, from, n := load(t, s); len(told.Leases) != 0 || from != 0 || n != 0 {
		t.Error("an empty store tells something")
	}
	for i := range 700 {
		s.Submit(leaseCreated(i))
	}
	record(t, s, leaseCreated(700))
	whole, _, _ := load(t, s)
	snapshot, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(snapshot); err != nil {
		t.Fatal(err)
	}
	if told, from, n := load(t, s); !reflect.DeepEqual(told, whole) || from != 701 || n != 0 {
		t.Errorf("right after: from %d, %d replayed", from, n)
	}
	for i := 701; i < 800; i++ {
		s.Submit(leaseCreated(i))
	}
	record(t, s, leaseCreated(800))
	mustClose(t, s)
	s = mustOpen(t, o)
	told, from, n := load(t, s)
	if from != 701 || n != 100 {
		t.Errorf("from %d, %d replayed", from, n)
	}
	drop(t, s, []byte(manifestKey))
	full, from, n := load(t, s)
	if from != 0 || n != 801 || !reflect.DeepEqual(told, full) {
		t.Errorf("full replay: from %d, %d replayed, equal %v", from, n, reflect.DeepEqual(told, full))
	}
}

func TestLargeSnapshotIsWholeAndTheTwoNewestAreKept(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(0))
	read := func() (got []byte) {
		err := s.Load(func(b []byte, _ uint64) error { got = b; return nil }, func(*Entry) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := 0
	for _, size := range []int{3*chunkSize + 17, chunkSize, 0, 1} {
		data := bytes.Repeat([]byte("keylease"), size/8+1)[:size]
		if err := s.Snapshot(data); err != nil {
			t.Fatal(err)
		}
		if got := read(); got == nil || !bytes.Equal(got, data) {
			t.Errorf("size %d: %d bytes came back", size, len(got))
		}
		chunks := (size + chunkSize - 1) / chunkSize
		if n := countKeys(t, s, 's'); n != chunks+before {
			t.Errorf("size %d: %d chunks are stored, not %d and %d", size, n, chunks, before)
		}
		before = chunks
	}
}

func TestDamagedSnapshotIsNotUsed(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(0))
	if err := s.Snapshot([]byte(`{"Leases":["ls_00000000"]}`)); err != nil {
		t.Fatal(err)
	}
	older := peek(t, s, []byte(manifestKey))
	older[30] ^= 1
	tamper(t, s, []byte(manifestKey), older)
	if told, from, n := load(t, s); from != 0 || n != 1 || len(told.Leases) != 1 {
		t.Errorf("from %d, %d replayed", from, n)
	}
}

// TestTheSnapshotBeforeADamagedOneIsUsed: and one that its reader refuses counts as damaged.
func TestTheSnapshotBeforeADamagedOneIsUsed(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(0))
	first := []byte(`{"Leases":["ls_00000000"]}`)
	if err := s.Snapshot(first); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		record(t, s, leaseCreated(i+1))
	}
	if err := s.SnapshotAt(4, []byte(`nothing that anybody reads`), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.SnapshotAt(2, first, func() error { return nil }); err != nil || s.SnapshotSeq() != 4 {
		t.Errorf("the newest is of %d: %v", s.SnapshotSeq(), err)
	}
	if told, from, n := load(t, s); from != 1 || n != 5 || len(told.Leases) != 6 {
		t.Errorf("refused: from %d, %d replayed", from, n)
	}
	newest := peek(t, s, []byte(manifestKey))
	newest[30] ^= 1
	tamper(t, s, []byte(manifestKey), newest)
	if told, from, n := load(t, s); from != 1 || n != 5 || len(told.Leases) != 6 {
		t.Errorf("damaged: from %d, %d replayed", from, n)
	}
}

func TestFailedSnapshotLeavesTheOlder(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(0))
	if err := s.Snapshot([]byte(`{"Leases":["first"]}`)); err != nil {
		t.Fatal(err)
	}
	writes := 0
	inject(s, func(real func([]write) error, w []write) error {
		if writes++; writes == 2 {
			return errors.New("EIO")
		}
		return real(w)
	})
	if err := s.Snapshot([]byte(`{"Leases":["second"]}`)); err == nil {
		t.Fatal("it did not fail")
	}
	heal(s)
	if told, _, _ := load(t, s); fmt.Sprint(told.Leases) != "[first]" {
		t.Error(told)
	}
}

func TestEntryJSONIsHexAndComesBack(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	e := putCredential(t, s, "cr_1", 1, "r", "sk-fake-1")
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Entry
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(e, back) {
		t.Errorf("%v\n%s", err, b)
	}
	if !strings.Contains(string(b), fmt.Sprintf(`"hash":"%x"`, e.Hash)) {
		t.Errorf("%s", b)
	}
}
