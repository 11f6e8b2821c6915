package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/secret"
)

var (
	testKey = bytes.Repeat([]byte{7}, 32)
	day     = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func testOptions(t testing.TB) Options {
	dir := t.TempDir()
	return Options{Dir: filepath.Join(dir, "data"), AnchorDir: filepath.Join(dir, "config"), RootKey: testKey,
		KeySource: "file", Create: true, Log: zerolog.Nop(), Now: func() time.Time { return day }}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// leaseCreated is a Change as the broker makes them most.
func leaseCreated(n int) Change {
	return Change{Entry: Entry{
		Event: EventLeaseCreated, Identity: EntryIdentity{Type: "agent", Name: "claude-code", Proof: "declared", By: "uid:1000", Session: "s1"},
		Credential: "openai-prod", CredentialID: "cr_1", Version: 1, LeaseID: fmt.Sprintf("ls_%08d", n), Purpose: "summarize the report",
		Details: DetailsOf("delivery", "value", "ttl", "30m", "expires_at", day.Format(time.RFC3339Nano)),
	}}
}

func record(t testing.TB, s *Store, c Change) Entry {
	t.Helper()
	e, err := s.Submit(c).Wait()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func putCredential(t testing.TB, s *Store, id string, version int, plain, value string) Entry {
	t.Helper()
	return record(t, s, Change{
		Entry:   Entry{Event: EventCredentialCreated, Credential: "openai-prod", CredentialID: id, Version: version},
		Records: []RecordWrite{{KindCredential, id, []byte(plain)}},
		Values:  []ValueWrite{{id, version, secret.New([]byte(value))}},
	})
}

// hashFolder is every byte and mode under dir.
func hashFolder(t testing.TB, dir string) string {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			h.Write(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestWhatWasAcknowledgedIsThereAfterReopen(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	putCredential(t, s, "cr_1", 1, `{"name":"openai-prod"}`, "sk-fake-1")
	var last Entry
	for i := range 5 {
		last = record(t, s, leaseCreated(i))
	}
	id, print := s.ID(), s.Fingerprint()
	mustClose(t, s)
	mustClose(t, s) // idempotent

	o.Create = false
	s = mustOpen(t, o)
	if seq, hash := s.Head(); seq != 6 || hash != last.Hash {
		t.Fatalf("head is %d %x, want %d %x", seq, hash, last.Seq, last.Hash)
	}
	if s.ID() != id || s.Fingerprint() != print {
		t.Error("the store has another id or fingerprint")
	}
	entries := all(t, s)
	if len(entries) != 6 || entries[0].Event != EventCredentialCreated || entries[5].LeaseID != "ls_00000004" {
		t.Fatalf("trail: %+v", entries)
	}
	ref := entries[0].Records[0]
	plain, err := s.Record(KindCredential, "cr_1", ref)
	if err != nil || string(plain) != `{"name":"openai-prod"}` {
		t.Errorf("record: %q, %v", plain, err)
	}
	value, err := s.Value("cr_1", 1, entries[0].Records[1])
	if err != nil || string(value.Bytes()) != "sk-fake-1" {
		t.Errorf("value: %v", err)
	}
}

func TestWrongKeyChangesNoByte(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	mustClose(t, s)
	root := filepath.Dir(o.Dir)
	before := hashFolder(t, root)
	for _, create := range []bool{false, true} {
		o.RootKey, o.Create = bytes.Repeat([]byte{8}, 32), create
		if _, err := Open(o); !errors.Is(err, ErrWrongKey) {
			t.Fatalf("create %v: %v", create, err)
		}
	}
	if hashFolder(t, root) != before {
		t.Error("the folder was changed")
	}
}

func TestNoStoreIsNotMadeUnasked(t *testing.T) {
	o := testOptions(t)
	o.Create = false
	if _, err := Open(o); !errors.Is(err, ErrNoStore) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(o.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a folder was made")
	}
}

func TestSecondOpenIsLocked(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	// Badger's own words, should our look at its lock not have seen it.
	if _, err := openBadgerUnchecked(o); !errors.Is(err, ErrLocked) {
		t.Fatalf("badger's error text is not known any more: %v", err)
	}
	record(t, s, leaseCreated(1))
}

func TestKeySourceIsRecorded(t *testing.T) {
	o := testOptions(t)
	if _, err := KeySource(o.Dir); !errors.Is(err, ErrNoStore) {
		t.Fatal(err)
	}
	mustOpen(t, o)
	if source, err := KeySource(o.Dir); source != "file" || err != nil {
		t.Errorf("%q, %v", source, err)
	}
}

func TestMissingOrDamagedFilesAreNamed(t *testing.T) {
	cases := []struct {
		name   string
		damage func(t *testing.T, o Options, anchor string) error
		want   error
		says   string
	}{
		{"keycheck missing", func(t *testing.T, o Options, _ string) error { return os.Remove(filepath.Join(o.Dir, "keycheck")) }, ErrIntegrity, "keycheck"},
		{"keycheck garbage", func(t *testing.T, o Options, _ string) error {
			return os.WriteFile(filepath.Join(o.Dir, "keycheck"), []byte("{"), 0o600)
		}, ErrIntegrity, "keycheck"},
		{"keycheck of 1 MiB", func(t *testing.T, o Options, _ string) error {
			return os.WriteFile(filepath.Join(o.Dir, "keycheck"), make([]byte, 1<<20), 0o600)
		}, ErrIntegrity, "keycheck"},
		{"anchor missing", func(t *testing.T, o Options, a string) error { return os.Remove(a) }, ErrIntegrity, "anchor"},
		{"anchor flipped", func(t *testing.T, o Options, a string) error { return flip(a, 50) }, ErrIntegrity, "anchor"},
		{"anchor longer", func(t *testing.T, o Options, a string) error {
			data, _ := os.ReadFile(a)
			return os.WriteFile(a, append(data, 0), 0o600)
		}, ErrIntegrity, "anchor"},
		{"store gone", func(t *testing.T, o Options, _ string) error { return os.RemoveAll(filepath.Join(o.Dir, "store")) }, ErrIntegrity, "3 events"},
		{"manifest gone", func(t *testing.T, o Options, _ string) error {
			return os.Remove(filepath.Join(o.Dir, "store", "MANIFEST"))
		}, ErrIntegrity, "MANIFEST"},
		{"folder open to others", func(t *testing.T, o Options, _ string) error { return os.Chmod(o.Dir, 0o750) }, ErrFolder, "chmod 700"},
		{"folder a symlink", func(t *testing.T, o Options, _ string) error {
			if err := os.Rename(o.Dir, o.Dir+"2"); err != nil {
				return err
			}
			return os.Symlink(o.Dir+"2", o.Dir)
		}, ErrFolder, "symbolic link"},
		{"anchor a symlink", func(t *testing.T, o Options, a string) error {
			if err := os.Rename(a, a+"2"); err != nil {
				return err
			}
			return os.Symlink(a+"2", a)
		}, ErrFolder, "symbolic link"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			s := mustOpen(t, o)
			for i := range 3 {
				record(t, s, leaseCreated(i))
			}
			mustClose(t, s)
			if err := c.damage(t, o, s.anchor.file.Name()); err != nil {
				t.Fatal(err)
			}
			_, err := Open(o)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v; want %v naming %q", err, c.want, c.says)
			}
		})
	}
}

func flip(path string, at int) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data[at] ^= 1
	return os.WriteFile(path, data, 0o600)
}

// A crash at each step of making a store leaves something that the next Open finishes.
func TestMakingAStoreSurvivesACrashAtEachStep(t *testing.T) {
	for _, left := range []string{"folder", "keycheck", "anchor", "badger"} {
		t.Run(left, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			s := mustOpen(t, o)
			mustClose(t, s)
			anchor := s.anchor.file.Name()
			switch left {
			case "folder":
				os.Remove(filepath.Join(o.Dir, "keycheck"))
				fallthrough
			case "keycheck":
				os.Remove(anchor)
				fallthrough
			case "anchor":
				os.RemoveAll(filepath.Join(o.Dir, "store"))
			}
			if left != "badger" {
				asIs := o
				asIs.Create = false
				if _, err := Open(asIs); !errors.Is(err, ErrNoStore) {
					t.Fatalf("without Create: %v", err)
				}
			}
			s = mustOpen(t, o)
			record(t, s, leaseCreated(1))
		})
	}
}

func TestAStoreRolledBackIsRefusedWithACount(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	mustClose(t, s)
	yesterday := o.Dir + "-yesterday"
	if err := os.CopyFS(yesterday, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	for i := range 7 {
		record(t, s, leaseCreated(i))
	}
	mustClose(t, s)
	if err := errors.Join(os.RemoveAll(o.Dir), os.Rename(yesterday, o.Dir), os.Chmod(o.Dir, 0o700), os.Chmod(storeDir(o.Dir), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(o)
	if !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "7 events are missing") {
		t.Errorf("got %v", err)
	}
}

func TestEmptyFolderOfOursIsClosedToOthers(t *testing.T) {
	o := testOptions(t)
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, o)
	if info, err := os.Stat(o.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAllFilesAreTheOwnersOnly(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	err := filepath.WalkDir(filepath.Dir(o.Dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == filepath.Dir(o.Dir) {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEmptyMemtableDoesNotFailTheOpen(t *testing.T) {
	o := testOptions(t)
	mustClose(t, mustOpen(t, o))
	if err := os.WriteFile(filepath.Join(storeDir(o.Dir), "00099.mem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, o)
}

// Badger tries for ever to write out a table where its folder is gone.
func TestAStoreWhoseFolderIsGoneCanBeClosed(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		if err == nil {
			t.Error("it says that all was written")
		}
	case <-time.After(6 * closeTime):
		t.Fatal("it never closes")
	}
}

// Whatever byte of a table is another, that table is named before Badger opens it: left to itself it crashes at some.
func TestEachByteOfATableIsLookedAt(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	s := mustOpen(t, o)
	for i := range 3 {
		record(t, s, leaseCreated(i))
	}
	mustClose(t, s)
	dir := filepath.Join(o.Dir, "store")
	tables, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err := checkTables(dir); err != nil || len(tables) == 0 {
		t.Fatalf("%d tables, %v", len(tables), err)
	}
	for _, path := range tables {
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range sound {
			changed := bytes.Clone(sound)
			changed[i] ^= 0x10
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := checkTables(dir); !errors.Is(err, ErrIntegrity) {
				t.Fatalf("byte %d of %d: %v", i, len(sound), err)
			}
		}
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
