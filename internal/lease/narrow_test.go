package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// token makes a token and returns its text, its record and a caller who holds it.
func (w *world) token(s TokenSpec) (string, TokenInfo, identity.Caller) {
	w.t.Helper()
	text, info, err := w.CreateToken(ctx, operator, s)
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := w.Authenticate(ctx, text, "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return text, info, identity.Caller{Principal: p, Transport: "http"}
}

// tokenInfo is what token ls says of one.
func (w *world) tokenInfo(id string) TokenInfo {
	w.t.Helper()
	for _, t := range w.Tokens() {
		if t.ID == id {
			return t
		}
	}
	w.t.Fatalf("there is no token %s", id)
	return TokenInfo{}
}

func (w *world) names(c identity.Caller) (names []string) {
	w.t.Helper()
	page, err := w.List(ctx, c, ListRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range page.Credentials {
		names = append(names, o.Name)
	}
	return names
}

func TestANarrowedTokenDoesLessInEveryVerb(t *testing.T) {
	w := newWorld(t)
	long := policy.CredentialPolicy{DefaultLeaseTTL: 2 * time.Hour, MaxLeaseTTL: 8 * time.Hour}
	w.put("openai-dev", "sk-fake-1", long)
	w.put("aws-dev", "sk-fake-2", long)
	text, info, ci := w.token(TokenSpec{Identity: "ci", Credentials: []string{"openai-*", "gone-*"}, MaxTTL: 10 * time.Minute})
	_, _, whole := w.token(TokenSpec{Identity: "ci"})
	check := func(t *testing.T) {
		g, err := w.Lease(ctx, ci, Request{Credential: "openai-dev", TTL: time.Hour})
		if err != nil || g.TTL != 10*time.Minute || !g.Capped || !g.MaxExpiresAt.Equal(g.IssuedAt.Add(10*time.Minute)) {
			t.Fatalf("lease: %+v, %v", g, err)
		}
		w.value(ci, g.LeaseID)
		_, err = w.Lease(ctx, ci, Request{Credential: "aws-dev"})
		other := wantCode(t, err, NotAvailable)
		_, err = w.Lease(ctx, ci, Request{Credential: "no-such"})
		if none := wantCode(t, err, NotAvailable); none.Error() != other.Error() || none.Hint != other.Hint {
			t.Errorf("outside the narrowing and unknown are told apart: %v, %v", other, none)
		}
		page, err := w.List(ctx, ci, ListRequest{})
		if err != nil || len(page.Credentials) != 1 {
			t.Fatalf("list: %+v, %v", page, err)
		}
		if o := page.Credentials[0]; o.Name != "openai-dev" || o.MaxTTL != 10*time.Minute || o.DefaultTTL != 10*time.Minute || len(o.YourLeases) != 1 {
			t.Errorf("offered %+v", o)
		}
		w.pass(4 * time.Minute)
		r, err := w.Renew(ctx, ci, RenewRequest{LeaseID: g.LeaseID, TTL: time.Hour})
		if err != nil || r.ExpiresAt.After(g.IssuedAt.Add(10*time.Minute)) {
			t.Errorf("renewed past the token's ceiling: %v, %v", r.ExpiresAt.Sub(g.IssuedAt), err)
		}
		if _, err := w.Release(ctx, ci, g.LeaseID); err != nil {
			t.Error(err)
		}
		theirs := w.lease(whole, "aws-dev")
		if theirs.TTL != 2*time.Hour {
			t.Errorf("the narrowing of one token is another's: %v", theirs.TTL)
		}
		_, err = w.Reveal(ctx, ci, theirs.LeaseID)
		wantCode(t, err, NotAvailable)
		_, err = w.Release(ctx, ci, theirs.LeaseID)
		wantCode(t, err, NotAvailable)
		if _, err := w.Release(ctx, whole, theirs.LeaseID); err != nil {
			t.Error(err)
		}
	}
	t.Run("new", check)
	w.restart(false)
	t.Run("after kill", check)
	w.restart(true)
	t.Run("after a restart", check)
	if _, _, err := w.RotateToken(ctx, operator, info.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	t.Run("rotated", check)
	if p, err := w.Authenticate(ctx, text, "test"); err != nil || p != ci.Principal {
		t.Errorf("%v, %v", p, err)
	}
	d, steps, err := w.Explain(ctx, ci.Principal, "aws-dev")
	if err != nil || d.Allow || len(steps) != 1 || steps[0].Matched || steps[0].Effect != policy.EffectNarrow {
		t.Errorf("explain: %+v, %+v, %v", d, steps, err)
	}
}

func TestANarrowingThatMeansNothingIsRefused(t *testing.T) {
	w := newWorld(t)
	for name, s := range map[string]TokenSpec{
		"an empty list":     {Identity: "ci", Credentials: []string{}},
		"an empty pattern":  {Identity: "ci", Credentials: []string{""}},
		"a class":           {Identity: "ci", Credentials: []string{"ok", "[ab]*"}},
		"capitals":          {Identity: "ci", Credentials: []string{"OpenAI-*"}},
		"too many":          {Identity: "ci", Credentials: make([]string, 33)},
		"a negative time":   {Identity: "ci", MaxTTL: -time.Second},
		"less than 1 s":     {Identity: "ci", MaxTTL: time.Millisecond},
		"a negative number": {Identity: "ci", Uses: -1},
	} {
		_, _, err := w.CreateToken(ctx, operator, s)
		if r := AsRefusal(err); r == nil || r.Code != InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.Tokens()) != 0 {
		t.Error("one of them was made")
	}
}

func TestUsesAreExactUnderARaceAndAfterKill(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	_, info, ci := w.token(TokenSpec{Identity: "ci", Uses: 20})
	_, _, free := w.token(TokenSpec{Identity: "ci"})
	var first atomic.Pointer[string]
	rush := func(want int32) {
		t.Helper()
		var granted, refused atomic.Int32
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				g, err := w.Lease(ctx, ci, Request{Credential: "openai"})
				switch r := AsRefusal(err); {
				case err == nil:
					granted.Add(1)
					if !first.CompareAndSwap(nil, &g.LeaseID) {
						_, _ = w.Release(ctx, ci, g.LeaseID) // gives no use back
					}
				case r != nil && r.Code == LeaseLimit && r.RetryAfter == 0:
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if granted.Load() != want || refused.Load() != 64-want {
			t.Errorf("%d granted, %d refused, want %d granted", granted.Load(), refused.Load(), want)
		}
	}
	for range 5 { // one by one, then killed, stopped and started
		g := w.lease(ci, "openai")
		if _, err := w.Release(ctx, ci, g.LeaseID); err != nil {
			t.Fatal(err)
		}
	}
	w.restart(false)
	rush(15)
	for _, clean := range []bool{false, true, false} {
		w.restart(clean)
		rush(0)
		if left := w.tokenInfo(info.ID).UsesLeft; left == nil || *left != 0 {
			t.Errorf("uses left: %v", left)
		}
	}
	if _, err := w.Renew(ctx, ci, RenewRequest{LeaseID: *first.Load()}); err != nil {
		t.Errorf("a renewal is no grant: %v", err)
	}
	_, err := w.Lease(ctx, ci, Request{Credential: "openai"})
	if r := wantCode(t, err, LeaseLimit); len(r.YourLeases) != 1 || r.YourLeases[0].LeaseID != *first.Load() {
		t.Errorf("your_leases: %+v", r.YourLeases)
	}
	w.lease(free, "openai") // the same identity by another token
	if _, _, err := w.RotateToken(ctx, operator, info.ID, 0); err != nil {
		t.Fatal(err)
	}
	_, err = w.Lease(ctx, ci, Request{Credential: "openai"})
	wantCode(t, err, LeaseLimit) // a rotation gives no uses
}

func TestRotationWithOverlap(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeaseTTL: 8 * time.Hour})
	works := func(text string) bool {
		_, err := w.Authenticate(ctx, text, "test")
		if err != nil && !errors.Is(err, ErrUnauthenticated) {
			t.Fatal(err)
		}
		return err == nil
	}
	first, info, ci := w.token(TokenSpec{Identity: "ci"})
	g := w.lease(ci, "openai")
	rotate := func(overlap time.Duration) string {
		t.Helper()
		text, i, err := w.RotateToken(ctx, operator, info.ID, overlap)
		if err != nil {
			t.Fatal(err)
		}
		info = i
		return text
	}
	second := rotate(time.Hour)
	for _, clean := range []bool{false, true} {
		for name, text := range map[string]string{"before": first, "after": second} {
			p, err := w.Authenticate(ctx, text, "test")
			if err != nil || p != ci.Principal {
				t.Fatalf("the text %s the rotation: %+v, %v", name, p, err)
			}
			if _, err := w.Renew(ctx, identity.Caller{Principal: p}, RenewRequest{LeaseID: g.LeaseID}); err != nil {
				t.Errorf("the text %s the rotation can't renew: %v", name, err)
			}
		}
		w.restart(clean)
	}
	w.pass(time.Hour - time.Nanosecond)
	if !works(first) || !works(second) {
		t.Error("over too early")
	}
	w.pass(time.Nanosecond)
	if works(first) || !works(second) || w.tokenInfo(info.ID).PreviousUntil != nil {
		t.Error("the overlap does not end, or ends the wrong one")
	}
	third := rotate(time.Hour)
	fourth := rotate(time.Hour)
	if works(second) || !works(third) || !works(fourth) {
		t.Error("a second rotation within an overlap must end the older text, and only that")
	}
	fifth := rotate(0)
	if works(third) || works(fourth) || !works(fifth) {
		t.Error("a rotation without an overlap must end all that was before")
	}
	sixth := rotate(365 * 24 * time.Hour)
	if got := info.PreviousUntil.Sub(w.clock()); got != MaxOverlap {
		t.Errorf("an overlap of a year became %v", got)
	}
	if _, err := w.RevokeToken(ctx, operator, info.ID); err != nil {
		t.Fatal(err)
	}
	w.restart(false)
	if works(fifth) || works(sixth) {
		t.Error("a text outlives its token")
	}
	if _, _, err := w.RotateToken(ctx, operator, info.ID, -time.Second); AsRefusal(err) == nil {
		t.Error("a negative overlap")
	}

	short, i, _ := w.token(TokenSpec{Identity: "ci", TTL: time.Minute})
	if _, i, err := w.RotateToken(ctx, operator, i.ID, time.Hour); err != nil || !i.PreviousUntil.Equal(*i.ExpiresAt) {
		t.Errorf("an overlap past the token's end: %+v, %v", i, err)
	}
	w.pass(time.Minute)
	if works(short) {
		t.Error("the old text outlives its token")
	}
	_, _, err := w.RotateToken(ctx, operator, i.ID, 0)
	wantCode(t, err, Conflict)
}

func TestLastUseIsKnownAndAfterKillALowerBound(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: time.Minute})
	text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
	if err != nil || info.LastUsedAt != nil {
		t.Fatalf("%+v, %v", info, err)
	}
	p, _ := w.Authenticate(ctx, text, "test")
	w.lease(identity.Caller{Principal: p}, "openai")
	leased := w.clock()
	w.pass(10 * time.Minute)
	_, _ = w.Authenticate(ctx, text+"x", "test")
	w.sweep(ctx) // the lease expires, in its holder's name: no use
	if n := w.told(store.EventLeaseExpired); n != 1 {
		t.Fatalf("%d leases expired", n)
	}
	want := func(at time.Time) {
		t.Helper()
		if got := w.tokenInfo(info.ID).LastUsedAt; got == nil || !got.Equal(at) {
			t.Errorf("last used %v, want %v", got, at)
		}
	}
	want(leased)
	w.pass(time.Minute)
	_, _ = w.Authenticate(ctx, text, "test")
	want(w.clock())
	seen := w.clock()
	w.restart(true)
	want(seen)
	w.pass(time.Minute)
	_, _ = w.Authenticate(ctx, text, "test")
	w.restart(false)
	want(seen) // what only memory knew is gone with it
	w.lease(identity.Caller{Principal: p}, "openai")
	w.pass(time.Second)
	_, _ = w.Authenticate(ctx, text, "test")
	w.restart(false)
	want(w.clock().Add(-time.Second)) // the trail tells of a lease
}

func TestAnIdentityIsCutOffAtOnceAndEachLeaseEndsOnce(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nlimits: {leaseRate: 0}\nrules:\n  - name: r\n    identities: [\"*\"]\n    credentials: [\"*\"]\n")
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 1000})
	a, b := w.agent("a"), w.agent("b")
	var ids []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				g, err := w.Lease(ctx, a, Request{Credential: "openai"})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ids = append(ids, g.LeaseID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	before := len(entriesOf(w))
	n, err := w.RevokeLeases(ctx, operator, Filter{Identity: "a"})
	if err != nil || n != 1000 {
		t.Fatalf("%d, %v", n, err)
	}
	cut := w.clock()
	if grown := len(entriesOf(w)) - before; grown != 1 {
		t.Errorf("%d entries for 1000 leases", grown)
	}
	kept := w.lease(a, "openai") // granted in the same instant of a clock that stands: after is after
	his := w.lease(b, "openai")
	check := func(when string) {
		t.Helper()
		if live := w.live(); live != 2 {
			t.Errorf("%s: %d leases live", when, live)
		}
		w.value(a, kept.LeaseID)
		w.value(b, his.LeaseID)
		for _, id := range ids[:3] {
			_, err := w.Reveal(ctx, a, id)
			wantCode(t, err, LeaseEnded)
			_, err = w.Renew(ctx, a, RenewRequest{LeaseID: id})
			wantCode(t, err, LeaseEnded)
		}
		page, err := w.List(ctx, a, ListRequest{})
		if err != nil || len(page.Credentials[0].YourLeases) != 1 || page.Credentials[0].LeasesInUse != 2 {
			t.Errorf("%s: listed %d of its own, %v", when, len(page.Credentials[0].YourLeases), err)
		}
	}
	check("at once")
	w.pass(time.Minute)
	ended, err := w.Release(ctx, a, ids[0]) // before the sweeper came to it
	if err != nil || ended.Status != Revoked || !ended.EndedAt.Equal(cut) {
		t.Errorf("released after the cut: %+v, %v", ended, err)
	}
	if e, err := w.EndLease(ctx, operator, ids[1]); err != nil || e.Status != Revoked || !e.EndedAt.Equal(cut) {
		t.Errorf("ended by an admin after the cut: %+v, %v", e, err)
	}
	w.restart(false)
	a, b = w.back(a), w.back(b)
	check("killed")
	w.restart(true)
	a, b = w.back(a), w.back(b)
	check("restarted")
	if n, err := w.RevokeLeases(ctx, operator, Filter{Identity: "nobody"}); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if all, err := w.sweepSome(); len(all) != sweepGroup || w.untilSweep() != 0 || err != nil {
		t.Errorf("%d of 1000 are swept, and the sweeper waits %v: %v", len(all), w.untilSweep(), err)
	}
	w.sweep(ctx)
	check("swept")
	ends := map[string]int{}
	for _, e := range entriesOf(w) {
		switch e.Event {
		case store.EventLeaseRevoked:
			ends[e.LeaseID]++
			if e.Identity.Name != operator.Name || e.Details.Get("reason") != "revoked by an admin" {
				t.Fatalf("told as %+v", e)
			}
		case store.EventLeaseReleased, store.EventLeaseExpired:
			t.Errorf("%s %s", e.Event, e.LeaseID)
		}
	}
	for _, id := range ids {
		if ends[id] != 1 {
			t.Errorf("%s has %d terminal entries", id, ends[id])
		}
	}
	if len(ends) != len(ids) {
		t.Errorf("%d ended of %d", len(ends), len(ids))
	}
	again, err := w.Release(ctx, a, ids[5])
	if err != nil || again.Status != Revoked || !again.EndedAt.Equal(cut) {
		t.Errorf("released after the sweep: %+v, %v", again, err)
	}
	if n, err := w.RevokeLeases(ctx, operator, Filter{Identity: "a", Type: identity.Human}); err != nil || n != 0 {
		t.Errorf("a human of an agent's name: %d, %v", n, err)
	}
}

// back is a caller whose session came again after a restart.
func (w *world) back(c identity.Caller) identity.Caller {
	w.Attach(context.Background(), c)
	return c
}

func entriesOf(w *world) (all []store.Entry) {
	w.t.Helper()
	if err := w.Entries(ctx, EntryFilter{}, func(e *store.Entry) error { all = append(all, *e); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// What was cut off and not yet written down does not stand in the way of removing or rotating what it was about, and
// its time running out makes it no other end.
func TestACutOffLeaseEndsAsRevokedWhateverComesFirst(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"removed", "revoked", "expired", "token"} {
		w.put(name, "sk-fake-1", policy.CredentialPolicy{DefaultLeaseTTL: time.Minute})
	}
	_, info, ci := w.token(TokenSpec{Identity: "ci"})
	for _, name := range []string{"removed", "revoked", "expired", "token"} {
		w.lease(ci, name)
	}
	if n, err := w.RevokeLeases(ctx, operator, Filter{Identity: "ci"}); err != nil || n != 4 {
		t.Fatalf("%d, %v", n, err)
	}
	if err := w.Remove(ctx, operator, "removed"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RevokeCredential(ctx, operator, "revoked"); err != nil {
		t.Fatal(err)
	}
	w.restart(true)
	w.pass(time.Minute)
	if _, err := w.Lease(ctx, ci, Request{Credential: "token"}); err != nil { // writes down what is over
		t.Fatal(err)
	}
	if _, err := w.RevokeToken(ctx, operator, info.ID); err != nil {
		t.Fatal(err)
	}
	w.restart(false)
	w.sweep(ctx)
	if n := w.told(store.EventLeaseRevoked); n != 5 || w.told(store.EventLeaseExpired) != 0 {
		t.Errorf("%d revoked, %d expired", n, w.told(store.EventLeaseExpired))
	}
	if len(w.ix.cut) != 0 || len(w.ix.holders) != 0 {
		t.Errorf("%d holdings are left over", len(w.ix.cut)+len(w.ix.holders))
	}
}

func TestFrozenLendsNothingUntilThawed(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	kept, back := w.lease(a, "openai"), w.lease(a, "openai")
	f, err := w.Freeze(ctx, operator, "a token leaked\x1b[2J")
	if err != nil || f.Already || f.Reason != "a token leaked\ufffd[2J" {
		t.Fatalf("%+v, %v", f, err)
	}
	w.pass(time.Second)
	if again, err := w.Freeze(ctx, operator, "another"); err != nil || again != (Frozen{f.Since, f.Reason, true}) {
		t.Errorf("frozen twice: %+v, %v", again, err)
	}
	frozen := func(err error) {
		t.Helper()
		if r := wantCode(t, err, Unavailable); r.Reason != "frozen" {
			t.Errorf("reason %q", r.Reason)
		}
	}
	check := func(t *testing.T) {
		_, err := w.Lease(ctx, a, Request{Credential: "openai"})
		frozen(err)
		_, err = w.Lease(ctx, a, Request{Credential: "no-such"})
		frozen(err) // tells nothing of what there is
		_, err = w.Renew(ctx, a, RenewRequest{LeaseID: kept.LeaseID})
		frozen(err)
		_, err = w.Reveal(ctx, a, kept.LeaseID) // granted before
		frozen(err)
		if names := w.names(a); len(names) != 1 {
			t.Errorf("listed %v", names)
		}
		if act := w.Activity(); act.Frozen == nil || *act.Frozen != f || !act.Healthy {
			t.Errorf("%+v", act)
		}
	}
	t.Run("at once", check)
	if _, err := w.Release(ctx, a, back.LeaseID); err != nil {
		t.Error(err)
	}
	w.restart(false)
	a = w.back(a)
	t.Run("killed", check)
	w.restart(true)
	a = w.back(a)
	t.Run("restarted", check)
	w.put("more", "sk-fake-2", policy.CredentialPolicy{}) // the admin's verbs go on
	if n := w.told(store.EventServerFrozen); n != 1 {
		t.Errorf("%d server.frozen entries", n)
	}
	for _, want := range []bool{true, false} {
		if was, err := w.Thaw(ctx, operator); err != nil || was != want {
			t.Errorf("thawed: %v, %v", was, err)
		}
	}
	w.value(a, kept.LeaseID)
	w.restart(false)
	w.lease(w.back(a), "openai")
	if n := w.told(store.EventServerThawed); n != 1 {
		t.Errorf("%d server.thawed entries", n)
	}
}

// A freeze stands in the trail before any value that leaves after it was acknowledged.
func TestNoValueLeavesAfterAFreezeIsAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nlimits: {leaseRate: 0}\nrules:\n  - name: r\n    identities: [\"*\"]\n    credentials: [\"*\"]\n")
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	var frozen atomic.Bool
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				g, err := w.Lease(ctx, a, Request{Credential: "openai"})
				before := frozen.Load()
				if err == nil {
					_, err = w.Reveal(ctx, a, g.LeaseID)
				}
				if err != nil {
					return
				}
				if before {
					t.Error("a value left")
				}
			}
		})
	}
	for w.live() < 20 {
		time.Sleep(time.Millisecond)
	}
	if _, err := w.Freeze(ctx, operator, ""); err != nil {
		t.Fatal(err)
	}
	frozen.Store(true)
	wg.Wait()
}

func TestDeclaredNamesAreRefusedEveryVerbWhereTheOperatorSaysSo(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	_, _, ci := w.token(TokenSpec{Identity: "ci"})
	w.Broker.cfg.DenyDeclared = true
	verbs := map[string]func() error{
		"lease":   func() error { _, err := w.Lease(ctx, a, Request{Credential: "openai"}); return err },
		"renew":   func() error { _, err := w.Renew(ctx, a, RenewRequest{LeaseID: g.LeaseID}); return err },
		"list":    func() error { _, err := w.List(ctx, a, ListRequest{}); return err },
		"release": func() error { _, err := w.Release(ctx, a, g.LeaseID); return err },
		"reveal":  func() error { _, err := w.Reveal(ctx, a, g.LeaseID); return err },
	}
	for name, verb := range verbs {
		r := wantCode(t, verb(), Unauthenticated)
		if r.Hint == "" || r.Message == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	w.Detach(ctx, a.Session)
	b := a
	b.Session = newID("s_")
	w.Attach(ctx, b)
	if n := w.told(store.EventLeaseAdopted); n != 0 {
		t.Error("a name that is refused adopts leases")
	}
	w.pass(DefaultGrace)
	if w.live() != 0 {
		t.Error("its lease outlives the grace")
	}
	w.value(ci, w.lease(ci, "openai").LeaseID)
	if d, _, err := w.Explain(ctx, a.Principal, "openai"); err != nil || d.Allow {
		t.Errorf("explain: %+v, %v", d, err)
	}
}

// The snapshot and the trail tell the same.
func TestASnapshotTellsWhatTheTrailTells(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	text, info, ci := w.token(TokenSpec{Identity: "ci", Credentials: []string{"open*"}, MaxTTL: time.Minute, Uses: 9})
	for range 3 {
		w.lease(ci, "openai")
	}
	if _, err := w.RevokeLeases(ctx, operator, Filter{Identity: "ci"}); err != nil {
		t.Fatal(err)
	}
	w.lease(ci, "openai")
	if _, err := w.Freeze(ctx, operator, "why"); err != nil {
		t.Fatal(err)
	}
	told := func() string {
		w.Broker.mu.Lock()
		defer w.Broker.mu.Unlock()
		tk := w.ix.tokens[info.ID]
		return fmt.Sprintf("%d grants, used %v, %+v, %d held, %d cut off of %d, frozen %+v", tk.grants, tk.lastUsed, tk.rec,
			len(w.ix.held(ci.Holder())), len(w.ix.cut[0].leases), len(w.ix.cut), *w.ix.frozen)
	}
	live := told()
	w.restart(false)
	if replayed := told(); replayed != live {
		t.Errorf("live and replayed:\n%s\n%s", live, replayed)
	}
	w.restart(true)
	w.restart(true)
	if restored := told(); restored != live {
		t.Errorf("live and restored:\n%s\n%s", live, restored)
	}
	_, _ = w.Authenticate(ctx, text, "test")
}

// What could not be recorded takes no use of a token, freezes nothing and cuts nobody off.
func TestWhatCouldNotBeRecordedTakesNoUse(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	_, info, ci := w.token(TokenSpec{Identity: "ci", Uses: 2})
	kept := w.lease(ci, "openai")
	b := w.Broker
	b.mu.Lock()
	again := entry(store.EventLeaseCreated, ci)
	again.LeaseID, again.Credential, again.CredentialID, again.Version = "ls_lost", "openai", b.ix.creds["openai"].rec.ID, 1
	frozen, cut := entry(store.EventServerFrozen, operator), entry(store.EventLeasesEnded, operator)
	var last written
	for _, e := range []store.Entry{again, frozen, cut} { // with a detail that no list allows: the disk will not have them
		e.Details = store.DetailsOf("nonsense", "x", "identity", "ci", "identity_type", "agent")
		bad, err := b.submit(store.Change{Entry: e}, nil)
		if err != nil {
			t.Fatal(err)
		}
		last = bad
	}
	reached := b.ix.frozen != nil && b.ix.tokens[info.ID].spent() && b.ix.held(ci.Holder()) == nil
	b.mu.Unlock()
	if !reached {
		t.Fatal("the changes did not reach the index, so this test shows nothing")
	}
	_, err := b.settle(last)
	wantCode(t, err, Unavailable)
	w.value(ci, kept.LeaseID)
	w.lease(ci, "openai")
	_, err = w.Lease(ctx, ci, Request{Credential: "openai"})
	wantCode(t, err, LeaseLimit)
}
