//go:build linux

package promises

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crowd is callers of every kind: relays, and HTTP agents of both eras.
func crowd(w *world, addr string, relays, webs int) (all []caller) {
	for i := range relays {
		all = append(all, w.agent(fmt.Sprintf("local-%d", i)))
	}
	for i := range webs {
		token, _ := w.token(fmt.Sprintf("web-%d", i))
		all = append(all, w.web(addr, token, i%2 == 0))
	}
	return all
}

// TestG1NoValueBeforeItsEntry: the daemon is killed in the instant in which a caller is given a value, in the middle of
// the work of many; whatever anybody has seen the value of is in the trail.
func TestG1NoValueBeforeItsEntry(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, os.TempDir())
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	callers := crowd(w, s.addr, 3, 3)
	seen := map[string]bool{}
	for range 5 {
		var mu sync.Mutex
		var killed atomic.Bool
		enough := len(seen) + 20
		together(t, 4*len(callers), func(i int) error {
			for !killed.Load() {
				got, err := callers[i%len(callers)].try("lease_credential", args{"credential": "db"})
				if err != nil || got.get("value") == "" {
					continue
				}
				mu.Lock()
				seen[got.lease()] = true
				if len(seen) >= enough && killed.CompareAndSwap(false, true) {
					_ = s.Process.Kill()
				}
				mu.Unlock()
			}
			return nil
		})
		<-s.exited
		s = w.serve("--http", s.addr)
	}
	all := w.audit()
	made := map[string]bool{}
	for _, e := range find(all, "lease.created") {
		made[e.LeaseID] = true
	}
	for id := range seen {
		if !made[id] {
			t.Errorf("the value was seen under %s, of which the trail knows nothing", id)
		}
	}
	t.Logf("%d values seen", len(seen))
	w.verified()
}

// TestG2LimitsHoldUnderARush: 64 callers at once at one below the limit get one lease between them, and none at it;
// the same after a kill -9 and a restart. (F5 is this with its own names.)
func TestG2LimitsHoldUnderARush(t *testing.T) {
	t.Parallel()
	const limit, rush = 4, 64
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", fmt.Sprintf("policy: {maxLeases: %d}", limit)))
	callers := crowd(w, s.addr, 6, 4)
	holder := w.agent("holder")
	var held []string
	for range limit - 1 {
		held = append(held, lend(t, holder, "db"))
	}
	ask := func(want int64) {
		t.Helper()
		var granted atomic.Int64
		together(t, rush, func(i int) error {
			got, err := callers[i%len(callers)].try("lease_credential", args{"credential": "db"})
			switch {
			case err != nil:
				return err
			case !got.refused:
				granted.Add(1)
			case got.code() != "lease_limit":
				return fmt.Errorf("refused otherwise: %s", got.raw)
			}
			return nil
		})
		if n := granted.Load(); n != want || len(w.leases()) != limit {
			t.Fatalf("%d grants, want %d; %d live leases, want %d", n, want, len(w.leases()), limit)
		}
	}
	ask(1)
	ask(0)
	s.kill()
	w.serve("--http", s.addr)
	ask(0)
	if got := call(t, holder, "release_lease", args{"lease_id": held[0]}); got.get("status") != "released" {
		t.Fatal(got.raw)
	}
	ask(1)
	if most := w.books().mostLive["db"]; most != limit {
		t.Fatalf("the trail has %d leases live at a time, the limit is %d", most, limit)
	}
}

// TestG2LimitsHoldWhileLeasesComeAndGo: leases are taken and given back by many at once, and at no entry of the trail
// are more live than the credential, or the rule for one identity, allows.
func TestG2LimitsHoldWhileLeasesComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy + "    maxLeases: 2\n")
	s := w.serve()
	w.seed(secretOf("db", "policy: {maxLeases: 3}"), secretOf("free", ""))
	callers := crowd(w, s.addr, 3, 2)
	var granted atomic.Int64
	together(t, 6*len(callers), func(i int) error {
		c := callers[i%len(callers)]
		for n := range 6 {
			got, err := c.try("lease_credential", args{"credential": []string{"db", "free"}[n%2]})
			if err != nil {
				return err
			}
			if got.refused {
				continue
			}
			granted.Add(1)
			if got, err := c.try("release_lease", args{"lease_id": got.lease()}); err != nil || got.refused {
				return fmt.Errorf("releasing: %v %s", err, got.raw)
			}
		}
		return nil
	})
	all := w.audit()
	books, err := reckon(all)
	w.must(err)
	if n := len(find(all, "lease.created")); n != int(granted.Load()) || n == 0 {
		t.Fatalf("%d grants were told, %d are in the trail", granted.Load(), n)
	}
	if books.mostLive["db"] > 3 || len(w.leases()) != 0 {
		t.Fatalf("at most live: %v; live now: %v", books.mostLive, w.leases())
	}
	of, holds := map[string]string{}, map[string]int{}
	for _, e := range all {
		switch e.Event {
		case "lease.created":
			of[e.LeaseID] = e.Identity.Name
			if holds[e.Identity.Name]++; holds[e.Identity.Name] > 2 {
				t.Fatalf("entry %d: %s holds %d, the rule allows 2", e.Seq, e.Identity.Name, holds[e.Identity.Name])
			}
		case "lease.released":
			holds[of[e.LeaseID]]--
		}
	}
}

// TestF5OneOfMany: 64 connections ask for the last lease in the same instant and exactly one gets it.
func TestF5OneOfMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.seed(secretOf("db", "policy: {maxLeases: 1}"))
	agents := make([]*agent, 8)
	for i := range agents {
		agents[i] = w.agent(fmt.Sprintf("a%d", i))
	}
	for round := range 3 {
		var got [64]answer
		together(t, 64, func(i int) (err error) {
			got[i], err = agents[i%8].try("lease_credential", args{"credential": "db"})
			return err
		})
		winner := -1
		for i, a := range got {
			switch {
			case !a.refused && winner >= 0:
				t.Fatalf("round %d: both %d and %d were granted", round, winner, i)
			case !a.refused:
				winner = i
			case a.code() != "lease_limit":
				t.Fatalf("refused otherwise: %s", a.raw)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody was granted", round)
		}
		if round == 1 {
			w.killDaemon()
		}
		back := call(t, agents[winner%8], "release_lease", args{"lease_id": got[winner].lease()})
		if back.code() == "unavailable" { // it was with the daemon that was killed
			back = call(t, agents[winner%8], "release_lease", args{"lease_id": got[winner].lease()})
		}
		if back.refused {
			t.Fatal(back.raw)
		}
	}
}

// TestKillInTheMiddleOf500Leases: the daemon is killed while eight agents make 500 leases and give half of them back.
// Every acknowledged lease and release is there afterwards, the trail is sound, and the books agree with what is live.
func TestKillInTheMiddleOf500Leases(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, os.TempDir())
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	callers := crowd(w, s.addr, 4, 4)
	var mu sync.Mutex
	leased, released, unsure := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var acknowledged atomic.Int64
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		for acknowledged.Load() < 250 {
			time.Sleep(time.Millisecond)
		}
		s.kill()
		s = w.serve("--http", s.addr)
	}()
	together(t, 8*len(callers), func(i int) error {
		c := callers[i%len(callers)]
		for acknowledged.Load() < 500 {
			got, err := c.try("lease_credential", args{"credential": "db"})
			if err != nil || got.refused {
				time.Sleep(10 * time.Millisecond) // it met the kill: nobody can know
				continue
			}
			acknowledged.Add(1)
			id := got.lease()
			give := rand.IntN(2) == 0
			mu.Lock()
			leased[id] = true
			unsure[id] = give
			mu.Unlock()
			if !give {
				continue
			}
			if back, err := c.try("release_lease", args{"lease_id": id}); err == nil && back.get("status") == "released" {
				mu.Lock()
				released[id] = true
				mu.Unlock()
			}
		}
		return nil
	})
	<-restarted
	books, live := w.books(), w.leases()
	for id := range leased {
		_, isLive := live[id]
		switch {
		case released[id] && (isLive || books.ended[id] != "lease.released"):
			t.Errorf("%s was released and is live: %v, ended: %q", id, isLive, books.ended[id])
		case !unsure[id] && !isLive:
			t.Errorf("%s was leased and is not live: %q", id, books.ended[id])
		case !isLive && books.ended[id] == "":
			t.Errorf("%s was leased and nothing knows of it", id)
		}
	}
	if len(books.live) != len(live) {
		t.Errorf("the trail has %d live leases, keylease shows %d", len(books.live), len(live))
	}
	t.Logf("%d leased, %d released, %d live", len(leased), len(released), len(live))
	w.verified()
}

// TestForgetfulAgent: one agent never releases and asks ten times: beyond its rule's limit it is refused and told which
// leases are its own; the others of its team still work, and it can renew what it has.
func TestForgetfulAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy + "    maxLeases: 3\n")
	w.seed(secretOf("db", "policy: {maxLeases: 5}"))
	forgetful := w.agent("forgetful")
	own := map[string]bool{}
	for i := range 10 {
		got := call(t, forgetful, "lease_credential", args{"credential": "db"})
		if i < 3 {
			own[got.lease()] = !got.refused
			continue
		}
		fault, _ := got.body["error"].(map[string]any)
		if got.code() != "lease_limit" || len(got.yours()) != 3 || fault["retry_after"] == nil || got.get("error", "hint") == "" {
			t.Fatalf("ask %d: %s", i+1, got.raw)
		}
		for _, id := range got.yours() {
			if !own[id] {
				t.Fatalf("%s is not its own", id)
			}
		}
	}
	for _, name := range []string{"dora", "emil"} {
		lend(t, w.agent(name), "db")
	}
	for id := range own {
		if got := call(t, forgetful, "lease_credential", args{"lease_id": id, "ttl": "20m"}); got.refused || got.get("value") != "" {
			t.Fatalf("renewing: %s", got.raw)
		}
	}
}
