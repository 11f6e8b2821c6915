package lease

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

// service puts a credential that the proxy can use.
func (w *world) service(name string) {
	w.t.Helper()
	_, err := w.Put(context.Background(), operator, NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte("sk-fake-" + name)),
		Upstream: &use.Upstream{Service: "openai"}, Policy: policy.CredentialPolicy{MaxLeaseTTL: 2 * time.Hour}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) leaseBy(c identity.Caller, name string, way policy.Delivery) Grant {
	w.t.Helper()
	g, err := w.Lease(context.Background(), c, Request{Credential: name, Delivery: way})
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

const chat = "/v1/chat/completions"

func (w *world) begin(g string) (*Use, error) {
	return w.BeginUse(context.Background(), g, "1000", "POST", chat)
}

func (w *world) mustBegin(handle string) *Use {
	w.t.Helper()
	u, err := w.begin(handle)
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

// ends is a Use that stops as soon as it is told to, and has to do with the Broker still: a renewal, or a piece of a stream.
func ends(u *Use) *Use {
	go func() { <-u.Context().Done(); u.b.Proxied(); u.End(Outcome{}) }()
	return u
}

func (w *world) isCut(u *Use) {
	w.t.Helper()
	if u.Context().Err() == nil || u.Why() == "" {
		w.t.Error("the use goes on")
	}
}

// settled waits until every use is written down.
func (w *world) settled() {
	w.lastUses()
}

func TestAHandleUsesTheKeyAndNeverTellsIt(t *testing.T) {
	w := newWorld(t)
	w.service("openai")
	c := w.agent("claude")
	g := w.leaseBy(c, "openai", "")
	if g.Delivery != policy.Proxy || g.Plan == nil {
		t.Fatalf("the least exposing delivery is the proxy: %v", g.Delivery)
	}
	if _, err := w.Reveal(context.Background(), c, g.LeaseID); AsRefusal(err) == nil {
		t.Fatal("a lease by proxy revealed its value")
	}
	handle := string(g.Handle.Bytes())
	u := w.mustBegin(handle)
	if string(u.Value.Bytes()) != "sk-fake-openai" || u.Target.URL.Host != "api.openai.com" {
		t.Errorf("value or target: %v", u.Target.URL)
	}
	u.End(Outcome{Status: 200, Out: 12})
	u.End(Outcome{Status: 500})
	w.settled()
	if n := w.told(store.EventLeaseUsed); n != 1 {
		t.Errorf("%d entries for one use", n)
	}
	var refused *use.Refused
	if _, err := w.BeginUse(context.Background(), handle, "1000", "POST", "/v1/organization/admin_api_keys"); !errors.As(err, &refused) {
		t.Errorf("keys can be minted: %v", err)
	}
	for _, wrong := range []string{"", handle + "x", g.LeaseID} {
		if _, err := w.begin(wrong); AsRefusal(err) == nil || AsRefusal(err).Code != NotAvailable {
			t.Errorf("a wrong handle: %v", err)
		}
	}
	if _, err := w.BeginUse(context.Background(), handle, "1001", "POST", chat); AsRefusal(err) == nil {
		t.Error("another uid used the handle")
	}
	for _, clean := range []bool{true, false} {
		w.restart(clean)
		w.mustBegin(handle).End(Outcome{})
	}
	if renewed, err := w.Renew(context.Background(), c, RenewRequest{LeaseID: g.LeaseID}); err != nil || renewed.Handle.Len() != 0 {
		t.Errorf("a renewal: %v, or it told the handle", err)
	}
}

func TestWhateverEndsALeaseCutsItsUses(t *testing.T) {
	ctx := context.Background()
	for name, end := range map[string]func(w *world, c identity.Caller, id string){
		"release": func(w *world, c identity.Caller, id string) { _, _ = w.Release(ctx, c, id) },
		"admin":   func(w *world, _ identity.Caller, id string) { _, _ = w.EndLease(ctx, operator, id) },
		"identity": func(w *world, c identity.Caller, _ string) {
			_, _ = w.RevokeLeases(ctx, operator, Filter{Identity: c.Name})
		},
		"credential": func(w *world, _ identity.Caller, _ string) {
			_, _ = w.RevokeLeases(ctx, operator, Filter{Credential: "openai"})
		},
		"revoke": func(w *world, _ identity.Caller, _ string) { _, _ = w.RevokeCredential(ctx, operator, "openai") },
		"remove": func(w *world, _ identity.Caller, _ string) { _ = w.Remove(ctx, operator, "openai") },
		"freeze": func(w *world, _ identity.Caller, _ string) { _, _ = w.Freeze(ctx, operator, "") },
		"expiry": func(w *world, _ identity.Caller, _ string) { w.pass(3 * time.Hour); w.sweep(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.service("openai")
			c := w.agent("claude")
			g := w.leaseBy(c, "openai", policy.Proxy)
			u := ends(w.mustBegin(string(g.Handle.Bytes())))
			end(w, c, g.LeaseID)
			w.isCut(u)
			if name != "expiry" { // which nobody waits for
				select {
				case <-u.done:
				default:
					t.Error("it was acknowledged before the use had stopped")
				}
			}
			if _, err := w.begin(string(g.Handle.Bytes())); err == nil {
				t.Error("the handle still works")
			}
		})
	}
}

func TestAUseThatDoesNotStopHoldsUpNobodyForLong(t *testing.T) {
	w := newWorld(t)
	w.service("openai")
	c := w.agent("claude")
	g := w.leaseBy(c, "openai", policy.Proxy)
	w.mustBegin(string(g.Handle.Bytes()))
	began := time.Now()
	if _, err := w.Release(context.Background(), c, g.LeaseID); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestPolicyIsAskedAtEachUse(t *testing.T) {
	w := newWorld(t)
	rule := "version: 1\nlimits: {useRate: 0}\nrules:\n  - {name: all, identities: ['*'], credentials: ['*'], delivery: [%]}\n"
	with := func(ways string) string { return rule[:len(rule)-4] + ways + "]}\n" }
	w.setPolicy(with("proxy, exec"))
	w.service("openai")
	c := w.agent("claude")
	g := w.leaseBy(c, "openai", policy.Proxy)
	w.mustBegin(string(g.Handle.Bytes())).End(Outcome{})
	w.setPolicy(with("exec"))
	if _, err := w.begin(string(g.Handle.Bytes())); AsRefusal(err) == nil || AsRefusal(err).Code != NotAvailable {
		t.Errorf("the policy closed the proxy: %v", err)
	}
}

func TestTheRateOfALeaseIsLimited(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nlimits: {useRate: 1, useBurst: 2}\nrules:\n  - {name: all, identities: ['*'], credentials: ['*']}\n")
	w.service("openai")
	g := w.leaseBy(w.agent("claude"), "openai", policy.Proxy)
	for range 2 {
		w.mustBegin(string(g.Handle.Bytes())).End(Outcome{})
	}
	if _, err := w.begin(string(g.Handle.Bytes())); AsRefusal(err) == nil || AsRefusal(err).Code != RateLimited {
		t.Errorf("the third: %v", err)
	}
	w.pass(time.Second)
	w.mustBegin(string(g.Handle.Bytes())).End(Outcome{})
}

// shell is a process that the agent started: another connection, the same uid, a name of its own.
func (w *world) shell() identity.Caller {
	return identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "local", By: "uid:1000"},
		Session: newID("s_"), Transport: "local", UID: "1000"}
}

func (w *world) exec(c identity.Caller, r ExecRequest) *Use {
	w.t.Helper()
	u, err := w.Exec(context.Background(), c, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

func TestACommandHoldsItsLease(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.put("key", "sk-fake-1", policy.CredentialPolicy{})
	c := w.agent("claude")
	g := w.leaseBy(c, "key", policy.Exec)
	u := w.exec(w.shell(), ExecRequest{LeaseID: g.LeaseID, Program: "gh"})
	if string(u.Value.Bytes()) != "sk-fake-1" || u.Lease.Env != "KEY" {
		t.Errorf("value, or env %q", u.Lease.Env)
	}
	w.Detach(ctx, c.Session)
	w.pass(2 * time.Minute)
	w.sweep(ctx)
	if u.Context().Err() != nil {
		t.Fatalf("the command's lease ended with the session that it was taken in: %s", u.Why())
	}
	if _, err := u.Renew(ctx); err != nil {
		t.Errorf("renewing: %v", err)
	}
	u.End(Outcome{Status: 1})
	w.pass(2 * time.Minute)
	w.sweep(ctx)
	if w.ix.leases[g.LeaseID] != nil {
		t.Error("nobody holds it, and it lives")
	}
	stranger := w.shell()
	stranger.UID, stranger.By = "1001", "uid:1001"
	if _, err := w.Exec(ctx, stranger, ExecRequest{LeaseID: w.leaseBy(c, "key", policy.Exec).LeaseID}); AsRefusal(err) == nil || AsRefusal(err).Code != NotAvailable {
		t.Errorf("another uid: %v", err)
	}
}

func TestALeaseOpenedForACommandEndsWithTheLastOne(t *testing.T) {
	w := newWorld(t)
	w.put("key", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 1})
	first := w.exec(w.shell(), ExecRequest{Credential: "key"})
	second := w.exec(w.shell(), ExecRequest{Credential: "key"})
	if first.Lease.LeaseID != second.Lease.LeaseID {
		t.Fatal("the second command did not join the first one's lease")
	}
	first.End(Outcome{})
	if second.Context().Err() != nil || w.ix.leases[second.Lease.LeaseID] == nil {
		t.Fatalf("the first one's end took the second one's lease: %s", second.Why())
	}
	second.End(Outcome{})
	if len(w.ix.leases) != 0 || len(w.sessions) != 0 {
		t.Errorf("%d leases, %d sessions left", len(w.ix.leases), len(w.sessions))
	}
}

func TestOnlyLeasesByExecAreRedeemed(t *testing.T) {
	w := newWorld(t)
	w.service("openai")
	c := w.agent("claude")
	for _, way := range []policy.Delivery{policy.Value, policy.Proxy} {
		if _, err := w.Exec(context.Background(), c, ExecRequest{LeaseID: w.leaseBy(c, "openai", way).LeaseID}); AsRefusal(err) == nil || AsRefusal(err).Code != DeliveryUnavailable {
			t.Errorf("%s: %v", way, err)
		}
	}
	far := c
	far.Transport = "http"
	if _, err := w.Lease(context.Background(), far, Request{Credential: "openai", Delivery: policy.Exec}); AsRefusal(err) == nil || AsRefusal(err).Code != DeliveryUnavailable {
		t.Errorf("exec over HTTP: %v", err)
	}
}

func TestCommandsStartedAtOnceShareOneLease(t *testing.T) {
	w := newWorld(t)
	w.put("key", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 1})
	var all sync.WaitGroup
	var ran atomic.Int32
	for range 64 {
		all.Go(func() {
			u, err := w.Exec(context.Background(), w.shell(), ExecRequest{Credential: "key"})
			if err != nil {
				t.Errorf("a command was refused: %v", err)
				return
			}
			ran.Add(1)
			u.End(Outcome{})
		})
	}
	all.Wait()
	if ran.Load() != 64 || len(w.ix.leases) != 0 || len(w.sessions) != 0 {
		t.Errorf("%d commands ran; %d leases and %d sessions are left", ran.Load(), len(w.ix.leases), len(w.sessions))
	}
}

func TestACommandIsNotStoppedByTheEndOfAnother(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nlimits: {leaseRate: 0}\nrules:\n  - {name: all, identities: ['*'], credentials: ['*'], delivery: [exec]}\n")
	w.put("key", "sk-fake-1", policy.CredentialPolicy{MaxLeases: 1})
	var all sync.WaitGroup
	var ran, cut atomic.Int32
	for i := range 8 {
		all.Go(func() {
			for range 12 {
				u, err := w.Exec(context.Background(), w.shell(), ExecRequest{Credential: "key"})
				if err != nil {
					t.Errorf("a command was refused: %v", err)
					continue
				}
				time.Sleep(time.Duration(i) * 300 * time.Microsecond)
				ran.Add(1)
				if u.Why() != "" {
					cut.Add(1)
				}
				u.End(Outcome{})
			}
		})
	}
	all.Wait()
	if cut.Load() != 0 || len(w.ix.leases) != 0 || len(w.sessions) != 0 {
		t.Errorf("%d of %d commands were stopped, though nobody took their lease back; %d leases and %d sessions left", cut.Load(), ran.Load(), len(w.ix.leases), len(w.sessions))
	}
}

func TestAHungUseOfOneLeaseDoesNotHurryTheEndOfAnother(t *testing.T) {
	s := newUses()
	begin := func(id string) *Use {
		u := &Use{Lease: Grant{LeaseID: id}, done: make(chan struct{})}
		u.ctx, u.cancel = context.WithCancelCause(context.Background())
		s.add(u)
		return u
	}
	begin("hung")
	good := begin("good")
	s.end("hung", "released")
	first := make(chan struct{})
	go func() { s.gone(); close(first) }()
	time.Sleep(cutTime / 2)
	s.end("good", "released") // and its Entry is on its way to the disk when the first one gives up
	<-first
	go func() { time.Sleep(cutTime / 4); close(good.done) }()
	s.gone()
	select {
	case <-good.done:
	default:
		t.Error("the second one was told that its use had stopped, which went on")
	}
}

func TestARefusedCommandLeavesNoLease(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.put("key", "sk-fake-1", policy.CredentialPolicy{})
	for range 40 {
		done := make(chan struct{})
		go func() { _, _ = w.Freeze(ctx, operator, ""); close(done) }()
		u, err := w.Exec(ctx, w.shell(), ExecRequest{Credential: "key"})
		if err == nil {
			u.End(Outcome{})
		}
		<-done
		_, _ = w.Thaw(ctx, operator)
	}
	if len(w.ix.leases) != 0 {
		t.Errorf("%d leases are left", len(w.ix.leases))
	}
}

// A lease that an edit of the policy stopped would stand in the way of its successor until its time is over.
func TestACommandPassesByALeaseThatThePolicyStopped(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.put("key", "sk-fake-1", policy.CredentialPolicy{})
	c := w.shell()
	old := w.exec(c, ExecRequest{Credential: "key", Keep: true})
	old.End(Outcome{})
	w.setPolicy(needsOperator)
	var waits *NeedsApproval
	if _, err := w.Exec(ctx, c, ExecRequest{Credential: "key"}); !errors.As(err, &waits) {
		t.Fatalf("not asked for the yes that a new lease needs: %v", err)
	}
	w.setPolicy("version: 1\nrules:\n  - {name: all, identities: [\"*\"], credentials: [\"*\"]}\n")
	if u := w.exec(c, ExecRequest{Credential: "key"}); u.Lease.LeaseID != old.Lease.LeaseID {
		t.Fatal("a lease that the policy allows again was not joined")
	}
}
