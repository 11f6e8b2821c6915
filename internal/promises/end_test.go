//go:build linux

package promises

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestG3ExpiryIsAFact: from expires_at on, the lease is refused by every verb, shown by none, and its place is free,
// on the instant and not when a sweeper comes by.
func TestG3ExpiryIsAFact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", "policy: {maxLeases: 1}"))
	token, _ := w.token("web")
	for name, c := range map[string]caller{"stdio": w.agent("alice"), "modern http": w.web(s.addr, token, true)} {
		got := call(t, c, "lease_credential", args{"credential": "db", "ttl": "1s"})
		ends, err := time.Parse(time.RFC3339, got.get("expires_at"))
		w.must(err)
		if left := time.Until(ends); left > time.Second {
			t.Errorf("%s: asked for 1s, got %s", name, left)
		}
		time.Sleep(time.Until(ends))
		fresh := call(t, c, "lease_credential", args{"credential": "db", "ttl": "1m"}) // first: its place is free at once
		if fresh.refused || fresh.lease() == got.lease() {
			t.Errorf("%s: its place is not free: %s", name, fresh.raw)
		}
		if late := call(t, c, "lease_credential", args{"lease_id": got.lease()}); late.code() != "lease_ended" {
			t.Errorf("%s: renewed after its end: %s", name, late.raw)
		}
		if late := call(t, c, "release_lease", args{"lease_id": got.lease()}); late.get("status") != "expired" {
			t.Errorf("%s: released after its end: %s", name, late.raw)
		}
		if live := w.leases(); len(live) != 1 || live[got.lease()].LeaseID != "" {
			t.Errorf("%s: keylease leases shows %v", name, live)
		}
		if b := w.books(); b.ended[got.lease()] != "lease.expired" {
			t.Errorf("%s: in the trail it is %q", name, b.ended[got.lease()])
		}
		call(t, c, "release_lease", args{"lease_id": fresh.lease()})
	}
}

// TestG3NoLeaseIsForEver: lengths of zero, below zero, of fractions, and beyond all measure are refused; what is too
// long is cut to the ceiling; renewing never goes past it, and with less than a second left it is refused.
func TestG3NoLeaseIsForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", "policy: {maxLeaseTTL: 3s, defaultLeaseTTL: 2s}"))
	a := w.agent("alice")
	for _, ttl := range []string{"0", "0s", "-1s", "-5m", "1.5h", "500ms", "1e3s", "forever", "99999999999999999999s", "20y", "106752d", " 1m", "1m ", "∞"} {
		wantCode(t, a, "invalid_argument", "lease_credential", args{"credential": "db", "ttl": ttl})
	}
	got := call(t, a, "lease_credential", args{"credential": "db", "ttl": "9d"})
	ceiling, err := time.Parse(time.RFC3339, got.get("max_expires_at"))
	w.must(err)
	if got.body["ttl_capped"] != true || got.get("ttl") != "3s" || got.get("expires_at") != got.get("max_expires_at") {
		t.Fatalf("9d against a ceiling of 3s: %s", got.raw)
	}
	time.Sleep(time.Until(ceiling) - 1500*time.Millisecond)
	again := call(t, a, "lease_credential", args{"lease_id": got.lease(), "ttl": "3s"})
	if again.refused || again.get("expires_at") != got.get("max_expires_at") {
		t.Fatalf("renewed with 1.5s left under the ceiling: %s", again.raw)
	}
	time.Sleep(time.Until(ceiling) - 500*time.Millisecond)
	wantCode(t, a, "lease_ended", "lease_credential", args{"lease_id": got.lease()})
}

// TestG4AnEndIsAnEnd: once acknowledged, a release, an admin's release, revoke-leases and a revoked credential hold
// through kill -9, say the same when asked again, and can't be undone by renewing.
func TestG4AnEndIsAnEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""), secretOf("one", ""), secretOf("two", ""))
	a := w.agent("alice")
	kept := lend(t, a, "db")
	back := lend(t, a, "db")
	byAdmin, byCredential, byRevoked := lend(t, a, "db"), lend(t, a, "one"), lend(t, a, "two")
	first := call(t, a, "release_lease", args{"lease_id": back})
	w.ok("release", byAdmin)
	w.ok("revoke-leases", "--credential", "one")
	w.ok("revoke", "two")
	check := func() {
		t.Helper()
		for id, status := range map[string]string{back: "released", byAdmin: "released", byCredential: "revoked", byRevoked: "revoked"} {
			if got := call(t, a, "release_lease", args{"lease_id": id}); got.get("status") != status {
				t.Errorf("want %s: %s", status, got.raw)
			}
			wantCode(t, a, "lease_ended", "lease_credential", args{"lease_id": id})
		}
		if again := call(t, a, "release_lease", args{"lease_id": back}); again.raw != first.raw {
			t.Errorf("the release was told as %s and then as %s", first.raw, again.raw)
		}
		if live := w.leases(); len(live) != 1 || live[kept].LeaseID != kept {
			t.Errorf("live: %v", live)
		}
		wantCode(t, a, "not_available", "lease_credential", args{"credential": "two"})
	}
	check()
	w.killDaemon()
	w.ok("ls") // whoever comes first starts it
	a.reconnected()
	check()
	w.ok("revoke-leases", "--identity", "alice")
	w.killDaemon()
	if live := w.leases(); len(live) != 0 {
		t.Errorf("revoked, killed, and live again: %v", live)
	}
	w.books()
	w.verified()
}

// TestG4KilledOnTheAnswer: the daemon is killed in the instant in which a release, or a revoke-leases, is acknowledged;
// the next daemon knows of it.
func TestG4KilledOnTheAnswer(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, os.TempDir())
	w.policy(openPolicy)
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	for round := range 6 {
		var ids []string
		for range 8 {
			ids = append(ids, lend(t, a, "db"))
		}
		daemon := w.holder()
		var killed atomic.Bool
		kill := func() { // by the first that is told
			if killed.CompareAndSwap(false, true) {
				_ = syscall.Kill(daemon, syscall.SIGKILL)
			}
		}
		told := make([]bool, len(ids))
		if round%2 == 0 {
			together(t, len(ids), func(i int) error {
				got, err := a.try("release_lease", args{"lease_id": ids[i]})
				if told[i] = err == nil && got.get("status") == "released"; told[i] {
					kill()
				}
				return err
			})
		} else {
			w.ok("revoke-leases", "--all")
			kill()
			for i := range told {
				told[i] = true
			}
		}
		w.gone(daemon)
		a.reconnected()
		live := w.leases()
		for i, id := range ids {
			if _, isLive := live[id]; told[i] && isLive {
				t.Errorf("round %d: %s was ended, and is live again", round, id)
			}
		}
		w.ok("revoke-leases", "--all")
	}
	w.books()
	w.verified()
}

// reconnected waits until the relay is with the daemon that runs now.
func (a *agent) reconnected() {
	a.w.t.Helper()
	a.w.eventually("the relay is back", func() error {
		got, err := a.try("list_credentials", args{})
		if err == nil && got.refused {
			return &rpcFault{0, got.raw}
		}
		return err
	})
}
