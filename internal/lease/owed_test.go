package lease

import (
	"testing"
	"time"

	"keylease/policy"
	"keylease/store"
)

// brokenDisk makes every write fail until the disk is healed.
func (w *world) brokenDisk() { w.disk.is(func(func() error) error { return errDisk }) }

// healed heals it, and lets the Broker find out.
func (w *world) healed() {
	w.t.Helper()
	w.disk.heal()
	for range 50 {
		w.pass(2 * rebuildPause)
		w.sweep(ctx)
		if w.Activity().Healthy {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatalf("it does not recover: %+v", w.Activity())
}

func TestWhatEndsUnderAFailingDiskEndsAtOnceAndIsAcknowledgedWhenItIsRecorded(t *testing.T) {
	verbs := map[string]func(w *world, g Grant) error{
		"release":             func(w *world, g Grant) error { _, err := w.Release(ctx, w.who, g.LeaseID); return err },
		"release by an admin": func(w *world, g Grant) error { _, err := w.EndLease(ctx, operator, g.LeaseID); return err },
		"revoke a lease": func(w *world, g Grant) error {
			_, err := w.RevokeLeases(ctx, operator, Filter{LeaseID: g.LeaseID})
			return err
		},
		"revoke an identity's leases": func(w *world, _ Grant) error {
			_, err := w.RevokeLeases(ctx, operator, Filter{Identity: "a"})
			return err
		},
		"revoke the credential": func(w *world, _ Grant) error { _, err := w.RevokeCredential(ctx, operator, "openai"); return err },
		"freeze":                func(w *world, _ Grant) error { _, err := w.Freeze(ctx, operator, "test"); return err },
	}
	for name, verb := range verbs {
		for _, known := range []bool{false, true} { // whether an earlier call found out that the disk fails
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
				w.who = w.agent("a")
				g := w.lease(w.who, "openai")
				w.pass(2 * rebuildPause)
				w.brokenDisk()
				if known {
					_, err := w.Lease(ctx, w.who, Request{Credential: "openai"})
					wantCode(t, err, Unavailable)
				}
				for range 2 {
					wantCode(t, verb(w, g), Unavailable)
					if _, err := w.Reveal(ctx, w.who, g.LeaseID); err == nil {
						t.Error("the lease still gives its value")
					}
					if w.live() > 0 && name != "freeze" {
						t.Error("the lease is live")
					}
				}
				if w.store.Owed() {
					t.Error("owed by the process before?")
				}
				w.healed()
				if w.live() > 0 && name != "freeze" {
					t.Error("the lease came back")
				}
				if err := verb(w, g); err != nil {
					t.Errorf("said again: %v", err)
				}
				w.restart(false)
				if w.live() > 0 && name != "freeze" || name == "freeze" && w.Activity().Frozen == nil {
					t.Error("it is not on the disk")
				}
				if r, err := w.Verify(ctx, ""); err != nil || r.Problem != "" {
					t.Errorf("verify: %+v, %v", r, err)
				}
				if f := w.Activity().Frozen; f != nil && f.Reason == owedFrozen {
					t.Error("it starts frozen, though nothing is owed any more")
				}
			})
		}
	}
}

func TestADaemonKilledWhileItOwesStartsFrozen(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	w.brokenDisk()
	_, err := w.Release(ctx, a, g.LeaseID)
	wantCode(t, err, Unavailable)
	_ = w.store.Close() // it can't record, so that is no orderly end
	w.disk.heal()
	w.open()
	if f := w.Activity().Frozen; f == nil || f.Reason != owedFrozen {
		t.Fatalf("frozen: %+v", f)
	}
	_, err = w.Lease(ctx, w.agent("a"), Request{Credential: "openai"})
	if r := wantCode(t, err, Unavailable); r.Reason != "frozen" {
		t.Errorf("%+v", r)
	}
	if w.told(store.EventServerFrozen) != 1 {
		t.Error("it is not in the trail")
	}
	if _, err := w.Thaw(ctx, operator); err != nil {
		t.Fatal(err)
	}
	w.restart(false)
	if w.Activity().Frozen != nil {
		t.Error("it is frozen a second time for the same")
	}
}

func TestADiskThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for the store's patience to end")
	}
	t.Parallel()
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	g := w.lease(a, "openai")
	answers := make(chan bool)
	w.disk.is(func(write func() error) error { <-answers; return write() })
	begun := time.Now()
	released := make(chan error, 1)
	go func() { _, err := w.Release(ctx, a, g.LeaseID); released <- err }()
	time.Sleep(50 * time.Millisecond)
	if _, err := w.List(ctx, a, ListRequest{}); err != nil || time.Since(begun) > time.Second {
		t.Errorf("list: %v after %v", err, time.Since(begun))
	}
	wantCode(t, <-released, Unavailable)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	begun = time.Now()
	_, err := w.Lease(ctx, a, Request{Credential: "openai"})
	wantCode(t, err, Unavailable)
	if act := w.Activity(); act.Store != string(store.Stuck) || act.Since.IsZero() {
		t.Errorf("%+v", act)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("once it is known that the disk does not answer, saying so took %v", took)
	}
	close(answers)
	w.healed()
	if ended, err := w.Release(ctx, a, g.LeaseID); err != nil || ended.Status != Released {
		t.Errorf("said again: %+v, %v", ended, err)
	}
}

// A token that was revoked while the disk fails proves nothing from then on, what was leased with it is over, and both
// stay so when the store was read back, is said again, and after a kill.
func TestATokenRevokedUnderAFailingDiskStaysSo(t *testing.T) {
	for _, known := range []bool{false, true} {
		w := newWorld(t)
		w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
		text, info, c := w.token(TokenSpec{Identity: "ci"})
		g := w.lease(c, "openai")
		other := w.lease(w.agent("ci"), "openai")
		w.pass(2 * rebuildPause)
		w.brokenDisk()
		if known {
			_, err := w.Lease(ctx, w.agent("ci"), Request{Credential: "openai"})
			wantCode(t, err, Unavailable)
		}
		over := func(when string) {
			t.Helper()
			if _, err := w.Authenticate(ctx, text, "test"); err == nil {
				t.Errorf("%s: the token proves something", when)
			}
			if l := w.Leases(Filter{}); len(l) != 1 || l[0].LeaseID != other.LeaseID {
				t.Errorf("%s: live are %+v, and %s is another's", when, l, other.LeaseID)
			}
			if _, err := w.Reveal(ctx, c, g.LeaseID); err == nil {
				t.Errorf("%s: the lease gives its value", when)
			}
		}
		for range 2 {
			_, err := w.RevokeToken(ctx, operator, info.ID)
			wantCode(t, err, Unavailable)
			over("owed")
			w.pass(2 * rebuildPause) // it is tried to read it back, and to record it
		}
		w.healed()
		over("recorded")
		if i, err := w.RevokeToken(ctx, operator, info.ID); err != nil || i.State != stateRevoked {
			t.Errorf("said again: %+v, %v", i, err)
		}
		w.restart(false)
		over("after a kill")
	}
}

// Each time that something is owed the anchor says so, also where taking back the note before came so late that nobody
// waited for it.
func TestWhatIsOwedIsNotedEachTime(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	owe := func() {
		g := w.lease(a, "openai")
		w.pass(2 * rebuildPause)
		w.brokenDisk()
		_, err := w.Release(ctx, a, g.LeaseID)
		wantCode(t, err, Unavailable)
	}
	owe()
	defer func(was time.Duration) { oweWait = was }(oweWait)
	oweWait = 0
	w.healed()
	time.Sleep(100 * time.Millisecond)
	oweWait = time.Second
	owe()
	_ = w.store.Close() // killed
	w.disk.heal()
	w.open()
	if f := w.Activity().Frozen; f == nil || f.Reason != owedFrozen {
		t.Errorf("it ended owing, and starts as if nothing were: %+v", f)
	}
}

// Where the anchor's disk does not answer either, ending a great many leases does not wait for it once for each.
func TestAnAnchorThatDoesNotAnswerIsWaitedForOnce(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	const n = 100
	for range n {
		w.lease(w.agent("a"), "openai")
	}
	defer func(was time.Duration) { oweWait = was }(oweWait)
	oweWait = 50 * time.Millisecond
	answers := make(chan bool)
	w.noteOwed = func(yes bool) error { <-answers; return w.store.Owe(yes) }
	w.pass(2 * rebuildPause)
	w.brokenDisk()
	for range 2 { // it is found out, and found out again after reading back
		_, err := w.Lease(ctx, w.agent("a"), Request{Credential: "openai"})
		wantCode(t, err, Unavailable)
	}
	begun := time.Now()
	_, err := w.RevokeLeases(ctx, operator, Filter{Credential: "openai"})
	wantCode(t, err, Unavailable)
	if took := time.Since(begun); took > n*oweWait/2 || w.live() > 0 {
		t.Errorf("ending %d leases took %v, and %d are live", n, took, w.live())
	}
	close(answers)
	w.healed()
	w.mu2(func() {
		if w.owing || len(w.owed) > 0 {
			t.Errorf("owed: %d, noted: %v", len(w.owed), w.owing)
		}
	})
	w.restart(true)
	if w.live() > 0 || w.Activity().Frozen != nil {
		t.Errorf("%d live, frozen %v", w.live(), w.Activity().Frozen)
	}
}
