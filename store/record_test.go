package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/secret"
)

func peek(t testing.TB, s *Store, key []byte) []byte {
	t.Helper()
	b, err := s.get(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tamper does what somebody with the files, but not the key, can do.
func tamper(t testing.TB, s *Store, key, value []byte) {
	t.Helper()
	err := s.db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) })
	if err != nil {
		t.Fatal(err)
	}
}

// dataKeyAt is where a version's wrapped data key lies.
func dataKeyAt(s *Store, id string, version int) []byte {
	return s.keys.keks.Load().now.dataKey(s.keys.valueKey(id, version))
}

func TestSwappedAndOlderRecordsAreRefused(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	a1 := putCredential(t, s, "cr_a", 1, "a, first", "sk-fake-a1")
	b := putCredential(t, s, "cr_b", 1, "b", "sk-fake-b")
	keyA, keyB := s.keys.recordKey(KindCredential, "cr_a"), s.keys.recordKey(KindCredential, "cr_b")
	older := peek(t, s, keyA)
	a2 := putCredential(t, s, "cr_a", 2, "a, second", "sk-fake-a2")
	newer := peek(t, s, keyA)

	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	tamper(t, s, keyA, older)
	_, err := s.Record(KindCredential, "cr_a", a2.Records[0])
	refused("an older record of the same credential", err)

	tamper(t, s, keyA, peek(t, s, keyB))
	_, err = s.Record(KindCredential, "cr_a", a2.Records[0])
	refused("another credential's record", err)
	forged := a2.Records[0]
	forged.Seq, forged.Digest = b.Seq, b.Records[0].Digest // even where the trail's word is made to fit
	_, err = s.Record(KindCredential, "cr_a", forged)
	refused("another credential's record with its digest", err)

	tamper(t, s, keyA, seal(s.keys.record, []byte("a, forged"), s.keys.recordAAD(KindCredential, "cr_a", 0, a2.Seq)))
	_, err = s.Record(KindCredential, "cr_a", a2.Records[0])
	refused("a record of the right place that the trail does not have", err)

	flipped := bytes.Clone(newer)
	flipped[20] ^= 1
	tamper(t, s, keyA, flipped)
	_, err = s.Record(KindCredential, "cr_a", a2.Records[0])
	refused("a flipped bit", err)

	tamper(t, s, keyA, newer)
	if plain, err := s.Record(KindCredential, "cr_a", a2.Records[0]); err != nil || string(plain) != "a, second" {
		t.Errorf("the right record: %q, %v", plain, err)
	}
	_, err = s.Record(KindToken, "cr_a", a2.Records[0])
	refused("another kind", err)
	_, err = s.Record(KindCredential, "cr_c", RecordRef{Kind: KindCredential, ID: "cr_c"})
	refused("a record that is not there", err)

	// The data key and the value of version 1 in place of version 2's.
	tamper(t, s, dataKeyAt(s, "cr_a", 2), peek(t, s, dataKeyAt(s, "cr_a", 1)))
	_, err = s.Value("cr_a", 2, a2.Records[1])
	refused("another version's key", err)
	tamper(t, s, s.keys.valueKey("cr_a", 2), peek(t, s, s.keys.valueKey("cr_a", 1)))
	_, err = s.Value("cr_a", 2, a2.Records[1])
	refused("another version's value", err)
	forged = a1.Records[1]
	forged.Version = 2
	_, err = s.Value("cr_a", 2, forged)
	refused("another version's key and value, with its digest", err)
	if v, err := s.Value("cr_a", 1, a1.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-a1" {
		t.Error(err)
	}
}

func TestDeletedRecordIsGone(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	e := putCredential(t, s, "cr_1", 1, "r", "sk-fake-1")
	record(t, s, Change{Entry: Entry{Event: EventCredentialDeleted, CredentialID: "cr_1"}, Deletes: []RecordDelete{{KindCredential, "cr_1"}}})
	if _, err := s.Record(KindCredential, "cr_1", e.Records[0]); !errors.Is(err, ErrIntegrity) {
		t.Error(err)
	}
}

func TestTwoWritesOfOneRecordInOneGroup(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	var last *Pending
	s.disk.Lock() // so that both are in the queue when the committer looks
	for _, plain := range []string{"first", "second", "third"} {
		last = s.Submit(Change{Entry: Entry{Event: EventTokenRotated}, Records: []RecordWrite{{KindToken, "tk_1", []byte(plain)}}})
	}
	s.disk.Unlock()
	e, err := last.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := s.Record(KindToken, "tk_1", e.Records[0]); err != nil || string(plain) != "third" {
		t.Errorf("%q, %v", plain, err)
	}
}

// holds reports the first file under dir that has needle in it.
func holds(t testing.TB, dir string, needle []byte) string {
	found := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, needle) {
			found = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestNothingIsInTheFilesInPlain(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	c := leaseCreated(1)
	c.Entry.Credential, c.Entry.CredentialID, c.Entry.Purpose = "canary-name", "cr_canary", "canary purpose"
	c.Entry.Identity.Name = "canary-agent"
	c.Entry.Details.Set("rule", "canary rule")
	c.Records = []RecordWrite{{KindCredential, "cr_canary", []byte("canary record")}}
	c.Values = []ValueWrite{{"cr_canary", 1, secret.New([]byte("sk-fake-canary-value"))}}
	record(t, s, c)
	wrapped := peek(t, s, dataKeyAt(s, "cr_canary", 1))
	dek, err := open(s.keys.keks.Load().now.kek, wrapped, s.keys.dataKeyAAD(s.keys.valueKey("cr_canary", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot([]byte("canary snapshot")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	root := filepath.Dir(o.Dir)
	for _, needle := range [][]byte{[]byte("canary"), dek, testKey, []byte(hex.EncodeToString(testKey)), s.keys.sign.Seed()} {
		if path := holds(t, root, needle); path != "" {
			t.Errorf("%s holds %q", path, needle)
		}
	}
	if holds(t, root, wrapped) == "" {
		t.Error("the test can't see what is in the files")
	}
}

func TestDestroyRemovesTheKeyFromTheFiles(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	e1 := putCredential(t, s, "cr_1", 1, "r", "sk-fake-1")
	e2 := putCredential(t, s, "cr_1", 2, "r", "sk-fake-2")
	gone := peek(t, s, dataKeyAt(s, "cr_1", 1))
	kept := peek(t, s, dataKeyAt(s, "cr_1", 2))
	if err := s.Destroy([]ValueRef{{"cr_1", 1}, {"cr_none", 3}}); err != nil {
		t.Fatal(err)
	}
	record(t, s, Change{Entry: Entry{Event: EventVersionDestroyed, CredentialID: "cr_1", Version: 1}})
	if _, err := s.Value("cr_1", 1, e1.Records[1]); !errors.Is(err, ErrDestroyed) {
		t.Error(err)
	}
	if v, err := s.Value("cr_1", 2, e2.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-2" {
		t.Error(err)
	}
	mustClose(t, s)
	if path := holds(t, o.Dir, gone); path != "" {
		t.Errorf("%s still holds the wrapped key", path)
	}
	if holds(t, o.Dir, kept) == "" {
		t.Error("the test can't see what is in the files")
	}
	s = mustOpen(t, o)
	if _, err := s.Value("cr_1", 1, e1.Records[1]); !errors.Is(err, ErrDestroyed) {
		t.Error(err)
	}
	if r, err := s.Verify(t.Context(), ""); err != nil || r.Problem != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMACSeparatesLabels(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	a, b := s.MAC("tokens", []byte("x")), s.MAC("names", []byte("x"))
	if a == b || a != s.MAC("tokens", []byte("x")) {
		t.Error("labels don't separate, or the hash is not stable")
	}
	mustClose(t, s)
	if mustOpen(t, o).MAC("tokens", []byte("x")) != a {
		t.Error("the hash changed with a restart")
	}
}
