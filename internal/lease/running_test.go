package lease

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"keylease/policy"
	"keylease/store"
)

// TestAStartAfterAKillReadsFewEntries: snapshots are written while keylease runs, and what is restored from one, with
// the Entries after it, is what was there.
func TestAStartAfterAKillReadsFewEntries(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(freePolicy)
	for i := range 3 {
		w.put(fmt.Sprint("c", i), "sk-fake", policy.CredentialPolicy{})
	}
	_, info, err := w.CreateToken(context.Background(), operator, TokenSpec{Type: "agent", Identity: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.runSnapshots(ctx, 40, 0, time.Millisecond) }()
	who := w.agent("coder")
	for i := range 300 {
		g := w.lease(who, fmt.Sprint("c", i%3))
		if i%3 == 0 {
			if _, err := w.Release(context.Background(), who, g.LeaseID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.RevokeLeases(context.Background(), operator, Filter{Identity: "nobody"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if end, _ := w.store.Head(); end-w.store.SnapshotSeq() <= 203 { // as large as the index is
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no snapshot was written")
		}
	}
	stop()
	<-done
	w.Detach(context.Background(), who.Session)
	leases, creds := w.Leases(Filter{}), w.Credentials("")
	at := w.store.SnapshotSeq()
	w.restart(false)
	read := uint64(0)
	if _, err := readIndex(w.store, func() error { read++; return nil }); err != nil {
		t.Fatal(err)
	}
	if now, _ := w.store.Head(); read != now-at || at < 100 {
		t.Errorf("%d Entries were read after a snapshot of %d", read, at)
	}
	if got := w.Leases(Filter{}); !reflect.DeepEqual(got, leases) {
		t.Errorf("%d leases, and %d before, or they are others", len(got), len(leases))
	}
	if got := w.Credentials(""); !reflect.DeepEqual(got, creds) {
		t.Errorf("credentials: %+v, before: %+v", got, creds)
	}
	if tokens := w.Tokens(); len(tokens) != 1 || tokens[0].ID != info.ID {
		t.Errorf("tokens: %+v", tokens)
	}
	if n := w.told(store.EventLeaseCreated); n != 300 {
		t.Errorf("%d leases in the trail", n)
	}
}

const freePolicy = `version: 1
limits: {leaseRate: 0}
rules:
  - {name: all, identities: ["*"], credentials: ["*"]}
`
