package lease

import (
	"bytes"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// What ends a lease while its value is being unsealed was acknowledged before the value left: it does not leave.
func TestAValueDoesNotLeaveAfterWhatForbidsItWasAcknowledged(t *testing.T) {
	for what, forbid := range map[string]func(w *world, a identity.Caller, id string) error{
		"released": func(w *world, a identity.Caller, id string) error {
			_, err := w.Release(t.Context(), a, id)
			return err
		},
		"ended": func(w *world, _ identity.Caller, id string) error {
			_, err := w.EndLease(t.Context(), operator, id)
			return err
		},
		"frozen": func(w *world, _ identity.Caller, _ string) error {
			_, err := w.Freeze(t.Context(), operator, "")
			return err
		},
		"cut off": func(w *world, a identity.Caller, _ string) error {
			_, err := w.RevokeLeases(t.Context(), operator, Filter{Identity: a.Name})
			return err
		},
		"expired": func(w *world, _ identity.Caller, _ string) error { w.pass(366 * 24 * time.Hour); return nil },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.put("db", "fake-value", policy.CredentialPolicy{})
			a := w.agent("a")
			g := w.lease(a, "db")
			var unsealed secret.Secret
			w.unseal = func(id string, version int, ref store.RecordRef) (secret.Secret, error) {
				v, err := w.store.Value(id, version, ref)
				if err != nil {
					t.Error(err)
				}
				unsealed = v
				if err := forbid(w, a, g.LeaseID); err != nil {
					t.Error(err)
				}
				return v, err
			}
			if v, err := w.Reveal(t.Context(), a, g.LeaseID); AsRefusal(err) == nil || v.Len() != 0 {
				t.Errorf("it left: %d bytes, %v", v.Len(), err)
			}
			if len(bytes.Trim(unsealed.Bytes(), "\x00")) != 0 {
				t.Error("it was not wiped")
			}
		})
	}
}
