package store

import (
	"errors"
	"testing"
)

func TestAHeldValueGoesWithItsKey(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ref := valueRef(t, s)
	for range 2 { // read, then held
		if v, err := s.Value("cr_1", 1, ref); err != nil || string(v.Bytes()) != "sk-fake-held" {
			t.Fatalf("%v", err)
		}
	}
	if len(s.values.at) != 1 {
		t.Fatalf("%d values are held", len(s.values.at))
	}
	_, drops := s.values.get(ref, s.keys.keks.Load().now)
	slow, err := s.sealedValue(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy([]ValueRef{{"cr_1", 1}}); err != nil {
		t.Fatal(err)
	}
	s.values.put(slow, drops) // by who read it before
	if v, err := s.Value("cr_1", 1, ref); !errors.Is(err, ErrDestroyed) {
		t.Errorf("a destroyed value: %d bytes, %v", v.Len(), err)
	}
}

func TestAValueIsHeldForWhatTheTrailSpeaksOfOnly(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ref := valueRef(t, s)
	if _, err := s.Value("cr_1", 1, ref); err != nil {
		t.Fatal(err)
	}
	other := ref
	other.Digest[0] ^= 1
	if _, err := s.Value("cr_1", 1, other); !errors.Is(err, ErrIntegrity) {
		t.Errorf("another digest: %v", err)
	}
}

func TestHeldValuesAreFew(t *testing.T) {
	var c sealedValues
	for i := range 3 * maxHeld {
		c.put(&sealedValue{ref: RecordRef{ID: "cr_1", Version: i}, sealed: make([]byte, 100)}, 0)
	}
	c.put(&sealedValue{ref: RecordRef{ID: "cr_big"}, sealed: make([]byte, maxHeldValue+1)}, 0)
	if len(c.at) > maxHeld || c.at[ValueRef{"cr_big", 0}] != nil {
		t.Errorf("%d are held", len(c.at))
	}
}

func valueRef(t *testing.T, s *Store) RecordRef {
	t.Helper()
	for _, ref := range putCredential(t, s, "cr_1", 1, "{}", "sk-fake-held").Records {
		if ref.Kind == KindValue {
			return ref
		}
	}
	t.Fatal("no value was written")
	return RecordRef{}
}
