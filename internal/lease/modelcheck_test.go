package lease

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"

	"keylease/store"
)

// check holds what a Broker tells and gives against the model.
func (d *driven) check(t *rapid.T) {
	infos := d.Leases(Filter{})
	if len(infos) != len(d.m.live) {
		t.Fatalf("%d leases are live, want %d", len(infos), len(d.m.live))
	}
	for _, i := range infos {
		l := d.m.live[i.LeaseID]
		if l == nil || l.owner.Name != i.Identity.Name || l.owner.By != i.Identity.By || l.cred != i.Credential || l.session != i.Identity.Session ||
			!l.deadline().Equal(i.ExpiresAt) || l.orphan.IsZero() == i.Orphaned {
			t.Fatalf("%+v, want %+v", i, l)
		}
	}
	for _, p := range mPrincipals {
		listed := 0
		page, err := d.List(ctx, d.m.sessions[p], ListRequest{})
		for _, o := range page.Credentials {
			for _, own := range o.YourLeases {
				if l := d.m.live[own.LeaseID]; l == nil || l.owner != p {
					t.Fatalf("%s is told of a lease of %+v", p.Name, l)
				}
				listed++
			}
		}
		if want := d.m.count(func(l *mLease) bool { return l.owner == p }); err != nil || d.m.admits(p) && listed != want {
			t.Fatalf("%d leases listed, want %d, %v", listed, want, err)
		}
		for _, id := range d.ids[max(0, len(d.ids)-12):] {
			l, want := d.m.live[id], NotAvailable
			switch e := d.m.over[id]; {
			case l != nil && l.owner == p && d.m.frozen:
				want = Unavailable
			case l != nil && l.owner == p:
				want = ""
			case e != nil && e.owner == p:
				want = LeaseEnded
			}
			v, err := d.Reveal(ctx, d.m.sessions[p], id)
			if wantAnswer(t, "reveal", err, want); err == nil && string(v.Bytes()) != l.value {
				t.Fatalf("lease %s gives another value than it was granted for", id)
			}
		}
	}
}

// checkTrail is for the end: each lease has one beginning and one end, the one that was told, and the chain holds.
func (d *driven) checkTrail(t *rapid.T) {
	d.sweep(ctx)
	born, ended := map[string]int{}, map[string]State{}
	err := d.Entries(ctx, EntryFilter{}, func(e *store.Entry) error {
		state := map[store.Event]State{store.EventLeaseReleased: Released, store.EventLeaseExpired: Expired, store.EventLeaseRevoked: Revoked}[e.Event]
		switch {
		case e.Event == store.EventLeaseCreated:
			born[e.LeaseID]++
		case state != "" && ended[e.LeaseID] != "":
			return fmt.Errorf("%s ends a second time", e.LeaseID)
		case state != "":
			ended[e.LeaseID] = state
		}
		return nil
	})
	if err != nil || len(born) != len(d.ids) || len(ended) != len(d.m.over) {
		t.Fatalf("%d leases began and %d ended, want %d and %d: %v", len(born), len(ended), len(d.ids), len(d.m.over), err)
	}
	for id, e := range d.m.over {
		if ended[id] != e.state || born[id] != 1 {
			t.Fatalf("the trail says %q of a lease that is %q", ended[id], e.state)
		}
	}
	if r, err := d.Verify(ctx, ""); err != nil || r.Problem != "" {
		t.Fatalf("verify: %+v, %v", r, err)
	}
}

// TestBrokerIsItsModel: any sequence of verbs, clocks, restarts, failing writes and power cuts leaves what the model
// says. It is short by default, and 10^5 steps long where KEYLEASE_TEST_LOOPS or KEYLEASE_TEST_FULL is set.
func TestBrokerIsItsModel(t *testing.T) {
	many := 1500
	if os.Getenv("KEYLEASE_TEST_LOOPS")+os.Getenv("KEYLEASE_TEST_FULL") != "" {
		many = 100_000
	}
	for name, v := range map[string]string{"rapid.checks": "10", "rapid.steps": "100"} { // opening a store costs as much as twenty steps
		old := flag.Lookup(name).Value.String()
		if flag.Set(name, v) != nil {
			t.Fatal(name)
		}
		defer func() { _ = flag.Set(name, old) }()
	}
	steps := 0
	one := func(rt *rapid.T) {
		d := newDriven(t, rt)
		rt.Repeat(map[string]func(*rapid.T){"": func(t *rapid.T) { steps++; d.check(t) },
			"lease": d.lend, "lease again": d.lend, "lease once more": d.lend, "renew": d.extendOne, "renew too": d.extendOne, "release": d.release, "release too": d.release,
			"revoke": d.revoke, "credential": d.changeCredential, "clock": d.clockStep, "clock too": d.clockStep, "session": d.session, "come or go": d.session,
			"freeze": d.freezeOrThaw, "policy": d.editPolicy, "restart": d.stopAndStart, "store error": d.storeError, "power cut": d.powerCut, "burst": d.burst, "burst too": d.burst})
		d.reopen(rt, func() { d.stop(false) }) // so that the index is once rebuilt from the trail, at least
		d.check(rt)
		d.checkTrail(rt)
	}
	for steps < many && !t.Failed() {
		rapid.Check(t, one)
	}
	t.Logf("%d steps", steps)
}
