package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

var ctx = context.Background()

func TestLeaseIsCappedNotRefused(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: 30 * time.Minute, MaxLeaseTTL: 4 * time.Hour})
	a := w.agent("claude-code")
	if g := w.lease(a, "openai"); g.TTL != 30*time.Minute || g.Capped {
		t.Errorf("default: %v, capped %v", g.TTL, g.Capped)
	}
	g, err := w.Lease(ctx, a, Request{Credential: "openai", TTL: 24 * time.Hour})
	if err != nil || g.TTL != 4*time.Hour || !g.Capped {
		t.Errorf("24h: %v, capped %v, %v", g.TTL, g.Capped, err)
	}
	if got := w.value(a, g.LeaseID); got != "sk-fake-1" {
		t.Errorf("value %q", got)
	}
}

func TestLimitIsExactUnderConcurrencyAndAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 5})
	for round := range 2 {
		var granted, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				a := w.agent(fmt.Sprintf("agent-%d", i))
				_, err := w.Lease(ctx, a, Request{Credential: "openai"})
				switch r := AsRefusal(err); {
				case err == nil:
					granted.Add(1)
				case r != nil && r.Code == LeaseLimit:
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if granted.Load() != 5-int32(5*round) || w.live() != 5 {
			t.Errorf("round %d: %d granted, %d live", round, granted.Load(), w.live())
		}
		w.restart(round == 0)
	}
}

func TestLimitTellsTheCallersOwnLeases(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 2, DefaultLeaseTTL: 10 * time.Minute})
	a, b := w.agent("a"), w.agent("b")
	own, _ := w.lease(a, "openai"), w.lease(b, "openai")
	_, err := w.Lease(ctx, a, Request{Credential: "openai"})
	r := wantCode(t, err, LeaseLimit)
	if len(r.YourLeases) != 1 || r.YourLeases[0].LeaseID != own.LeaseID {
		t.Errorf("your_leases: %+v", r.YourLeases)
	}
	if r.RetryAfter != 10*time.Minute {
		t.Errorf("retry after %v", r.RetryAfter)
	}
	w.pass(10 * time.Minute) // nobody swept: expiry is a fact
	w.lease(a, "openai")
}

func TestRuleLimitCountsOneIdentityOverItsCredentials(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nrules:\n  - name: dev\n    identities: [\"*\"]\n    credentials: [\"dev-*\"]\n    maxLeases: 2\n")
	w.put("dev-a", "sk-fake-1", policy.CredentialPolicy{})
	w.put("dev-b", "sk-fake-2", policy.CredentialPolicy{})
	a := w.agent("a")
	w.lease(a, "dev-a")
	w.lease(a, "dev-b")
	_, err := w.Lease(ctx, a, Request{Credential: "dev-a"})
	wantCode(t, err, LeaseLimit)
	w.lease(w.agent("b"), "dev-a")
}

func TestExpiryIsAFact(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: time.Minute})
	a := w.agent("a")
	g := w.lease(a, "openai")
	w.pass(time.Minute - time.Nanosecond)
	w.value(a, g.LeaseID)
	w.pass(time.Nanosecond)
	if _, err := w.Reveal(ctx, a, g.LeaseID); AsRefusal(err) == nil {
		t.Error("revealed at expires_at")
	}
	if w.live() != 0 {
		t.Error("counted as live at expires_at")
	}
	_, err := w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID})
	wantCode(t, err, LeaseEnded)
	ended, err := w.Release(ctx, a, g.LeaseID)
	if err != nil || ended.Status != Expired {
		t.Errorf("release after expiry: %+v, %v", ended, err)
	}
	if n := w.told(store.EventLeaseExpired); n != 1 {
		t.Errorf("%d lease.expired entries", n)
	}
}

func TestRenewNeverPassesTheCeilingAndNeverShortensUnasked(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: 10 * time.Minute, MaxLeaseTTL: time.Hour})
	a := w.agent("a")
	g, _ := w.Lease(ctx, a, Request{Credential: "openai", TTL: 40 * time.Minute})
	r, err := w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID})
	if err != nil || !r.ExpiresAt.Equal(g.ExpiresAt) {
		t.Errorf("unasked: %v, want %v, %v", r.ExpiresAt, g.ExpiresAt, err)
	}
	if r, err = w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID, TTL: time.Minute}); err != nil || r.TTL != time.Minute {
		t.Errorf("asked to shorten: %v, %v", r.TTL, err)
	}
	if r, err = w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID, TTL: 30 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	w.pass(29 * time.Minute)
	if r, err = w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID, TTL: 50 * time.Minute}); err != nil || !r.ExpiresAt.Equal(g.IssuedAt.Add(time.Hour)) || !r.Capped {
		t.Errorf("past the ceiling: %+v, %v", r, err)
	}
	w.pass(31*time.Minute - time.Second + time.Millisecond)
	_, err = w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID})
	wantCode(t, err, LeaseEnded)
	w.restart(false)
	if infos := w.Leases(Filter{}); len(infos) != 1 || infos[0].ExpiresAt.After(g.IssuedAt.Add(time.Hour)) {
		t.Errorf("after a restart: %+v", infos)
	}
}

func TestOnlyTheOwnerSeesRenewsAndReleases(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a, b := w.agent("a"), w.agent("b")
	sameName := a
	text, _, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if sameName.Principal, err = w.Authenticate(ctx, text, "test"); err != nil {
		t.Fatal(err)
	}
	g := w.lease(a, "openai")
	for _, thief := range []identity.Caller{b, sameName} {
		var bodies []string
		for _, id := range []string{g.LeaseID, "ls_unknown"} {
			_, err := w.Renew(ctx, thief, RenewRequest{LeaseID: id})
			bodies = append(bodies, fmt.Sprintf("%#v", *wantCode(t, err, NotAvailable)))
			_, err = w.Release(ctx, thief, id)
			bodies = append(bodies, fmt.Sprintf("%#v", *wantCode(t, err, NotAvailable)))
			_, err = w.Reveal(ctx, thief, id)
			wantCode(t, err, NotAvailable)
		}
		for _, body := range bodies {
			if body != bodies[0] {
				t.Errorf("answers differ: %s, %s", body, bodies[0])
			}
		}
		page, err := w.List(ctx, thief, ListRequest{})
		if err != nil || len(page.Credentials) != 1 || len(page.Credentials[0].YourLeases) != 0 {
			t.Errorf("list: %+v, %v", page, err)
		}
	}
	if n := w.told(store.EventLeaseDenied); n != 8 {
		t.Errorf("%d lease.denied entries, want 8", n)
	}
	w.value(a, g.LeaseID)
}

func TestReleaseIsIdempotentAndSurvivesKill(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	w.pass(time.Minute)
	first, err := w.Release(ctx, a, g.LeaseID)
	if err != nil || first.Status != Released || first.HeldFor != time.Minute {
		t.Fatalf("%+v, %v", first, err)
	}
	for _, clean := range []bool{false, true} {
		w.restart(clean)
		again, err := w.Release(ctx, a, g.LeaseID)
		if err != nil || again.Status != Released || !again.EndedAt.Equal(first.EndedAt) {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	if n := w.told(store.EventLeaseReleased); n != 1 {
		t.Errorf("%d terminal entries", n)
	}
	w.pass(endedFor + time.Second)
	_, err = w.Release(ctx, a, g.LeaseID)
	wantCode(t, err, NotAvailable)
}

func TestTheHolderLeaves(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	w.Detach(ctx, a.Session)
	w.pass(DefaultGrace - time.Second)
	back := w.agent("a")
	if w.pass(time.Hour / 4 / 2); w.live() != 1 {
		t.Fatal("an adopted lease ended with the grace")
	}
	w.value(back, g.LeaseID)
	w.Detach(ctx, back.Session)
	w.agent("b") // somebody else does not adopt
	w.pass(DefaultGrace)
	if w.live() != 0 {
		t.Error("an orphan outlived its grace")
	}
	w.sweep(ctx)
	for event, want := range map[store.Event]int{store.EventLeaseOrphaned: 2, store.EventLeaseAdopted: 1, store.EventLeaseExpired: 1} {
		if n := w.told(event); n != want {
			t.Errorf("%s: %d, want %d", event, n, want)
		}
	}
}

func TestRenewingAnOrphanFromAnotherSessionKeepsIt(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	other := w.agent("a") // a second window, open all the while
	g := w.lease(a, "openai")
	w.Detach(ctx, a.Session)
	if _, err := w.Renew(ctx, other, RenewRequest{LeaseID: g.LeaseID, TTL: 30 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	w.pass(20 * time.Minute)
	w.value(other, g.LeaseID)
	w.Detach(ctx, other.Session)
	w.pass(DefaultGrace)
	if w.live() != 0 {
		t.Error("it outlived its new session")
	}
}

func TestRevokingLeasesPassesOverThoseWhoseTimeIsUp(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	if _, err := w.Lease(ctx, a, Request{Credential: "openai", TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	w.lease(a, "openai")
	w.pass(time.Second)
	if n, err := w.RevokeLeases(ctx, operator, Filter{Identity: "a"}); n != 1 || err != nil {
		t.Errorf("revoked %d, %v", n, err)
	}
}

func TestRestartOrphansAndTheReturningHolderAdopts(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: 30 * time.Minute})
	a := w.agent("a")
	g := w.lease(a, "openai")
	unbound := a
	unbound.Session = "" // modern HTTP
	h := w.lease(unbound, "openai")
	w.lease(w.agent("b"), "openai")
	w.restart(false)
	if all, each := w.told(store.EventLeasesOrphaned), w.told(store.EventLeaseOrphaned); all != 1 || each != 0 {
		t.Errorf("%d Entries for all that was left, and %d for each: there is to be one", all, each)
	}
	again := w.agent("a")
	w.value(again, g.LeaseID)
	w.restart(true)
	w.pass(DefaultGrace)
	if infos := w.Leases(Filter{}); len(infos) != 1 || infos[0].LeaseID != h.LeaseID {
		t.Errorf("live after the grace: %+v", infos)
	}
}

func TestManyLeftLeasesAreAdoptedInOneEntry(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: 30 * time.Minute})
	a, b := w.agent("a"), w.agent("b")
	for range manyLeft + 1 {
		w.lease(a, "openai")
	}
	short, err := w.Lease(ctx, a, Request{Credential: "openai", TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	others := []string{w.lease(b, "openai").LeaseID, short.LeaseID}
	namesake := a // by another user
	namesake.By, namesake.Session = "uid:4711", "of-4711"
	w.Attach(ctx, namesake)
	others = append(others, w.lease(namesake, "openai").LeaseID)
	w.restart(false)
	w.pass(time.Second)
	again := w.agent("a")
	again.Session = "again"
	w.Attach(ctx, again)
	if all, each := w.told(store.EventLeasesAdopted), w.told(store.EventLeaseAdopted); all != 1 || each != 0 {
		t.Errorf("%d Entries for all, %d for each", all, each)
	}
	w.restart(false) // it is read back
	again.Session = "third"
	w.Attach(ctx, again)
	w.pass(DefaultGrace)
	w.sweep(ctx)
	live := w.Leases(Filter{})
	if len(live) != manyLeft+1 {
		t.Errorf("%d are live after the grace, of %d that were adopted", len(live), manyLeft+1)
	}
	for _, l := range live {
		if slices.Contains(others, l.LeaseID) || l.Orphaned {
			t.Errorf("live: %+v", l)
		}
	}
}

func TestRotationKeepsTheOldVersionUntilItsLastLeaseEnds(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	old := w.lease(a, "openai")
	if _, err := w.Rotate(ctx, operator, "openai", secret.New([]byte("sk-fake-2")), false); err != nil {
		t.Fatal(err)
	}
	if got := w.value(a, old.LeaseID); got != "sk-fake-1" {
		t.Errorf("old lease: %q", got)
	}
	if got := w.value(a, w.lease(a, "openai").LeaseID); got != "sk-fake-2" {
		t.Errorf("new lease: %q", got)
	}
	w.pass(patience)
	w.sweep(ctx)
	if n := w.told(store.EventVersionDestroyed); n != 0 {
		t.Fatal("destroyed while leased")
	}
	if _, err := w.Release(ctx, a, old.LeaseID); err != nil {
		t.Fatal(err)
	}
	w.restart(false) // crash before it was destroyed
	w.sweep(ctx)
	w.pass(patience)
	w.sweep(ctx)
	info, _ := w.Credential("openai")
	if n := w.told(store.EventVersionDestroyed); n != 1 || info.Versions[0].State != stateDestroyed {
		t.Errorf("%d destroyed, %+v", n, info.Versions)
	}
	w.restart(false)
	w.pass(time.Hour)
	w.sweep(ctx)
	if n := w.told(store.EventVersionDestroyed); n != 1 {
		t.Errorf("destroyed %d times", n)
	}
	if _, err := w.Rotate(ctx, operator, "openai", secret.Secret{}, false); AsRefusal(err) == nil {
		t.Error("an empty new value was taken")
	}
}

func TestRemovingACredentialEndsItsLeasesForGood(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	if err := w.Remove(ctx, operator, "openai"); err != nil {
		t.Fatal(err)
	}
	w.put("openai", "sk-fake-2", policy.CredentialPolicy{})
	_, err := w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID})
	wantCode(t, err, LeaseEnded)
	w.restart(false)
	if w.live() != 0 {
		t.Error("a lease of the removed credential is alive")
	}
	if got := w.value(a, w.lease(a, "openai").LeaseID); got != "sk-fake-2" {
		t.Errorf("value %q", got)
	}
	w.pass(patience)
	w.sweep(ctx)
	w.pass(patience)
	w.sweep(ctx)
	if n := w.told(store.EventVersionDestroyed); n != 1 {
		t.Errorf("%d keys destroyed, want the removed one's", n)
	}
}

func TestPolicyEditHoldsForTheNextCallAndABrokenOneChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.put("dev-a", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "dev-a")
	w.setPolicy("version: 1\nrules:\n  - name: r\n    identities: [b]\n    credentials: [\"*\"]\n")
	_, err := w.Lease(ctx, a, Request{Credential: "dev-a"})
	wantCode(t, err, NotAvailable)
	_, err = w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID})
	wantCode(t, err, NotAvailable)
	w.setPolicy("version: 1\nrulez: []\n")
	_, err = w.Lease(ctx, a, Request{Credential: "dev-a"})
	wantCode(t, err, NotAvailable)
	w.lease(w.agent("b"), "dev-a")
	if w.PolicyStatus().Problem == "" || w.told(store.EventPolicyRejected) != 1 || w.told(store.EventPolicyLoaded) != 1 {
		t.Errorf("status %+v", w.PolicyStatus())
	}
	w.setPolicy("")
	w.lease(w.agent("b"), "dev-a") // vanished: the last one goes on governing
	_ = w.store.Close()
	if err := w.tryOpen(false); err == nil {
		t.Fatal("started without the policy that governed")
	}
	if err := w.tryOpen(true); err != nil {
		t.Fatal(err)
	}
	w.lease(w.agent("a"), "dev-a")
}

func TestSeedIsIdempotentAndBringsNothingBack(t *testing.T) {
	w := newWorld(t)
	item := func(name, value string) SeedItem {
		return SeedItem{NewCredential: NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte(value)),
			Metadata: map[string]string{"team": "x"}}, HasValue: true, Line: 3}
	}
	seed := func(force bool, items ...SeedItem) []string {
		t.Helper()
		results, err := w.Seed(ctx, operator, items, force)
		if err != nil {
			t.Fatal(err)
		}
		var actions []string
		for _, r := range results {
			actions = append(actions, r.Action)
		}
		return actions
	}
	expect := func(got []string, want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	expect(seed(false, item("a", "sk-fake-1"), item("b", "sk-fake-b")), "created", "created")
	expect(seed(false, item("a", "sk-fake-1")), "unchanged")
	expect(seed(false, item("a", "sk-fake-2")), "rotated")
	expect(seed(false, item("a", "sk-fake-1")), "conflict")
	if _, err := w.Rotate(ctx, operator, "a", secret.New([]byte("sk-fake-3")), false); err != nil {
		t.Fatal(err)
	}
	w.restart(false)
	expect(seed(false, item("a", "sk-fake-2")), "unchanged") // what was last seeded: the rotation stays
	expect(seed(false, item("a", "sk-fake-3")), "unchanged")
	if err := w.Remove(ctx, operator, "a"); err != nil {
		t.Fatal(err)
	}
	expect(seed(false, item("a", "sk-fake-9")), "conflict")
	w.restart(true)
	expect(seed(false, item("a", "sk-fake-9")), "conflict")
	expect(seed(true, item("a", "sk-fake-9")), "created")
	if _, err := w.RevokeCredential(ctx, operator, "b"); err != nil {
		t.Fatal(err)
	}
	expect(seed(false, item("b", "sk-fake-new")), "conflict")
	plain := SeedItem{NewCredential: NewCredential{Name: "plain", Type: "api-key", Value: secret.New([]byte("sk-fake-p"))}, HasValue: true}
	expect(seed(false, plain), "created")
	plain.HasValue = false // consumed
	expect(seed(false, plain), "unchanged")
	w.put("by-hand", "sk-fake-hand", policy.CredentialPolicy{})
	expect(seed(false, item("by-hand", "sk-fake-leaked")), "conflict")
	bad := item("c/d", "sk-fake-x")
	if _, err := w.Seed(ctx, operator, []SeedItem{item("ok", "sk-fake-y"), bad, item("", "z")}, false); AsRefusal(err) == nil {
		t.Error("a half good file was taken")
	}
	if _, err := w.Credential("ok"); AsRefusal(err) == nil {
		t.Error("half of a bad file was stored")
	}
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w.restart(false)
	p, err := w.Authenticate(ctx, text, "test")
	if err != nil || p.Name != "ci" || p.Proof != identity.Token {
		t.Fatalf("%+v, %v", p, err)
	}
	g := w.lease(identity.Caller{Principal: p}, "openai")
	next, _, err := w.RotateToken(ctx, operator, info.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Authenticate(ctx, text, "test"); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("the old text still works: %v", err)
	}
	if q, err := w.Authenticate(ctx, next, "test"); err != nil || q != p {
		t.Errorf("rotation changed the principal: %+v, %v", q, err)
	}
	w.value(identity.Caller{Principal: p}, g.LeaseID)
	if _, err := w.RevokeToken(ctx, operator, info.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.Lease(ctx, identity.Caller{Principal: p}, Request{Credential: "openai"}) // a connection it opened is still there
	wantCode(t, err, Unauthenticated)
	w.restart(true)
	if _, err := w.Authenticate(ctx, next, "test"); !errors.Is(err, ErrUnauthenticated) || w.live() != 0 {
		t.Errorf("revoked: %v, %d leases live", err, w.live())
	}
	for range 5 {
		if _, err := w.Authenticate(ctx, "kl_nonsense", "127.0.0.1"); !errors.Is(err, ErrUnauthenticated) {
			t.Error("nonsense was believed")
		}
	}
	if n := w.told(store.EventAuthFailed); n != 3 {
		t.Errorf("%d auth.failed entries, want one per source and reason", n)
	}
	w.pass(summaryEvery)
	w.sweep(ctx)
	if n := w.told(store.EventAuthFailed); n != 4 {
		t.Errorf("%d auth.failed entries, want one summary more", n)
	}
	short, _, _ := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci", TTL: time.Second})
	w.pass(time.Second)
	if _, err := w.Authenticate(ctx, short, "test"); !errors.Is(err, ErrUnauthenticated) {
		t.Error("an expired token was believed")
	}
}

func TestRateIsSharedByAllDeclaredNamesOfOneUser(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nlimits: {leaseRate: 1, leaseBurst: 4}\nrules:\n  - name: r\n    identities: [\"*\"]\n    credentials: [\"*\"]\n")
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	var held Grant
	first := w.agent("a-0")
	for i := range 4 {
		c := w.agent(fmt.Sprintf("a-%d", i))
		if i == 0 {
			c = first
			held = w.lease(c, "openai")
			continue
		}
		w.lease(c, "openai")
	}
	_, err := w.Lease(ctx, w.agent("fresh-name"), Request{Credential: "openai"})
	wantCode(t, err, RateLimited)
	if _, err := w.Release(ctx, first, held.LeaseID); err != nil {
		t.Errorf("giving back was rate limited: %v", err)
	}
	w.pass(summaryEvery)
	w.sweep(ctx)
	if n := w.told(store.EventTrailSuppressed); n != 1 {
		t.Errorf("%d summaries", n)
	}
}

func TestListPagesAndCursorsAreBoundToTheirHolder(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.put(fmt.Sprintf("k-%d", i), "sk-fake", policy.CredentialPolicy{})
	}
	a, b := w.agent("a"), w.agent("b")
	var names []string
	cursor := ""
	for {
		page, err := w.List(ctx, a, ListRequest{Limit: 3, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Credentials {
			names = append(names, o.Name)
		}
		if page.NextCursor == "" {
			break
		}
		cursor = page.NextCursor
		_, err = w.List(ctx, b, ListRequest{Cursor: cursor})
		wantCode(t, err, InvalidArgument)
	}
	if fmt.Sprint(names) != "[k-0 k-1 k-2 k-3 k-4 k-5 k-6]" {
		t.Errorf("%v", names)
	}
	for _, limit := range []int{-1, 201, 1 << 40} {
		_, err := w.List(ctx, a, ListRequest{Limit: limit})
		wantCode(t, err, InvalidArgument)
	}
}

func TestWhatCouldNotBeRecordedDidNotHappen(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 2})
	a := w.agent("a")
	kept := w.lease(a, "openai")
	// A change that the store refuses: a detail that no list allows. The index has it, the disk will not.
	b := w.Broker
	b.mu.Lock()
	e := entry(store.EventLeaseReleased, a)
	e.LeaseID, e.Details = kept.LeaseID, store.DetailsOf("nonsense", "x")
	bad, err := b.submit(store.Change{Entry: e}, nil)
	b.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if w.live() != 0 {
		t.Fatal("the change did not reach the index, so this test shows nothing")
	}
	if _, err := b.settle(bad); AsRefusal(err) == nil || AsRefusal(err).Code != Unavailable {
		t.Errorf("settled: %v", err)
	}
	if w.live() != 1 || w.value(a, kept.LeaseID) != "sk-fake-1" {
		t.Error("what could not be recorded happened")
	}
	w.lease(a, "openai")
	_, err = w.Lease(ctx, a, Request{Credential: "openai"})
	wantCode(t, err, LeaseLimit)
	w.Detach(ctx, a.Session)
	w.pass(DefaultGrace)
	if w.live() != 0 {
		t.Error("the session was forgotten in the rebuild")
	}
}

func TestFollowSeesWhatIsRecorded(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	seq, _ := w.store.Head()
	done := make(chan error, 1)
	go func() { done <- w.Follow(ctx, seq+1) }()
	w.lease(w.agent("a"), "openai")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestATokenIsGoodForItsScopesAlone(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nrules:\n  - {name: all, identities: [\"*\"], credentials: [\"*\"]}\n")
	w.restart(true)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	with := func(s identity.Scopes) identity.Caller {
		return identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "ci", Proof: identity.OIDC, By: "oidc:https://idp.example#1"}, Scopes: s}
	}
	g := w.lease(with(identity.MayLease), "openai")
	for what, try := range map[string]func() error{
		"lease with list": func() error {
			_, err := w.Lease(ctx, with(identity.MayList), Request{Credential: "openai"})
			return err
		},
		"lease with none": func() error { _, err := w.Lease(ctx, with(0), Request{Credential: "openai"}); return err },
		"renew with list": func() error {
			_, err := w.Renew(ctx, with(identity.MayList), RenewRequest{LeaseID: g.LeaseID})
			return err
		},
		"reveal with list":  func() error { _, err := w.Reveal(ctx, with(identity.MayList), g.LeaseID); return err },
		"list with lease":   func() error { _, err := w.List(ctx, with(identity.MayLease), ListRequest{}); return err },
		"list with neither": func() error { _, err := w.List(ctx, with(0), ListRequest{}); return err },
	} {
		if r := AsRefusal(try()); r == nil || r.Code != NotAvailable {
			t.Errorf("%s: %v", what, r)
		}
	}
	if _, err := w.Release(ctx, with(0), g.LeaseID); err != nil {
		t.Errorf("giving back: %v", err)
	}
	if w.live() != 0 {
		t.Errorf("%d live", w.live())
	}
}
