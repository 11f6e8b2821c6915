package passphrase

import (
	"strings"
	"testing"
)

func TestOnlyThePassphraseMatchesItsHash(t *testing.T) {
	phc, err := New([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := Parse(phc)
	if err != nil || !h.Set() || !h.Matches([]byte("correct horse")) {
		t.Fatalf("%v: its own passphrase does not match", err)
	}
	for _, other := range []string{"", "correct hors", "correct horse ", "Correct horse"} {
		if h.Matches([]byte(other)) {
			t.Errorf("%q matches", other)
		}
	}
	if again, _ := New([]byte("correct horse")); again == phc {
		t.Error("two hashes have one salt")
	}
	if (Hash{}).Matches(nil) || (Hash{}).Matches([]byte("x")) {
		t.Error("no hash matches something")
	}
	if _, err := New([]byte("short")); err == nil {
		t.Error("a passphrase of five letters was taken")
	}
}

// The hash of another implementation: echo -n password | argon2 somesalt -id -v 13 -t 2 -k 65536 -p 1 -l 24 gives the
// first test vector of the reference implementation's README.
func TestAHashOfAnotherToolIsUnderstood(t *testing.T) {
	h, err := Parse("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	if err != nil || !h.Matches([]byte("password")) {
		t.Errorf("%v, %+v", err, h)
	}
}

func TestAHashThatIsNoneOrTooCheapOrTooDearIsRefused(t *testing.T) {
	const good = "$argon2id$v=19$m=65536,t=3,p=2$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	for _, swap := range [][2]string{{"argon2id", "argon2i"}, {"v=19", "v=16"}, {"m=65536", "m=1024"}, {"m=65536", "m=99999999"},
		{"t=3", "t=0"}, {"t=3", "t=99"}, {"p=2", "p=0"}, {"p=2", "p=2,x=1"}, {"m=65536", "m=+65536"}, {"c29tZXNhbHQ", ""}, {"c29tZXNhbHQ", "!!"},
		{"$CTFh", "$CTFh$"}, {"$argon2id", "argon2id"}} {
		if _, err := Parse(strings.Replace(good, swap[0], swap[1], 1)); err == nil {
			t.Errorf("%s instead of %s was taken", swap[1], swap[0])
		}
	}
	if _, err := Parse("hunter2 in the clear"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}
