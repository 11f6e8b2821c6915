package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/secret"
)

var newKey = bytes.Repeat([]byte{9}, 32)

func (o Options) withKey(key []byte) Options {
	o.RootKey, o.Create = key, false
	return o
}

func TestAfterARotationOnlyTheNewKeyOpens(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	e := putCredential(t, s, "cr_1", 1, "the record", "sk-fake-1")
	id, print, mac := s.ID(), s.Fingerprint(), s.MAC("tokens", []byte("kl_x"))
	old := peek(t, s, dataKeyAt(s, "cr_1", 1))
	if err := s.RotateRoot(testKey); !errors.Is(err, ErrSameKey) {
		t.Errorf("by the same key: %v", err)
	}
	if err := s.RotateRoot(newKey[:31]); err == nil {
		t.Error("a key that is too short")
	}
	if err := s.RotateRoot(newKey); err != nil {
		t.Fatal(err)
	}
	e2 := putCredential(t, s, "cr_2", 1, "another", "sk-fake-2")
	if !s.Rotated() || s.RootGeneration() != 2 {
		t.Errorf("rotated %v, generation %d", s.Rotated(), s.RootGeneration())
	}
	if err := errors.Join(s.FinishRotation(), s.FinishRotation()); err != nil || s.Rotated() {
		t.Fatal(err)
	}
	mustClose(t, s)
	if path := holds(t, o.Dir, old); path != "" {
		t.Errorf("%s still holds what the old key opens", path)
	}
	before := hashFolder(t, o.Dir)
	if _, err := Open(o.withKey(testKey)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the old key: %v", err)
	}
	if hashFolder(t, o.Dir) != before {
		t.Error("the old key changed the folder")
	}
	s = mustOpen(t, o.withKey(newKey))
	if s.ID() != id || s.Fingerprint() != print || s.MAC("tokens", []byte("kl_x")) != mac {
		t.Error("id, fingerprint or hashes of tokens did not survive")
	}
	if plain, err := s.Record(KindCredential, "cr_1", e.Records[0]); err != nil || string(plain) != "the record" {
		t.Errorf("%q, %v", plain, err)
	}
	for id, want := range map[string]Entry{"cr_1": e, "cr_2": e2} {
		if v, err := s.Value(id, 1, want.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-"+id[3:] {
			t.Errorf("%s: %v", id, err)
		}
	}
	if r, err := s.Verify(t.Context(), print); err != nil || !r.Authenticated {
		t.Errorf("%+v, %v", r, err)
	}
}

// The process is killed between any two writes of a rotation: exactly one key opens the store afterwards, everything is
// in it, a second rotation goes through, and nothing is left that the key before it opens.
func TestARotationCutAnywhereLeavesOneKey(t *testing.T) {
	cut := errors.New("the process was killed here")
	for n := 0; ; n++ {
		o := testOptions(t)
		s := mustOpen(t, o)
		c := Change{Entry: Entry{Event: EventCredentialCreated, CredentialID: "cr_1"}}
		for i := range rotateBatch + 5 { // two batches
			c.Values = append(c.Values, ValueWrite{"cr_1", i + 1, secret.New([]byte("sk-fake"))})
		}
		want := record(t, s, c).Records
		mustClose(t, s)
		// The n-th write of the rotation and all after it fail, and so does what would tidy up.
		s = mustOpen(t, o)
		left := n
		s.disk.Lock()
		through := s.write
		s.write = func(w []write) error {
			if left--; left < 0 {
				return cut
			}
			return through(w)
		}
		s.disk.Unlock()
		err := s.RotateRoot(newKey)
		s.disk.Lock()
		s.write = through
		s.disk.Unlock()
		mustClose(t, s)
		opens, other := testKey, newKey
		if err == nil {
			opens, other = newKey, testKey
		} else if !errors.Is(err, cut) {
			t.Fatal(err)
		}
		if _, err := Open(o.withKey(other)); !errors.Is(err, ErrWrongKey) {
			t.Fatalf("cut at write %d: the other key: %v", n, err)
		}
		s = mustOpen(t, o.withKey(opens))
		for _, ref := range want {
			if v, err := s.Value("cr_1", ref.Version, ref); err != nil || string(v.Bytes()) != "sk-fake" {
				t.Fatalf("cut at write %d: %v", n, err)
			}
		}
		if s.Rotated() != (err == nil) {
			t.Errorf("cut at write %d: rotated is %v", n, s.Rotated())
		}
		stale := peek(t, s, dataKeyAt(s, "cr_1", 3))
		third := bytes.Repeat([]byte{11}, 32)
		if err := errors.Join(s.FinishRotation(), s.RotateRoot(third), s.FinishRotation()); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		if path := holds(t, o.Dir, stale); path != "" {
			t.Errorf("cut at write %d: %s holds what an older key opens", n, path)
		}
		if err == nil {
			if n < 3 {
				t.Errorf("it took %d writes only", n)
			}
			return
		}
	}
}

// A crash in the middle leaves two generations of data keys; what the open after it removes is the one that did not
// come into force.
func TestAnOpenTidiesUpAfterARotationThatACrashEnded(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	e := putCredential(t, s, "cr_1", 1, "r", "sk-fake-1")
	next, err := s.beginRotation(newKey)
	if err == nil {
		err = s.wrapAll(next)
	}
	if err != nil {
		t.Fatal(err)
	}
	e2 := putCredential(t, s, "cr_2", 1, "r", "sk-fake-2") // wrapped under both
	begun := next.dataKey(s.keys.valueKey("cr_2", 1))
	if wrapped := peek(t, s, begun); len(wrapped) == 0 {
		t.Fatal("a value stored meanwhile is not wrapped under the new key")
	}
	if err := s.Destroy([]ValueRef{{"cr_1", 1}}); err != nil {
		t.Fatal(err)
	}
	if err := s.db.View(func(txn *badger.Txn) error { _, err := txn.Get(next.dataKey(s.keys.valueKey("cr_1", 1))); return err }); !errors.Is(err, badger.ErrKeyNotFound) {
		t.Errorf("a version destroyed meanwhile is still wrapped under the new key: %v", err)
	}
	mustClose(t, s)

	s = mustOpen(t, o)
	if _, err := s.get(begun); !errors.Is(err, badger.ErrKeyNotFound) || s.Rotated() {
		t.Errorf("what was begun is still there: %v, rotated %v", err, s.Rotated())
	}
	if v, err := s.Value("cr_2", 1, e2.Records[1]); err != nil || string(v.Bytes()) != "sk-fake-2" {
		t.Error(err)
	}
	if _, err := s.Value("cr_1", 1, e.Records[1]); !errors.Is(err, ErrDestroyed) {
		t.Error(err)
	}
	// And a crash after the moment: the new key opens, and what is of the old goes with FinishRotation.
	if err := s.RotateRoot(newKey); err != nil {
		t.Fatal(err)
	}
	stale := peek(t, s, (&rootKeys{generation: 1}).dataKey(s.keys.valueKey("cr_2", 1)))
	mustClose(t, s)
	s = mustOpen(t, o.withKey(newKey))
	if !s.Rotated() {
		t.Error("nobody is told that it is to be finished")
	}
	if err := s.FinishRotation(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	if path := holds(t, o.Dir, stale); path != "" {
		t.Errorf("%s holds what the old key opens", path)
	}
}

// Values are put, read and destroyed while the root key is replaced again and again: none is lost, none comes back.
func TestARotationStopsNobody(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(done)
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			id := fmt.Sprintf("cr_%d", i)
			e := putCredential(t, s, id, 1, "r", "sk-fake")
			if v, err := s.Value(id, 1, e.Records[1]); err != nil || string(v.Bytes()) != "sk-fake" {
				done <- fmt.Errorf("%s: %w", id, err)
				return
			}
		}
	}()
	for i := range 4 {
		if err := errors.Join(s.RotateRoot(bytes.Repeat([]byte{byte(20 + i)}, 32)), s.FinishRotation()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestKeyFitsChangesNothing(t *testing.T) {
	o := testOptions(t)
	mustClose(t, mustOpen(t, o))
	before := hashFolder(t, o.Dir)
	yes, err1 := KeyFits(o.Dir, testKey)
	no, err2 := KeyFits(o.Dir, newKey)
	if err := errors.Join(err1, err2); err != nil || !yes || no || hashFolder(t, o.Dir) != before {
		t.Errorf("%v %v %v", yes, no, err)
	}
	if err := os.Remove(o.Dir + "/keycheck"); err != nil {
		t.Fatal(err)
	}
	if _, err := KeyFits(o.Dir, testKey); err == nil {
		t.Error("without a key check it fits")
	}
}
