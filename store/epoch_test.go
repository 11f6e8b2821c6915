package store

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func lossAccepted() Entry { return Entry{Event: EventLossAccepted} }

// putAside copies a file and returns what puts it back.
func putAside(t *testing.T, path string) (back func()) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// epochOf opens the store, has it write, and returns the epoch that anchor and signed head agree on.
func epochOf(t *testing.T, o Options) uint64 {
	t.Helper()
	s := mustOpen(t, o)
	defer mustClose(t, s)
	record(t, s, leaseCreated(1))
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	signed, err := s.readSigned()
	if err != nil || signed.epoch != s.anchor.epoch {
		t.Fatalf("signed head of epoch %d, %v; anchor of %d", signed.epoch, err, s.anchor.epoch)
	}
	return signed.epoch
}

func TestABeginningOfAnEpochSurvivesACrashAtEachStep(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	mustClose(t, s)
	before := putAside(t, s.anchor.file.Name())
	s, err := openAnew(o, lossAccepted())
	if err != nil {
		t.Fatal(err)
	}
	if e, err := s.entryAt(2); err != nil || e.Event != EventLossAccepted || e.Details.Get("epoch") != "2" {
		t.Errorf("the epoch begins with %+v, %v", e, err)
	}
	mustClose(t, s)
	before() // as if the anchor had not been written
	if at := epochOf(t, o); at != 2 {
		t.Errorf("after a crash between the two steps the epoch is %d", at)
	}
	if at := epochOf(t, o); at != 2 {
		t.Errorf("after a second start the epoch is %d", at)
	}
}

func TestAnEpochBeginsWhateverBecameOfTheAnchor(t *testing.T) {
	for name, harm := range map[string]func(string) error{
		"missing": os.Remove,
		"damaged": func(path string) error { return flip(path, 40) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			s := mustOpen(t, o)
			record(t, s, leaseCreated(1))
			mustClose(t, s)
			if err := harm(s.anchor.file.Name()); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(o); !errors.Is(err, ErrIntegrity) {
				t.Fatalf("without an anchor: %v", err)
			}
			s, err := openChecked(o, true, (*Store).takeAsItIs)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.db.Close(), s.anchor.close()); err != nil { // a crash before the first step
				t.Fatal(err)
			}
			if _, err := Open(o); !errors.Is(err, ErrIntegrity) {
				t.Fatalf("an epoch that did not begin: %v", err)
			}
			s, err = openAnew(o, lossAccepted())
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			if at := epochOf(t, o); at != 2 {
				t.Errorf("the epoch is %d", at)
			}
		})
	}
}

// A folder that has more than what was accepted as lost, and a folder or an anchor of another epoch, are not this
// store any more.
func TestAFolderOfAnotherEpochIsRefused(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	record(t, s, leaseCreated(1))
	mustClose(t, s)
	yesterday := copied(t, o)
	for range 2 {
		s, err := openAnew(o, lossAccepted())
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
	}
	for name, mixed := range map[string]Options{
		"the folder of epoch 1": {Dir: yesterday.Dir, AnchorDir: o.AnchorDir},
		"the anchor of epoch 1": {Dir: o.Dir, AnchorDir: yesterday.AnchorDir},
	} {
		other := o
		other.Dir, other.AnchorDir = mixed.Dir, mixed.AnchorDir
		if _, err := Open(other); !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "of epoch 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
