package lease

import (
	"context"
	"fmt"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// A session that was quiet for long is forgotten, and its leases go on: whoever of the same principal renews one has it
// for as long as the answer says, and a store that had to be read back changes nothing.
func TestLeasesOfALapsedSessionGoOn(t *testing.T) {
	for name, again := range map[string]func(*world, identity.Caller) identity.Caller{
		"renewed by another session": func(w *world, _ identity.Caller) identity.Caller { return w.agent("ci") },
		"renewed without a session":  func(_ *world, c identity.Caller) identity.Caller { c.Session = ""; return c },
		"after a rebuild": func(w *world, c identity.Caller) identity.Caller {
			w.Broker.mu.Lock()
			defer w.Broker.mu.Unlock()
			if err := w.rebuild(); err != nil {
				t.Fatal(err)
			}
			c.Session = ""
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put("k", "v", policy.CredentialPolicy{})
			a := w.agent("ci")
			g := w.lease(a, "k")
			w.Lapse(a.Session)
			w.pass(5 * time.Second)
			b := again(w, a)
			if _, err := w.Renew(context.Background(), b, RenewRequest{LeaseID: g.LeaseID, TTL: 30 * time.Minute}); err != nil {
				t.Fatal(err)
			}
			w.pass(2 * time.Minute)
			if _, err := w.Reveal(context.Background(), b, g.LeaseID); err != nil {
				t.Errorf("two minutes later: %v", err)
			}
		})
	}
}

// Lapsed sessions are remembered for as long as they have leases, and no longer.
func TestLapsedSessionsAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.put("k", "v", policy.CredentialPolicy{})
	for range 20 {
		a := w.agent("ci")
		g := w.lease(a, "k")
		w.Lapse(a.Session)
		if _, err := w.Release(context.Background(), a, g.LeaseID); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.lapsed); n > 2 {
		t.Errorf("%d lapsed sessions are remembered, of no lease", n)
	}
}

// Failures from many addresses, which cost their sender nothing, are told of together: the trail does not grow with them.
func TestFailuresFromManyAddressesAreToldTogether(t *testing.T) {
	w := newWorld(t)
	before, _ := w.store.Head()
	for i := range 5000 {
		_, _ = w.Authenticate(context.Background(), "kl_nobody", fmt.Sprintf("192.0.2.%d", i))
	}
	if after, _ := w.store.Head(); after-before > maxSources+1 {
		t.Errorf("%d entries", after-before)
	}
	w.pass(2 * summaryEvery)
	w.sweep(context.Background())
	others := ""
	err := w.Entries(context.Background(), EntryFilter{Event: string(store.EventAuthFailed)}, func(e *store.Entry) error {
		if e.Details.Get("source") == "others" && e.Details.Get("count") != "" {
			others = e.Details.Get("count")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if others != "4899" { // the first of them was an Entry at once
		t.Errorf("the summary of the others counts %q", others)
	}
}
