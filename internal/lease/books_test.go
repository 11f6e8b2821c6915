package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// budget lets everybody lease, with so many bytes of trail a day.
func (w *world) budget(bytes int) {
	w.setPolicy(fmt.Sprintf("version: 1\nlimits: {leaseRate: 0, trailBytes: %d}\nrules:\n  - {name: r, identities: ['*'], credentials: ['open*']}\n", bytes))
}

// details are those of all entries of an event.
func (w *world) details(event store.Event) (all []store.Details) {
	w.t.Helper()
	err := w.Entries(context.Background(), EntryFilter{Event: string(event)}, func(e *store.Entry) error {
		all = append(all, e.Details)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// written is what the trail holds of a declared uid, in bytes.
func (w *world) written(by string) (size int) {
	w.t.Helper()
	err := w.Entries(context.Background(), EntryFilter{}, func(e *store.Entry) error {
		if e.Identity.By == by {
			size += e.Size()
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return size
}

func TestADaysBudgetOfTheTrailIsSharedByAllNamesOfOneUser(t *testing.T) {
	w := newWorld(t)
	const budget = 20_000
	w.budget(budget)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	w.put("openbare", "sk-fake-2", policy.CredentialPolicy{})
	var held []Grant
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		var g Grant
		if g, err = w.Lease(ctx, w.agent("a"), Request{Credential: "openai"}); err == nil {
			held = append(held, g)
		}
	}
	r := wantCode(t, err, RateLimited)
	if len(held) < 10 || r.RetryAfter != 15*time.Hour { // it is nine o'clock
		t.Errorf("after %d leases: %v", len(held), r.RetryAfter)
	}
	if _, err := w.Lease(ctx, w.agent("fresh-name"), Request{Credential: "openbare"}); err == nil {
		t.Error("another name of the same user has a budget of its own")
	}
	if _, err := w.Renew(ctx, w.agent("a"), RenewRequest{LeaseID: held[0].LeaseID}); err == nil {
		t.Error("a lease is renewed")
	}
	told := w.told(store.EventLeaseDenied)
	for range 500 {
		_, err := w.Lease(ctx, w.agent("a"), Request{Credential: "nothing"})
		wantCode(t, err, NotAvailable)
	}
	if n := w.told(store.EventLeaseDenied); n != told {
		t.Errorf("%d denials are recorded beyond the budget", n-told)
	}
	for _, g := range held {
		if _, err := w.Release(ctx, w.agent("a"), g.LeaseID); err != nil {
			t.Errorf("giving back: %v", err)
		}
	}
	if n := w.told(store.EventLeaseReleased); n != len(held) {
		t.Errorf("%d releases of %d are recorded", n, len(held))
	}
	if n := w.written("uid:1000"); n > budget+2000 {
		t.Errorf("%d bytes are recorded of one uid", n)
	}
	w.pass(summaryEvery)
	w.sweep(ctx)
	counts := map[string]string{}
	for _, d := range w.details(store.EventTrailSuppressed) {
		if d.Get("reason") != reasonBudget {
			t.Errorf("the reason is %q", d.Get("reason"))
		}
		counts[d.Get("event")] = d.Get("count")
	}
	if counts["lease.denied"] != "500" || counts["rate_limited"] != "3" {
		t.Errorf("summed up: %v", counts)
	}
	for _, clean := range []bool{false, true} {
		w.restart(clean)
		if _, err := w.Lease(ctx, w.agent("a"), Request{Credential: "openai"}); err == nil {
			t.Fatalf("a restart (clean: %v) gave a fresh budget", clean)
		}
	}
	w.pass(15 * time.Hour)
	if _, err := w.Lease(ctx, w.agent("a"), Request{Credential: "openai"}); err != nil {
		t.Errorf("on the next day: %v", err)
	}
}

func TestComingAndGoingBeyondTheBudgetIsNotRecorded(t *testing.T) {
	w := newWorld(t)
	w.budget(2500)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	c := w.agent("a")
	g := w.lease(c, "openai")
	for i := range 20 {
		w.Detach(ctx, c.Session)
		c.Session = fmt.Sprintf("again-%d", i)
		w.Attach(ctx, c)
	}
	if n := w.told(store.EventLeaseOrphaned) + w.told(store.EventLeaseAdopted); n > 6 {
		t.Errorf("%d times", n)
	}
	w.pass(DefaultGrace)
	w.sweep(ctx)
	if _, err := w.Reveal(ctx, c, g.LeaseID); err == nil {
		t.Error("nobody held it, and it goes on")
	}
}

func TestAnonymousFailuresHaveADaysBudgetToo(t *testing.T) {
	w := newWorld(t)
	w.AuthFailed(ctx, AuthFailure{Source: "first", Reason: "unknown token"})
	w.mu2(func() { w.ix.books.Spent[anonymous] = anonymousBytes })
	before := w.told(store.EventAuthFailed)
	for i := range 1000 {
		w.AuthFailed(ctx, AuthFailure{Source: fmt.Sprintf("address-%d", i), Reason: []string{"unknown token", "expired token"}[i%2], Subject: fmt.Sprint(i)})
	}
	if n := w.told(store.EventAuthFailed); n != before {
		t.Errorf("%d are recorded at once", n-before)
	}
	w.pass(summaryEvery)
	w.sweep(ctx)
	all := w.details(store.EventAuthFailed)[before:]
	if len(all) != 2 || all[0].Get("count") != "500" || all[1].Get("count") != "500" || all[0].Get("source") != "others" {
		t.Errorf("summed up: %v", all)
	}
}

// mu2 does something under the Broker's mutex.
func (w *world) mu2(fn func()) {
	w.Broker.mu.Lock()
	defer w.Broker.mu.Unlock()
	fn()
}

func TestOnlyExportsWithoutAGapCount(t *testing.T) {
	var k books
	at := func(from, to string) {
		k.note(&store.Entry{Event: store.EventTrailExported, Details: store.DetailsOf("from", from, "to", to, "head", fmt.Sprintf("%064s", to))})
	}
	for _, c := range []struct {
		from, to string
		want     uint64
	}{{"5", "9", 0}, {"1", "4", 4}, {"6", "9", 4}, {"5", "9", 9}, {"3", "7", 9}, {"1", "20", 20}, {"0", "30", 20}, {"x", "30", 20}} {
		if at(c.from, c.to); k.Exported.Seq != c.want {
			t.Errorf("after %s to %s: %d, not %d", c.from, c.to, k.Exported.Seq, c.want)
		}
	}
}

func TestWhatWasKeptAndExportedIsPrunedAndTheStateStays(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	c := w.agent("a")
	c.Session = "" // so that a restart leaves its leases alone
	var last Grant
	for range 30 {
		last = w.lease(c, "openai")
		w.pass(time.Second)
	}
	keeping := func(clean bool) {
		t.Helper()
		w.stop(clean)
		if err := w.tryOpenAs(Config{KeepTrail: 10 * time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	keeping(true)
	prune := func(want bool) store.Base {
		t.Helper()
		if _, err := w.pruneOnce(ctx, w.Broker.now()); err != nil {
			t.Fatal(err)
		}
		base, err := w.store.Base()
		if err != nil || base.Seq > 0 != want {
			t.Fatalf("pruned: %+v, %v", base, err)
		}
		return base
	}
	w.pass(5 * time.Minute)
	prune(false) // not exported, not old enough
	var file bytes.Buffer
	if _, err := w.Export(ctx, &file, time.Time{}, false); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(file.Bytes()), []byte("\n"))
	var end struct{ End store.ExportEnd }
	if err := json.Unmarshal(lines[len(lines)-1], &end); err != nil {
		t.Fatal(err)
	}
	forged := end.End
	forged.Seq--
	if _, err := w.Exported(ctx, operator, forged, "f"); err == nil {
		t.Error("an end that nobody signed is confirmed")
	}
	if s, err := w.Exported(ctx, operator, end.End, "f"); err != nil || s.Exported.Seq != end.End.Seq || s.Exported.By != "root" {
		t.Fatalf("%+v, %v", s, err)
	}
	prune(false) // not old enough
	w.pass(9 * time.Minute)
	base := prune(true)
	if base.Seq > end.End.Seq || w.told(store.EventTrailPruned) != 1 {
		t.Errorf("%+v of %d", base, end.End.Seq)
	}
	for _, clean := range []bool{false, true} {
		keeping(clean)
		if w.live() != 30 {
			t.Errorf("%d leases live", w.live())
		}
		if _, err := w.Release(ctx, c, last.LeaseID); err != nil {
			t.Error(err)
		}
		if s, err := w.TrailStatus(); err != nil || s.Exported == nil || s.Exported.Seq != end.End.Seq || s.Base == nil || s.Keep != "10m" {
			t.Errorf("%+v, %v", s, err)
		}
		last = w.lease(c, "openai")
		if r, err := w.Verify(ctx, w.store.Fingerprint()); err != nil || !r.Authenticated || r.Base.Seq != base.Seq {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func TestRevokingATokenEndsItsLeasesByOneEntry(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	with := func() (identity.Caller, string) {
		text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		p, err := w.Authenticate(ctx, text, "test")
		if err != nil {
			t.Fatal(err)
		}
		return identity.Caller{Principal: p, Transport: "http"}, info.ID
	}
	one, id := with()
	two, _ := with()
	declared := w.agent("ci")
	for range 20 {
		w.lease(one, "openai")
	}
	other, local := w.lease(two, "openai"), w.lease(declared, "openai")
	head, _ := w.store.Head()
	if _, err := w.RevokeToken(ctx, operator, id); err != nil {
		t.Fatal(err)
	}
	if now, _ := w.store.Head(); now != head+2 {
		t.Errorf("it took %d entries", now-head)
	}
	check := func() {
		t.Helper()
		if w.live() != 2 {
			t.Errorf("%d leases live", w.live())
		}
		for c, g := range map[*identity.Caller]Grant{&two: other, &declared: local} {
			if _, err := w.Reveal(ctx, *c, g.LeaseID); err != nil {
				t.Errorf("a lease of another principal of that name: %v", err)
			}
		}
	}
	check()
	w.restart(false)
	w.Attach(ctx, declared)
	check()
	w.restart(true)
	w.Attach(ctx, declared)
	check()
	for range 3 {
		w.sweep(ctx)
	}
	if n := w.told(store.EventLeaseRevoked); n != 20 {
		t.Errorf("%d leases have their end in the trail", n)
	}
	check()
}
