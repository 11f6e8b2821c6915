package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// elsewhere is a place to restore to on another machine: the same root key and nothing else.
func elsewhere(t testing.TB) Options {
	o := testOptions(t)
	o.Create = false
	return o
}

func backup(t testing.TB, s *Store) ([]byte, Backup) {
	t.Helper()
	var out bytes.Buffer
	b, err := s.Backup(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	if b.Bytes != int64(out.Len()) {
		t.Errorf("it says that it is %d bytes long, and is %d", b.Bytes, out.Len())
	}
	return out.Bytes(), b
}

func unpack(t testing.TB, file []byte, o Options) *Restoration {
	t.Helper()
	r, err := Unpack(t.Context(), bytes.NewReader(file), o, keyOf(o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Discard() })
	return r
}

// keyOf finds the key that o says.
func keyOf(o Options) KeyFinder {
	return func(string) ([]byte, string, error) { return bytes.Clone(o.RootKey), o.KeySource, nil }
}

func openTestBackup(in io.Reader) (*backupReader, error) {
	r, err := readBackup(in)
	if err == nil {
		err = r.unlock(testKey)
	}
	return r, err
}

func restored() Entry { return Entry{Event: EventStoreRestored} }

func TestABackupRestoredElsewhereIsTheStoreInANewEpoch(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	e := putCredential(t, s, "cr_1", 1, "the record", "sk-fake-1")
	for i := range 20 {
		record(t, s, leaseCreated(i))
	}
	file, b := backup(t, s)
	if seq, hash := s.Head(); b.HeadSeq != seq || b.Head != hash || b.Records != 1 || b.Versions != 1 {
		t.Errorf("%+v", b)
	}
	record(t, s, leaseCreated(99)) // after it

	o := elsewhere(t)
	r := unpack(t, file, o)
	if r.Known != nil || r.Missing() != 0 || r.Backup != b {
		t.Errorf("%+v", r)
	}
	if err := r.Finish(restored()); err != nil {
		t.Fatal(err)
	}
	got := mustOpen(t, o)
	if got.ID() != s.ID() || got.Fingerprint() != s.Fingerprint() {
		t.Error("it is another store")
	}
	if seq, _ := got.Head(); seq != b.HeadSeq+1 {
		t.Errorf("its trail ends at %d", seq)
	}
	if last, err := got.entryAt(b.HeadSeq + 1); err != nil || last.Event != EventStoreRestored || last.Details.Get("epoch") != "2" {
		t.Errorf("%+v, %v", last, err)
	}
	if report, err := got.Verify(t.Context(), s.Fingerprint()); err != nil || !report.Authenticated {
		t.Errorf("%+v, %v", report, err)
	}
	if plain, err := got.Record(KindCredential, "cr_1", e.Records[0]); err != nil || string(plain) != "the record" {
		t.Errorf("%q, %v", plain, err)
	}
	if v, err := got.Value("cr_1", 1, e.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-1" {
		t.Errorf("%v", err)
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Dir), ".*"))
	if len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// The anchor beside the root key knows what the backup is too old for.
func TestARestoreSaysHowManyEventsAreMissing(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	file, _ := backup(t, s)
	for i := range 7 {
		record(t, s, leaseCreated(10+i))
	}
	if err := os.Mkdir(o.Dir+".other", 0o700); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Dir += ".other"
	if _, err := Unpack(t.Context(), bytes.NewReader(file), other, keyOf(other)); !errors.Is(err, ErrLocked) {
		t.Fatalf("beside a daemon that works with this anchor: %v", err)
	}
	mustClose(t, s)
	if _, err := Unpack(t.Context(), bytes.NewReader(file), o, keyOf(o)); !errors.Is(err, ErrOccupied) {
		t.Fatalf("over a store that is there: %v", err)
	}
	if err := os.Rename(o.Dir, o.Dir+".lost"); err != nil {
		t.Fatal(err)
	}
	r := unpack(t, file, o)
	if r.Missing() != 7 || !r.Known.Until.Equal(day) {
		t.Errorf("missing %d, %+v", r.Missing(), r.Known)
	}
	if err := r.Finish(restored()); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	record(t, s, leaseCreated(50))
	mustClose(t, s)
	for _, folder := range []string{o.Dir, o.Dir + ".lost"} { // it has more events than the one that was restored, and is not this store any more
		if err := os.Rename(folder, o.Dir+".aside"); err != nil {
			t.Fatal(err)
		}
		if folder == o.Dir {
			if err := os.Rename(o.Dir+".lost", o.Dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(o); !errors.Is(err, ErrIntegrity) {
				t.Errorf("the folder from before the restore: %v", err)
			}
			break
		}
	}
}

// Every byte of the file is flipped, in turn in the small regions and here and there in the large ones, and the file is
// cut at every such place: each is found before anything is put in its place.
func TestAChangedOrCutBackupIsNamed(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for i := range 3 {
		putCredential(t, s, fmt.Sprintf("cr_%d", i), 1, strings.Repeat("r", 300<<10), "sk-fake")
	}
	file, _ := backup(t, s)
	o := elsewhere(t)
	read := func(b []byte) error {
		r, err := openTestBackup(bytes.NewReader(b))
		if err == nil {
			err = r.items(func(_, _ []byte) error { return nil })
		}
		return err
	}
	if err := read(file); err != nil {
		t.Fatal(err)
	}
	header := len(backupMagic) + 4 + int(binary.BigEndian.Uint32(file[len(backupMagic):])) + 32
	step := 1
	for i := 0; i < len(file); i += step {
		if step = 1; i > header+200 && i < len(file)-400 {
			step = 40_009
		}
		b := bytes.Clone(file)
		b[i] ^= 0x40
		if err := read(b); !errors.Is(err, ErrBackup) {
			t.Fatalf("byte %d of %d flipped: %v", i, len(file), err)
		}
		if err := read(file[:i]); !errors.Is(err, ErrBackup) {
			t.Fatalf("cut at %d of %d: %v", i, len(file), err)
		}
	}
	for what, b := range map[string][]byte{"half": file[:len(file)/2], "one more byte": append(bytes.Clone(file), 0), "twice": append(bytes.Clone(file), file...)} {
		_, err := Unpack(t.Context(), bytes.NewReader(b), o, keyOf(o))
		if !errors.Is(err, ErrBackup) {
			t.Errorf("%s: %v", what, err)
		}
	}
	other := o
	other.RootKey = bytes.Repeat([]byte{8}, 32)
	if _, err := Unpack(t.Context(), bytes.NewReader(file), other, keyOf(other)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another root key: %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(o.Dir)); err != nil || len(left) > 0 {
		t.Errorf("%v was left, %v", left, err)
	}
}

// Frames of two backups of one store, and of one backup in another order, do not make a third.
func TestFramesOfABackupCannotBeMoved(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for i := range 4 {
		putCredential(t, s, fmt.Sprintf("cr_%d", i), 1, strings.Repeat("r", 300<<10), "sk-fake")
	}
	one, _ := backup(t, s)
	two, _ := backup(t, s)
	a, b := frames(one), frames(two)
	if len(a) < 5 || len(a) != len(b) {
		t.Fatalf("%d and %d frames", len(a), len(b))
	}
	for what, parts := range map[string][][]byte{
		"two swapped":          with(a, a[2], a[1]),
		"one left out":         with(a, a[1]),
		"one twice":            with(a, a[1], a[1], a[2]),
		"one of the other":     with(a, a[1], b[2]),
		"another epoch":        append([][]byte{relabelled(a[0])}, a[1:]...),
		"the end at once":      {a[0], a[len(a)-1]},
		"the other's header":   append([][]byte{b[0]}, a[1:]...),
		"the other's end":      append(append([][]byte{}, a[:len(a)-1]...), b[len(b)-1]),
		"everything, no end":   a[:len(a)-1],
		"an end and then more": append(append([][]byte{}, a...), a[1]),
	} {
		r, err := openTestBackup(bytes.NewReader(bytes.Join(parts, nil)))
		if err == nil {
			err = r.items(func(_, _ []byte) error { return nil })
		}
		if !errors.Is(err, ErrBackup) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// with is a backup whose frames 1 and 2 are others.
func with(a [][]byte, instead ...[]byte) [][]byte {
	return slices.Concat(a[:1], instead, a[3:])
}

// relabelled is a header that says another epoch, with a sum that fits.
func relabelled(header []byte) []byte {
	b := bytes.Replace(header[:len(header)-32], []byte(`"epoch":1`), []byte(`"epoch":7`), 1)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// frames cuts a backup into its header and its frames.
func frames(file []byte) (parts [][]byte) {
	n := len(backupMagic) + 4 + int(binary.BigEndian.Uint32(file[len(backupMagic):])) + 32
	for len(file) > 0 {
		parts = append(parts, file[:n])
		if file = file[n:]; len(file) > 0 {
			n = frameStart + int(binary.BigEndian.Uint32(file[1:]))
		}
	}
	return parts
}

// What is written, destroyed and sealed under another root key while a backup is being read out does not show in it.
func TestABackupIsOfOneMoment(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	e := putCredential(t, s, "cr_1", 1, "r", "sk-fake-1")
	for i := range 8 {
		putCredential(t, s, fmt.Sprintf("cr_more%d", i), 1, strings.Repeat("m", 200<<10), "sk-fake")
	}
	var out slowly
	out.then = func() {
		putCredential(t, s, "cr_2", 1, "r", "sk-fake-2")
		if err := errors.Join(s.Destroy([]ValueRef{{"cr_1", 1}}), s.RotateRoot(bytes.Repeat([]byte{9}, 32)), s.FinishRotation()); err != nil {
			t.Error(err)
		}
	}
	b, err := s.Backup(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	if b.HeadSeq != 9 || b.Versions != 9 || b.Generation != 1 {
		t.Errorf("%+v", b)
	}
	o := elsewhere(t)
	r := unpack(t, out.Bytes(), o)
	if v, err := r.Store.Value("cr_1", 1, e.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-1" {
		t.Error(err)
	}
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is in its place though nobody finished it")
	}
}

// slowly does something after the first write.
type slowly struct {
	bytes.Buffer
	then func()
}

func (w *slowly) Write(b []byte) (int, error) {
	if then := w.then; then != nil && w.Len() > 0 {
		w.then = nil
		then()
	}
	return w.Buffer.Write(b)
}

func TestACancelledBackupIsNone(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if _, err := s.Backup(ctx, &out); err == nil {
		t.Error("no error")
	}
	if _, err := Unpack(t.Context(), &out, elsewhere(t), keyOf(elsewhere(t))); !errors.Is(err, ErrBackup) {
		t.Errorf("%v", err)
	}
}

// A crash after each step of the last part leaves no store, or the whole one in its new epoch.
func TestARestoreSurvivesACrashAtEachStep(t *testing.T) {
	for _, anchored := range []bool{true, false} {
		t.Run(fmt.Sprintf("anchor %v", anchored), func(t *testing.T) {
			o := testOptions(t)
			s := mustOpen(t, o)
			record(t, s, leaseCreated(1))
			file, b := backup(t, s)
			record(t, s, leaseCreated(2))
			mustClose(t, s)
			o.Create = false
			path := anchorPath(o.AnchorDir, s.keys.store[:])
			if err := os.RemoveAll(o.Dir); err != nil {
				t.Fatal(err)
			}
			if !anchored {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			old, _ := os.ReadFile(path)
			r := unpack(t, file, o)
			if err := r.Finish(restored()); err != nil {
				t.Fatal(err)
			}
			if anchored { // the folder was moved, the anchor not written
				if err := os.WriteFile(path, old, 0o600); err != nil {
					t.Fatal(err)
				}
			} else { // the anchor was written, the folder not moved
				if err := os.Rename(o.Dir, o.Dir+".aside"); err != nil {
					t.Fatal(err)
				}
				if _, err := Open(o); err == nil {
					t.Fatal("a store out of nothing")
				}
				r := unpack(t, file, o)
				if err := r.Finish(restored()); err != nil {
					t.Fatal(err)
				}
			}
			s = mustOpen(t, o)
			if seq, _ := s.Head(); seq != b.HeadSeq+1 {
				t.Errorf("the trail ends at %d", seq)
			}
			if report, err := s.Verify(t.Context(), ""); err != nil || report.Problem != "" {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}
