package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// content is the bytes of each file of the store but Badger's pid.
func content(t *testing.T, o Options) map[string][32]byte {
	t.Helper()
	all := map[string][32]byte{}
	for _, dir := range []string{o.Dir, storeDir(o.Dir), o.AnchorDir} {
		files, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, f := range files {
			if !f.Type().IsRegular() || f.Name() == lockName {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.Join(dir, f.Name())] = sha256.Sum256(data)
		}
	}
	return all
}

// lived is a store with a past: two tables and more from orderly stops, and, with killed, a log that has the newest of
// its 12 events.
func lived(t *testing.T, killed bool) Options {
	t.Helper()
	o := testOptions(t)
	for part := range 3 {
		s := mustOpen(t, o)
		if part == 0 {
			putCredential(t, s, "cr_1", 1, `{"name":"openai-prod"}`, "sk-fake-1")
		} else {
			record(t, s, leaseCreated(part))
		}
		for i := range 3 {
			record(t, s, leaseCreated(10*part+i))
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		if part == 2 && killed {
			o = copied(t, o)
		}
		mustClose(t, s)
	}
	o.Create = false
	return o
}

func newest(t *testing.T, o Options, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(storeDir(o.Dir), pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return paths[len(paths)-1]
}

// garbage puts garbage in the place of a file.
func garbage(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Repeat([]byte{0xa5, 0x5a, 0x13}, int(info.Size()/3)+1), 0o600)
}

// Whatever becomes of a file of the store: the store is refused and says which file or how many events, the folder is
// left as it was found, and accepting the loss opens what is left, once.
func TestDamageIsFoundNamedLeftAndAccepted(t *testing.T) {
	const all = 12
	cases := []struct {
		name   string
		killed bool
		harm   func(t *testing.T, o Options) error
		says   string
		held   uint64 // at most so many events are left; and at least held/2
	}{
		{"the log is gone", true, func(t *testing.T, o Options) error { return os.Remove(newest(t, o, "*.mem")) }, "4 events are missing, from event 9 on", 8},
		{"a bit of the log", true, func(t *testing.T, o Options) error { return flip(newest(t, o, "*.mem"), 600) }, ".mem can't be read from byte ", 11},
		{"garbage for the log", true, func(t *testing.T, o Options) error { return garbage(newest(t, o, "*.mem")) }, ".mem", 8},
		{"the log is cut", true, func(t *testing.T, o Options) error { return os.Truncate(newest(t, o, "*.mem"), 900) }, ".mem can't be read from byte ", 11},
		{"a table is gone", false, func(t *testing.T, o Options) error { return os.Remove(newest(t, o, "*.sst")) }, ".sst", 8},
		{"a bit of a table", false, func(t *testing.T, o Options) error { return flip(newest(t, o, "*.sst"), 100) }, ".sst", 8},
		{"a table is cut", false, func(t *testing.T, o Options) error {
			path := newest(t, o, "*.sst")
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-1)
		}, ".sst", 8},
		{"garbage for a table", false, func(t *testing.T, o Options) error { return garbage(newest(t, o, "*.sst")) }, ".sst", 8},
		{"the MANIFEST is gone", false, func(t *testing.T, o Options) error { return os.Remove(newest(t, o, "MANIFEST")) }, "MANIFEST", all},
		{"a bit of the MANIFEST", false, func(t *testing.T, o Options) error { return flip(newest(t, o, "MANIFEST"), 20) }, "MANIFEST", all},
		{"the MANIFEST is cut", false, func(t *testing.T, o Options) error {
			path := newest(t, o, "MANIFEST")
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-1)
		}, "the MANIFEST does not name 000", all},
		{"the MANIFEST is cut after a kill", true, func(t *testing.T, o Options) error { // the end of the trail is in the log
			path := newest(t, o, "MANIFEST")
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-1)
		}, "the MANIFEST does not name 000", all},
		{"the MANIFEST is cut to its first bytes after a kill", true, func(t *testing.T, o Options) error {
			return os.Truncate(newest(t, o, "MANIFEST"), 8)
		}, "the MANIFEST does not name 000", all},
		{"the MANIFEST is empty", true, func(t *testing.T, o Options) error { return os.Truncate(newest(t, o, "MANIFEST"), 0) }, "MANIFEST", all},
		{"garbage for the MANIFEST", true, func(t *testing.T, o Options) error { return garbage(newest(t, o, "MANIFEST")) }, "MANIFEST", all},
		{"KEYREGISTRY is gone", false, func(t *testing.T, o Options) error { return os.Remove(newest(t, o, "KEYREGISTRY")) }, "KEYREGISTRY", all},
		{"garbage for KEYREGISTRY", true, func(t *testing.T, o Options) error { return garbage(newest(t, o, "KEYREGISTRY")) }, "", all},
		{"all of it is gone", false, func(t *testing.T, o Options) error { return os.RemoveAll(storeDir(o.Dir)) }, "12 events", 0},
		{"the folder is empty", false, func(t *testing.T, o Options) error {
			return errors.Join(os.RemoveAll(storeDir(o.Dir)), os.Mkdir(storeDir(o.Dir), 0o700))
		}, "12 events", 0},
		{"the anchor is gone", false, func(t *testing.T, o Options) error { return removeAll(o.AnchorDir, "anchor.*") }, "anchor", all},
		{"a bit of the anchor", true, func(t *testing.T, o Options) error {
			return errors.Join(flipIn(o.AnchorDir, "anchor.*", 33))
		}, "anchor", all},
	}
	lives := map[bool]Options{true: lived(t, true), false: lived(t, false)}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := copied(t, lives[c.killed])
			if err := c.harm(t, o); err != nil {
				t.Fatal(err)
			}
			found := content(t, o)
			for range 2 {
				_, err := Open(o)
				if !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v; want it to be refused naming %q", err, c.says)
				}
			}
			left := content(t, o)
			for path, sum := range found {
				if left[path] != sum {
					t.Errorf("%s is not what was found", path)
				}
			}
			if len(left) != len(found) {
				t.Errorf("%d files were found, %d are left", len(found), len(left))
			}
			s, loss, err := OpenLosing(o)
			if err != nil {
				t.Fatal(err)
			}
			if loss.Held > c.held || loss.Held < c.held/2 || !loss.Unknown && loss.Missing() != all-loss.Held {
				t.Errorf("the loss is %+v", loss)
			}
			aside, err := os.ReadDir(loss.Aside)
			if err != nil || len(aside) == 0 {
				t.Errorf("nothing is aside: %v", err)
			}
			e, err := s.entryAt(loss.Held + 1)
			if err != nil || e.Event != EventLossAccepted {
				t.Fatalf("the next event is %+v, %v", e, err)
			}
			mustClose(t, s)
			s = mustOpen(t, o)
			record(t, s, leaseCreated(99))
			if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" || r.Entries != loss.Held+2 {
				t.Errorf("afterwards: %+v, %v", r, err)
			}
			mustClose(t, s)
			if _, _, err := OpenLosing(o); !errors.Is(err, ErrNothingLost) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

func flipIn(dir, pattern string, at int) error {
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("%d files, %v", len(paths), err)
	}
	return flip(paths[0], at)
}

// A trail that does not hold in the middle is kept up to there, and the snapshot of later goes.
func TestATrailThatBreaksInTheMiddleIsKeptUpToThere(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	groups(t, s, 9)
	if err := s.Snapshot([]byte("of event 9")); err != nil {
		t.Fatal(err)
	}
	tamper(t, s, groupKey(6), []byte("nothing of ours"))
	mustClose(t, s)
	s = mustOpen(t, o) // its end holds; who reads all of it finds out
	if r, err := s.Verify(t.Context(), ""); err != nil || r.FirstBad != 6 {
		t.Errorf("verify: %+v, %v", r, err)
	}
	mustClose(t, s)
	s, loss, err := OpenLosing(o)
	if err != nil || loss.Held != 5 || loss.Missing() != 4 || !strings.Contains(loss.Reason, "event 6") {
		t.Fatalf("%+v, %v", loss, err)
	}
	told := 0
	err = s.Load(func(snapshot []byte, seq uint64) error {
		if snapshot != nil {
			t.Errorf("the snapshot of event %d is believed", seq)
		}
		return nil
	}, func(*Entry) error { told++; return nil })
	if err != nil || told != 6 {
		t.Errorf("%d events are told, %v", told, err)
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, o))
}

func TestAWrongKeyAndADamagedKeycheckAreNoLossToAccept(t *testing.T) {
	o := lived(t, false)
	other := o
	other.RootKey = bytes.Repeat([]byte{8}, 32)
	if _, _, err := OpenLosing(other); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a wrong key: %v", err)
	}
	if err := os.Remove(filepath.Join(o.Dir, keycheckName)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenLosing(o); !errors.Is(err, ErrKeycheck) || !errors.Is(err, ErrIntegrity) {
		t.Errorf("without a keycheck: %v", err)
	}
	if lost, _ := filepath.Glob(filepath.Join(o.Dir, "lost-*")); len(lost) > 0 {
		t.Errorf("%v", lost)
	}
}

// A process that died between Badger's opening and the check leaves a copy by which the next start goes.
func TestAnOpeningThatDiedIsUndone(t *testing.T) {
	o := lived(t, false)
	found := content(t, o)
	c := safetyOf(o.Dir)
	if err := c.make(); err != nil {
		t.Fatal(err)
	}
	for _, harm := range []error{removeAll(c.dir, "*.sst"), os.WriteFile(filepath.Join(c.dir, "MANIFEST"), nil, 0o600),
		os.WriteFile(filepath.Join(c.dir, "00077.mem"), []byte("begun"), 0o600)} {
		if harm != nil {
			t.Fatal(harm)
		}
	}
	if err := asItWas(c, o.Log); err != nil {
		t.Fatal(err)
	}
	left := content(t, o)
	for path, sum := range found {
		if left[path] != sum {
			t.Errorf("%s is not what it was", path)
		}
	}
	if len(left) != len(found) {
		t.Errorf("%d files were there, %d are left", len(found), len(left))
	}

	if err := c.make(); err != nil { // somebody put another folder in its place since
		t.Fatal(err)
	}
	aside := c.dir + ".aside"
	if err := errors.Join(os.Rename(c.dir, aside), os.Rename(storeDir(copied(t, lived(t, true)).Dir), c.dir)); err != nil {
		t.Fatal(err)
	}
	theirs := content(t, o)
	if err := asItWas(c, o.Log); err != nil {
		t.Fatal(err)
	}
	if len(theirs) != len(content(t, o)) || theirs[newest(t, o, "MANIFEST")] != content(t, o)[newest(t, o, "MANIFEST")] {
		t.Error("another folder was overwritten")
	}
	if err := errors.Join(os.RemoveAll(c.dir), os.Rename(aside, c.dir)); err != nil {
		t.Fatal(err)
	}

	if err := c.make(); err != nil { // a power cut: the copy was not whole
		t.Fatal(err)
	}
	if err := flip(filepath.Join(c.safe, "MANIFEST"), 9); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, o))
	if _, err := os.Stat(c.safe); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
}

// The trial is held after an unclean stop, on a copy; what it says is believed where it is bad news, and no trial is no
// reason not to start.
func TestTrialAfterAnUncleanStop(t *testing.T) {
	o := lived(t, true)
	var seen []string
	trialOf := func(answer any, err error) Options {
		to := o
		to.Trial = func(_ context.Context, dir string) ([]byte, error) {
			seen = append(seen, dir)
			out, _ := json.Marshal(answer)
			return out, err
		}
		return to
	}
	if _, err := Open(trialOf(nil, fmt.Errorf("%w: panic: of Badger", ErrDied))); !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "panic: of Badger") {
		t.Errorf("a trial that died: %v", err)
	}
	if _, err := Open(trialOf(tried{End: 11}, nil)); !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "1 events are missing, from event 12 on") {
		t.Errorf("a trial that found too little: %v", err)
	}
	mustClose(t, mustOpen(t, trialOf(nil, errors.New("fork: no more processes"))))
	if len(seen) != 3 {
		t.Fatalf("trials in %v", seen)
	}
	mustClose(t, mustOpen(t, trialOf(tried{}, nil))) // after an orderly stop
	if len(seen) != 3 {
		t.Errorf("a trial after an orderly stop: %v", seen)
	}
	for _, dir := range seen {
		if _, err := os.Stat(dir); dir == storeDir(o.Dir) || !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestTryOutReadsTheEndAndRefusesALiveFolder(t *testing.T) {
	o := lived(t, true)
	dir := filepath.Join(o.Dir, trialName)
	if err := copyStore(storeDir(o.Dir), dir, true); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := TryOut(dir, &out); err != nil || strings.TrimSpace(out.String()) != `{"end":12}` {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := TryOut(storeDir(o.Dir), &out); err == nil {
		t.Error("it opens the store itself")
	}
}

// Of a trail that was pruned the snapshot tells the beginning. Without it nothing is given until the loss is accepted;
// then nothing is known but what comes after.
func TestAPrunedTrailWithoutItsSnapshotBeginsEmpty(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"the snapshot", "the base", "the first group"} {
		o := testOptions(t)
		s := mustOpen(t, o)
		groups(t, s, 9)
		if err := s.Snapshot([]byte("of event 9")); err != nil {
			t.Fatal(err)
		}
		pruned(t, s, 0, 5)
		switch lost {
		case "the snapshot":
			drop(t, s, []byte(manifestKey))
			drop(t, s, []byte(olderKey))
		case "the base":
			drop(t, s, []byte(baseKey))
		default:
			tamper(t, s, groupKey(6), []byte("nothing of ours"))
		}
		mustClose(t, s)
		s, loss, err := OpenLosing(o)
		if err != nil || loss.Held != 9 || loss.Emptied != (lost == "the snapshot") {
			t.Fatalf("%s: %+v, %v", lost, loss, err)
		}
		for range 2 {
			var told []uint64
			err = s.Load(func(snapshot []byte, seq uint64) error {
				if seq != 9 || (len(snapshot) == 0) != loss.Emptied {
					t.Errorf("%s: it begins with %q of event %d", lost, snapshot, seq)
				}
				return nil
			}, func(e *Entry) error { told = append(told, e.Seq); return nil })
			if err != nil || len(told) != 1 || told[0] != 10 {
				t.Errorf("%s: %v are told, %v", lost, told, err)
			}
			mustClose(t, s)
			s = mustOpen(t, o)
		}
		if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" {
			t.Errorf("%s: %+v, %v", lost, r, err)
		}
		mustClose(t, s)
	}
}
