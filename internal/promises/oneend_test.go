//go:build linux

package promises

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/store"
)

// TestA2EveryRouteEndsALeaseOnce: the tool, an admin's release, revoke-leases, a removed credential, a revoked token, the
// holder's leaving and the lease's own time all end it through one path: whichever comes first, all at once even, there
// is one terminal entry, the holder hears of that one, and a restart reads it back.
func TestA2EveryRouteEndsALeaseOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("grace: 1s\n")
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("removed", ""), secretOf("revoked", ""))
	web, record := w.token("web")
	byToken := w.web(s.addr, web, true)
	a, leaver := w.agent("alice"), w.agent("leaver")
	ends := map[string]string{}   // lease → how the trail has to say that it ended
	holder := map[string]caller{} // lease → who still can ask
	end := func(c caller, event, credential string, how func(id string)) {
		t.Helper()
		id := lend(t, c, credential)
		how(id)
		ends[id], holder[id] = event, c
	}
	end(a, "lease.released", "db", func(id string) { call(t, a, "release_lease", args{"lease_id": id}) })
	end(a, "lease.released", "db", func(id string) { w.ok("release", id) })
	end(a, "lease.revoked", "db", func(string) { w.ok("revoke-leases", "--identity", "alice") })
	end(a, "lease.revoked", "revoked", func(string) { w.ok("revoke", "revoked") })
	end(a, "lease.revoked", "removed", func(string) { w.ok("rm", "removed") })
	end(byToken, "lease.revoked", "db", func(string) { w.ok("token", "revoke", record) })
	end(leaver, "lease.expired", "db", func(string) { leaver.leave() })

	// And now all of them at once, in the instant in which their time is up.
	token, record := w.token("web")
	webs := []caller{w.web(s.addr, token, true), w.web(s.addr, token, false), w.sse(s.addr, token)}
	var raced []string
	var up time.Time
	dying := w.agent("dying")
	for i := range 12 {
		got := call(t, append(webs, a, dying)[i%5], "lease_credential", args{"credential": "db", "ttl": "1s"})
		raced = append(raced, got.lease())
		var err error
		up, err = time.Parse(time.RFC3339, got.get("expires_at"))
		w.must(err)
	}
	time.Sleep(time.Until(up) - 40*time.Millisecond) // what a command takes to start
	together(t, len(raced)+4, func(i int) error {
		switch i {
		case 0:
			w.cli("revoke-leases", "--all")
		case 1:
			w.cli("token", "revoke", record)
		case 2:
			w.cli("release", raced[3])
		case 3:
			dying.die()
		default:
			time.Sleep(time.Until(up) - time.Duration(i%3)*time.Millisecond)
			_, err := a.try("release_lease", args{"lease_id": raced[i-4]})
			if err == nil {
				_, _ = webs[0].try("release_lease", args{"lease_id": raced[i-4]}) // its token may be gone by now
			}
			return err
		}
		return nil
	})
	w.eventually("all have ended", func() error {
		if live := w.leases(); len(live) > 0 {
			return fmt.Errorf("%v", live)
		}
		return nil
	})
	check := func(when string) {
		t.Helper()
		b := w.books() // fails where a lease ends twice
		for id, event := range ends {
			if b.ended[id] != event {
				t.Errorf("%s: %s ended with %q, want %q", when, id, b.ended[id], event)
			}
		}
		for _, id := range raced {
			if b.ended[id] == "" {
				t.Errorf("%s: %s never ended", when, id)
			}
		}
	}
	check("live")
	for id, event := range ends {
		if c := holder[id]; c == a {
			if got := call(t, c, "release_lease", args{"lease_id": id}); "lease."+got.get("status") != event {
				t.Errorf("%s: the trail says %s, the holder is told %s", id, event, got.raw)
			}
		}
	}
	s.kill()
	w.serve("--http", s.addr)
	check("after a restart")
	w.verified()
}

// TestA11NothingIsLeftOfAFailedGrant: where the grant is made and then its value can't be given, because what the store
// has of it is damaged, the caller gets the error and no value; no lease stays, the trail has its beginning and its end,
// its place is free, and other credentials are lent as before.
func TestA11NothingIsLeftOfAFailedGrant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("spoilt", "policy: {maxLeases: 1}"), secretOf("sound", ""))
	id := ""
	for _, e := range find(w.audit(), "credential.created") {
		if e.Credential == "spoilt" {
			id = e.CredentialID
		}
	}
	token, _ := w.token("alice")
	s.stop()
	w.loseKey(id)
	w.serve("--http", s.addr)
	tries := 0
	for name, c := range doors(w, s.addr, token) {
		got := wantCode(t, c, "internal", "lease_credential", args{"credential": "spoilt"}) // the first leaves room for the next
		if got.get("error", "id") == "" || strings.Contains(got.raw, "ls_") || strings.Contains(got.raw, "value") || inside.MatchString(got.raw) {
			t.Errorf("%s is told %s", name, got.raw)
		}
		tries++
		if live := w.leases(); len(live) != 0 {
			t.Errorf("%s: a lease is left: %v", name, live)
		}
		list := call(t, c, "list_credentials", args{"match": "spoilt"})
		if strings.Contains(list.raw, "ls_") || !strings.Contains(list.raw, `"leases_in_use":0`) {
			t.Errorf("%s: in the list: %s", name, list.raw)
		}
		call(t, c, "release_lease", args{"lease_id": lend(t, c, "sound")})
	}
	made, ended := 0, w.books().ended
	for _, e := range find(w.audit(), "lease.created") {
		if e.Credential != "spoilt" {
			continue
		}
		if made++; ended[e.LeaseID] != "lease.released" {
			t.Errorf("the trail says of %s: %q", e.LeaseID, ended[e.LeaseID])
		}
	}
	if made != tries {
		t.Errorf("%d tries, %d grants in the trail", tries, made)
	}
	w.verified()
}

// openStore opens this world's store, which no daemon may hold, as somebody can who has the root key.
func (w *world) openStore() *store.Store {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.config(), "root.key"))
	w.must(err)
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	w.must(err)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := store.Open(store.Options{Dir: w.data(), AnchorDir: w.config(), RootKey: key, Log: zerolog.Nop(), Now: time.Now})
		if errors.Is(err, store.ErrLocked) && time.Now().Before(deadline) {
			continue // a process that another test is just starting has the lock of the one before, until it is that program
		}
		w.must(err)
		return s
	}
}

// loseKey takes the key of a credential's first version out of the store, where the trail knows nothing of it: what a bad
// disk leaves.
func (w *world) loseKey(credentialID string) {
	w.t.Helper()
	s := w.openStore()
	w.must(s.Destroy([]store.ValueRef{{CredentialID: credentialID, Version: 1}}))
	w.must(s.Close())
}

// records unseals every record of one kind that the store has, as the trail names them.
func (w *world) records(kind store.Kind) (plain [][]byte) {
	w.t.Helper()
	s := w.openStore()
	defer func() { w.must(s.Close()) }()
	newest := map[string]store.RecordRef{}
	w.must(s.Entries(context.Background(), 1, func(e *store.Entry) error {
		for _, ref := range e.Records {
			if ref.Kind == kind {
				newest[ref.ID] = ref
			}
		}
		return nil
	}))
	for id, ref := range newest {
		record, err := s.Record(kind, id, ref)
		w.must(err)
		plain = append(plain, record)
	}
	return plain
}
