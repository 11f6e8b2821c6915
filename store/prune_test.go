package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// allowed is a limit that lets everything up to seq go.
func allowed(t testing.TB, s *Store, seq uint64) PruneLimits {
	t.Helper()
	hash, err := s.hashAt(seq)
	if err != nil {
		t.Fatal(err)
	}
	return PruneLimits{Before: day.Add(time.Hour), Exported: seq, Hash: hash}
}

// pruned is a store with events 1 to n, of which those up to seq are pruned. It tells its snapshot.
func pruned(t testing.TB, s *Store, n int, seq uint64) {
	t.Helper()
	groups(t, s, n)
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	if base, more, err := s.Prune(t.Context(), allowed(t, s, seq)); err != nil || more || base.Seq != seq {
		t.Fatalf("pruned up to %d, not %d: %v", base.Seq, seq, err)
	}
}

func TestPrunedTrailVerifiesAndLoadsAndGoesOn(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	pruned(t, s, 8, 5)
	if s.firstGroup() != 6 {
		t.Errorf("the first group that is left begins with %d", s.firstGroup())
	}
	check := func() {
		t.Helper()
		head, _ := s.Head()
		r, err := s.Verify(t.Context(), s.Fingerprint())
		if err != nil || !r.Authenticated || r.Entries != head-5 || r.Base == nil || r.Base.Seq != 5 || r.Base.Exported != 5 {
			t.Errorf("%+v, %v", r, err)
		}
		if got := all(t, s); len(got) != int(head-5) || got[0].Seq != 6 {
			t.Errorf("%d entries are read, from %d", len(got), got[0].Seq)
		}
	}
	check()
	groups(t, s, 2)
	mustClose(t, s)
	s = mustOpen(t, o)
	check()
	if _, from, replayed := load(t, s); from != 8 || replayed != 2 {
		t.Errorf("loaded from %d, %d replayed", from, replayed)
	}
}

// G9 over a trail that was pruned: what somebody does to it or to its base is found, and the first bad event named.
func TestG9PrunedTrailThatWasEditedIsFound(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, s *Store, older []byte)
		bad    uint64
	}{
		{"a flipped byte", func(t *testing.T, s *Store, _ []byte) {
			b := peek(t, s, groupKey(7))
			b[len(b)/2] ^= 1
			tamper(t, s, groupKey(7), b)
		}, 7},
		{"the first that is left missing", func(t *testing.T, s *Store, _ []byte) { drop(t, s, groupKey(6)) }, 6},
		{"one in the middle missing", func(t *testing.T, s *Store, _ []byte) { drop(t, s, groupKey(7)) }, 7},
		{"two swapped", func(t *testing.T, s *Store, _ []byte) {
			six, seven := peek(t, s, groupKey(6)), peek(t, s, groupKey(7))
			tamper(t, s, groupKey(6), seven)
			tamper(t, s, groupKey(7), six)
		}, 6},
		{"the last missing", func(t *testing.T, s *Store, _ []byte) { drop(t, s, groupKey(8)) }, 8},
		{"all that is left missing", func(t *testing.T, s *Store, _ []byte) {
			for seq := uint64(6); seq <= 8; seq++ {
				drop(t, s, groupKey(seq))
			}
		}, 6},
		{"the base missing", func(t *testing.T, s *Store, _ []byte) { drop(t, s, []byte(baseKey)) }, 1},
		{"the base flipped", func(t *testing.T, s *Store, _ []byte) {
			b := peek(t, s, []byte(baseKey))
			b[40] ^= 1
			tamper(t, s, []byte(baseKey), b)
		}, 1},
		{"an older base put back", func(t *testing.T, s *Store, older []byte) { tamper(t, s, []byte(baseKey), older) }, 4},
		{"the base of another trail", func(t *testing.T, s *Store, _ []byte) {
			forged := Base{Seq: 5, Hash: Digest{1}, Time: day, Pruned: day}
			tamper(t, s, []byte(baseKey), seal(s.keys.record, s.keys.signBase(forged), s.keys.baseAAD()))
		}, 6},
		{"a base without its signature", func(t *testing.T, s *Store, _ []byte) {
			b := s.keys.signBase(Base{Seq: 5})
			tamper(t, s, []byte(baseKey), seal(s.keys.record, append(b[:baseBody], make([]byte, 64)...), s.keys.baseAAD()))
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			s := mustOpen(t, o)
			pruned(t, s, 8, 3)
			older := peek(t, s, []byte(baseKey))
			if base, _, err := s.Prune(t.Context(), allowed(t, s, 5)); err != nil || base.Seq != 5 {
				t.Fatalf("%+v, %v", base, err)
			}
			c.damage(t, s, older)
			r, err := s.Verify(t.Context(), s.Fingerprint())
			if err != nil || r.FirstBad != c.bad || r.Problem == "" || r.Authenticated {
				t.Errorf("%+v, %v", r, err)
			}
			if err := s.Load(func([]byte, uint64) error { return nil }, func(*Entry) error { return nil }); c.bad == 1 && c.name != "the base missing" && !errors.Is(err, ErrIntegrity) {
				t.Errorf("it loads: %v", err)
			}
		})
	}
}

func TestNothingIsPrunedThatIsNotAllowed(t *testing.T) {
	later := func(s *Store, n int) { // one group whose last event is of another day
		for i := range n {
			c := leaseCreated(i)
			c.Entry.Time = day.Add(48 * time.Hour)
			if _, err := s.Submit(c).Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		make func(s *Store)
		want uint64
		snap int // the snapshot is taken after so many events; 0: none
		exp  uint64
	}{
		{"not exported", nil, 0, 8, 0},
		{"exported in part", nil, 3, 8, 3},
		{"no snapshot", nil, 0, 0, 8},
		{"the snapshot is older", nil, 4, 4, 8},
		{"the last group", nil, 7, 8, 8},
		{"too young", func(s *Store) { later(s, 2) }, 8, 8, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := mustOpen(t, testOptions(t))
			for i := 1; i <= 8; i++ {
				groups(t, s, 1)
				if i == c.snap {
					if err := s.Snapshot([]byte(`{}`)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c.make != nil {
				c.make(s)
				if err := s.Snapshot([]byte(`{}`)); err != nil {
					t.Fatal(err)
				}
			}
			l := PruneLimits{Before: day.Add(time.Hour)}
			if c.exp > 0 {
				l = allowed(t, s, c.exp)
			}
			if base, _, err := s.Prune(t.Context(), l); err != nil || base.Seq != c.want {
				t.Errorf("pruned up to %d, not %d: %v", base.Seq, c.want, err)
			}
		})
	}
}

func TestWholeGroupsArePruned(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	groups(t, s, 1)
	var last *Pending
	s.disk.Lock() // so that the next ones become one group
	for i := range 5 {
		last = s.Submit(leaseCreated(i))
	}
	s.disk.Unlock()
	if _, err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	groups(t, s, 1)
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	base, _, err := s.Prune(t.Context(), allowed(t, s, 4))
	if err != nil || base.Seq > 4 {
		t.Fatalf("%+v, %v", base, err)
	}
	first := s.firstGroup()
	if first != base.Seq+1 {
		t.Errorf("the trail begins after %d, and its first group with %d", base.Seq, first)
	}
	if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// What a crash leaves after each step of Prune opens, verifies and is gone after the next.
func TestPruneThatIsCutShortIsFinishedByTheNext(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	groups(t, s, 8)
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	five, err := s.hashAt(5)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.moveBase(Base{Seq: 5, Hash: five, Time: day, Pruned: day, Exported: 5}); err != nil {
		t.Fatal(err)
	}
	reopened := func(left uint64) {
		t.Helper()
		mustClose(t, s)
		s = mustOpen(t, o)
		if r, err := s.Verify(t.Context(), s.Fingerprint()); err != nil || !r.Authenticated || r.Entries != 3 {
			t.Errorf("%+v, %v", r, err)
		}
		if from, _, _ := load(t, s); len(from.Leases) != 0 {
			t.Error("events before the base were replayed")
		}
		if s.firstGroup() != left {
			t.Errorf("the first group that is left begins with %d, not %d", s.firstGroup(), left)
		}
	}
	reopened(1)
	for seq := uint64(1); seq <= 3; seq++ { // the drop came this far
		drop(t, s, groupKey(seq))
	}
	reopened(4)
	if _, _, err := s.Prune(t.Context(), PruneLimits{}); err != nil {
		t.Fatal(err)
	}
	reopened(6)
}

func TestPrunedTrailWithoutAGoodSnapshotIsRefused(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	pruned(t, s, 8, 5)
	drop(t, s, []byte(manifestKey))
	err := s.Load(func([]byte, uint64) error { return errors.New("something is restored") }, func(*Entry) error { return nil })
	if !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "after event 5") {
		t.Errorf("got %v", err)
	}
}

func TestPruningGivesTheDiskBack(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	const n = 60_000
	var last *Pending
	for i := range n {
		last = s.Submit(leaseCreated(i))
		if i%4096 == 0 {
			if _, err := last.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	groups(t, s, 1)
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	before := tableBytes(t, o)
	s = mustOpen(t, o)
	begun := time.Now()
	head, _ := s.Head()
	for more := true; more; {
		var err error
		if _, more, err = s.Prune(t.Context(), allowed(t, s, head)); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(begun)
	keys := countKeys(t, s, trailPrefix)
	base, _ := s.Base()
	mustClose(t, s)
	after := tableBytes(t, o)
	t.Logf("%d events: tables of %d KiB before, %d KiB after pruning up to %d in %v; %d groups left", n, before>>10, after>>10, base.Seq, took, keys)
	if after > before/10 || before < 1<<20 {
		t.Errorf("tables of %d bytes before, %d after", before, after)
	}
	s = mustOpen(t, o)
	all := 0
	err := s.db.View(func(txn *badger.Txn) error { // tombstones would be among all versions
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix(), AllVersions: true})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			all++
		}
		return nil
	})
	if err != nil || all != keys {
		t.Errorf("%d keys of groups are left, %d of them live: %v", all, keys, err)
	}
}

func TestGroupPrefixesNameTheRangeAndNoMore(t *testing.T) {
	for _, r := range [][2]uint64{{1, 1}, {1, 255}, {1, 256}, {1, 70_000}, {65_536, 65_536}, {65_536, 131_071}, {300_000, 1_000_000}} {
		prefixes := groupPrefixes(r[0], r[1])
		if len(prefixes) > 600 {
			t.Errorf("%v: %d prefixes", r, len(prefixes))
		}
		in := func(seq uint64) bool {
			for _, p := range prefixes {
				if bytes.HasPrefix(groupKey(seq), p) {
					return true
				}
			}
			return false
		}
		for _, seq := range []uint64{r[0], (r[0] + r[1]) / 2, r[1]} {
			if !in(seq) {
				t.Errorf("%v: %d is not in", r, seq)
			}
		}
		for _, seq := range []uint64{r[1] + 1, r[1] + 255, r[1] + 256, r[1] + 65_536, 1 << 40} {
			if in(seq) {
				t.Errorf("%v: %d is in", r, seq)
			}
		}
	}
}

// Readers that are under way while the trail is pruned see a whole trail.
func TestReadingGoesOnWhileTheTrailIsPruned(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	groups(t, s, 300)
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		for range 40 {
			if r, err := s.Verify(context.Background(), ""); err != nil || r.Problem != "" {
				done <- fmt.Errorf("%+v, %w", r, err)
				return
			}
		}
		done <- nil
	}()
	for seq := uint64(50); seq <= 250; seq += 50 {
		if _, _, err := s.Prune(t.Context(), allowed(t, s, seq)); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func exported(t testing.TB, s *Store, from uint64, since time.Time) ([]byte, ExportEnd) {
	t.Helper()
	var b bytes.Buffer
	end, err := s.Export(t.Context(), &b, from, since)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), end
}

func exportFiles(data ...[]byte) (files []ExportFile) {
	for i, d := range data {
		files = append(files, ExportFile{fmt.Sprintf("file%d", i+1), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d)), nil }})
	}
	return files
}

func TestExportsVerifyWithoutTheStoreAndMeetItsBase(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	putCredential(t, s, "cr_1", 1, `{"name":"<x>"}`, "sk-fake-1")
	groups(t, s, 4)
	one, first := exported(t, s, 0, time.Time{})
	c := leaseCreated(9)
	c.Entry.Purpose, c.Entry.Time = "a \"purpose\" with <html> &  and ünïcode", day.Add(time.Hour)
	record(t, s, c)
	groups(t, s, 2)
	two, second := exported(t, s, first.Seq+1, time.Time{})
	if first.Seq != 5 || second.From != 6 || second.Seq != 8 {
		t.Fatalf("%+v %+v", first, second)
	}
	if err := s.CheckExport(second); err != nil {
		t.Error(err)
	}
	if bytes.Contains(one, []byte("sk-fake")) {
		t.Error("a value is in an export")
	}
	if err := s.Snapshot([]byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	base, _, err := s.Prune(t.Context(), PruneLimits{Before: day.Add(48 * time.Hour), Exported: second.Seq, Hash: second.Hash})
	if err != nil || base.Seq != 7 {
		t.Fatalf("%+v, %v", base, err)
	}
	if err := s.CheckExport(first); err != nil {
		t.Errorf("an export of what was pruned: %v", err)
	}
	r, err := VerifyExports(t.Context(), exportFiles(two, one), s.Fingerprint(), &base)
	if err != nil || r.Problem != "" || !r.Authenticated || !r.MeetsBase || r.Entries != 8 || r.From != 1 || r.Seq != 8 {
		t.Errorf("%+v, %v", r, err)
	}
	rest, _ := exported(t, s, 0, time.Time{})
	r, err = VerifyExports(t.Context(), exportFiles(one, two, rest), "", &base)
	if err != nil || r.Problem != "" || r.Authenticated || r.Entries != 8 {
		t.Errorf("overlapping: %+v, %v", r, err)
	}
	late, end := exported(t, s, 0, day.Add(24*time.Hour))
	if r, err := VerifyExports(t.Context(), exportFiles(late), "", nil); err != nil || r.Problem != "" || end.From != 9 {
		t.Errorf("an empty one: %+v, %v", r, err)
	}
	if r, err := VerifyExports(t.Context(), exportFiles(one), "", &base); err != nil || !strings.Contains(r.Problem, "others are missing") {
		t.Errorf("a file is missing: %+v, %v", r, err)
	}
}

func TestExportThatWasEditedIsFound(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	groups(t, s, 3)
	one, _ := exported(t, s, 0, time.Time{})
	groups(t, s, 3)
	two, _ := exported(t, s, 4, time.Time{})
	other := mustOpen(t, testOptions(t))
	groups(t, other, 6)
	foreign, _ := exported(t, other, 4, time.Time{})
	lines := bytes.SplitAfter(two, []byte("\n")) // begin, 4, 5, 6, end
	edit := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	swap := func(old, new string) []byte { return bytes.Replace(two, []byte(old), []byte(new), 1) }
	for _, c := range []struct {
		name string
		two  []byte
		bad  uint64
		says string
	}{
		{"another purpose", swap("summarize", "summarise"), 4, "hash"},
		{"a member twice", swap(`"seq":4,`, `"seq":4,"seq":4,`), 4, "not written"},
		{"a member in another case", swap(`"purpose"`, `"Purpose"`), 4, "not written"},
		{"a member that is not known", swap(`"seq":4,`, `"seq":4,"by":"x",`), 4, "not written"},
		{"one missing", edit(lines[0], lines[1], lines[3], lines[4]), 5, "stands in its place"},
		{"two swapped", edit(lines[0], lines[2], lines[1], lines[3], lines[4]), 4, "stands in its place"},
		{"the first missing", edit(lines[0], lines[2], lines[3], lines[4]), 4, "stands in its place"},
		{"cut short", edit(lines[0], lines[1], lines[2]), 0, "no end after event 5"},
		{"cut in a line", two[:len(two)-300], 0, "end"},
		{"the last missing", edit(lines[0], lines[1], lines[2], lines[4]), 0, "stops at event 5"},
		{"something after the end", edit(two, lines[1]), 0, "after its end"},
		{"another time of export", swap(`"time":"2026-11-23T12:00:00Z","public_key"`, `"time":"2026-11-23T13:00:00Z","public_key"`), 0, "signature"},
		{"another store's", foreign, 0, "is of store"},
		{"no export", []byte("{}\n"), 0, "does not begin"},
		{"empty", nil, 0, "empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := VerifyExports(t.Context(), exportFiles(one, c.two), s.Fingerprint(), nil)
			if err != nil || r.FirstBad != c.bad || !strings.Contains(r.Problem, c.says) || r.File != "file2" || r.Authenticated {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	if r, err := VerifyExports(t.Context(), exportFiles(two, one[:0:0]), "", nil); err != nil || r.Problem == "" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _ := VerifyExports(t.Context(), exportFiles(one, two), "SHA256:another", nil); r.Problem == "" || r.Authenticated {
		t.Errorf("another key: %+v", r)
	}
}

// tableBytes is the size of Badger's tables.
func tableBytes(t testing.TB, o Options) (size int64) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(storeDir(o.Dir), "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if info, err := os.Stat(table); err == nil {
			size += info.Size()
		}
	}
	return size
}

// skim and entry agree on every encoding, sound or not.
func FuzzSkim(f *testing.F) {
	e := leaseCreated(1).Entry
	e.Seq, e.Records = 7, []RecordRef{{KindToken, "tk_1", 0, 7, Digest{1}}}
	f.Add(appendEntry(nil, &e, encodeBody(nil, &e)))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var d decoder
		whole, wholeErr := d.entry(b)
		var skimmed Entry
		err := d.skim(b, &skimmed)
		if (err == nil) != (wholeErr == nil) {
			t.Fatalf("entry says %v, skim %v", wholeErr, err)
		}
		if err == nil && (whole.Seq != skimmed.Seq || whole.Prev != skimmed.Prev || whole.Hash != skimmed.Hash) {
			t.Fatal("they read another entry")
		}
	})
}
