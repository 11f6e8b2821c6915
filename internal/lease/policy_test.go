package lease

import (
	"strconv"
	"testing"

	"keylease/policy"
	"keylease/store"
)

const openPolicy = "version: 1\nrules:\n  - {name: r, identities: [\"*\"], credentials: [\"*\"]}\n"

func TestALookAtThePolicySeesWhatIsBrokenAndWhatIsRepaired(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 9")
	if s := w.LookAtPolicy(); s.Problem == "" || s.Present {
		t.Errorf("a file that is broken from the start: %+v", s)
	}
	w.setPolicy("")
	w.pass(lookEvery)
	if s := w.LookAtPolicy(); s.Problem != "" || s.Present {
		t.Errorf("gone again: %+v", s)
	}
	w.setPolicy(openPolicy)
	w.pass(lookEvery)
	if s := w.LookAtPolicy(); s.Problem != "" || !s.Present {
		t.Errorf("sound: %+v", s)
	}
	w.setPolicy("version: 9")
	w.pass(lookEvery)
	if s := w.LookAtPolicy(); s.Problem == "" || !s.Present {
		t.Errorf("broken: %+v", s)
	}
	w.setPolicy(openPolicy)
	w.pass(lookEvery)
	if s := w.LookAtPolicy(); s.Problem != "" || !s.Present {
		t.Errorf("repaired: %+v", s)
	}
}

func TestLooksAtThePolicyDoNotWriteInALoop(t *testing.T) {
	w := newWorld(t)
	for n := range 50 { // a file that changes all the while
		w.setPolicy("version: " + strconv.Itoa(n+2))
		w.LookAtPolicy()
	}
	w.pass(lookEvery)
	for range 50 { // one that does not
		w.pass(lookEvery)
		w.LookAtPolicy()
	}
	w.put("db", "fake", policy.CredentialPolicy{}) // on disk once this is
	if n := w.told(store.EventPolicyRejected); n != 2 {
		t.Errorf("%d entries for two looks at something new", n)
	}
}
