package lease

import (
	"bytes"
	"testing"
	"time"

	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// The proxy's requests come one after another: the value is unsealed for the first of them, and wiped when its lease ends,
// when keylease freezes, when nobody wants it for a while, and when the Broker closes.
func TestAProxiedValueIsHeldAsLongAsItIsInUse(t *testing.T) {
	for what, end := range map[string]func(w *world, g Grant) error{
		"released": func(w *world, g Grant) error { _, err := w.Release(t.Context(), w.agent("a"), g.LeaseID); return err },
		"expired":  func(w *world, _ Grant) error { w.pass(3 * time.Hour); w.sweep(t.Context()); return nil },
		"frozen":   func(w *world, _ Grant) error { _, err := w.Freeze(t.Context(), operator, ""); return err },
		"cut off": func(w *world, _ Grant) error {
			_, err := w.RevokeLeases(t.Context(), operator, Filter{Identity: "a"})
			return err
		},
		"unused": func(w *world, _ Grant) error { w.uses.rest(); w.uses.rest(); return nil },
		"closed": func(w *world, _ Grant) error { return w.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.service("openai")
			g := w.leaseBy(w.agent("a"), "openai", policy.Proxy)
			unsealed := 0
			w.unseal = func(id string, version int, ref store.RecordRef) (secret.Secret, error) {
				unsealed++
				return w.store.Value(id, version, ref)
			}
			for range 3 {
				u := w.mustBegin(string(g.Handle.Bytes()))
				if string(u.Value.Bytes()) != "sk-fake-openai" {
					t.Fatalf("the use has another value, of %d bytes", u.Value.Len())
				}
				u.End(Outcome{Status: 200})
			}
			held := w.uses.values[g.LeaseID]
			if unsealed != 1 || held == nil {
				t.Fatalf("unsealed %d times, held: %v", unsealed, held != nil)
			}
			if err := end(w, g); err != nil {
				t.Fatal(err)
			}
			if len(w.uses.values) != 0 || len(bytes.Trim(held.value.Bytes(), "\x00")) != 0 {
				t.Error("it is held still")
			}
		})
	}
}

// A lease that ends while its value is unsealed leaves nothing behind.
func TestTheValueOfALeaseThatEndsMeanwhileIsNotHeld(t *testing.T) {
	w := newWorld(t)
	w.service("openai")
	a := w.agent("a")
	g := w.leaseBy(a, "openai", policy.Proxy)
	w.unseal = func(id string, version int, ref store.RecordRef) (secret.Secret, error) {
		if _, err := w.EndLease(t.Context(), operator, g.LeaseID); err != nil {
			t.Error(err)
		}
		return w.store.Value(id, version, ref)
	}
	if _, err := w.begin(string(g.Handle.Bytes())); AsRefusal(err) == nil {
		t.Errorf("the use began: %v", err)
	}
	if len(w.uses.values) != 0 {
		t.Error("its value is held")
	}
}
