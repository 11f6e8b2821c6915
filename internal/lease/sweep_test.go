package lease

import (
	"testing"
	"time"

	"keylease/policy"
)

// TestTheSweeperLooksWhenTheNextLeaseEnds: whatever happened since it looked last, Run is told to look again no later than
// the next lease ends, and counts what its own writing took.
func TestTheSweeperLooksWhenTheNextLeaseEnds(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	a := w.agent("a")
	poked := func() bool {
		select {
		case <-w.wake:
			return true
		default:
			return false
		}
	}
	poked()
	w.sweep(ctx)
	if _, err := w.Lease(ctx, a, Request{Credential: "openai", TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if !poked() {
		t.Error("nobody was told of the first lease: from then on the time is to be written down each second")
	}
	w.sweep(ctx)
	if _, err := w.Lease(ctx, a, Request{Credential: "openai", TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if poked() {
		t.Error("a lease that ends in an hour woke the sweeper")
	}

	// Two are granted, the second is ended before the first is on disk: then the first is the next to end.
	admit := func(ttl time.Duration) admitted {
		t.Helper()
		w.Broker.mu.Lock()
		defer w.Broker.mu.Unlock()
		in, err := w.admit(a, &Request{Credential: "openai", TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	granted := func(in admitted) {
		t.Helper()
		if _, err := w.settle(in.written); err != nil {
			t.Fatal(err)
		}
		w.Broker.mu.Lock()
		defer w.Broker.mu.Unlock()
		w.pokeFor(in.lease)
	}
	w.sweep(ctx)
	first, second := admit(800*time.Millisecond), admit(500*time.Millisecond)
	granted(first)
	if _, err := w.EndLease(ctx, operator, second.lease.id); err != nil {
		t.Fatal(err)
	}
	granted(second)
	if !poked() {
		t.Error("nobody was told of the lease that ends next")
	}

	w.sweep(ctx)
	w.pass(500 * time.Millisecond)
	if wait := w.untilSweep(); wait > 300*time.Millisecond {
		t.Errorf("a lease ends in 300ms, and the sweeper waits %v", wait)
	}
}
