package lease

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// loseAnchor ends the daemon, loses what is known of the trail's end, and goes on with what is left: everything, which
// nobody can tell.
func (w *world) loseAnchor(clean bool) {
	w.t.Helper()
	if clean {
		if err := w.Broker.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	anchors, err := filepath.Glob(filepath.Join(w.dir, "config", "anchor.*"))
	if err != nil || len(anchors) != 1 {
		w.t.Fatalf("%v, %v", anchors, err)
	}
	if err := os.Remove(anchors[0]); err != nil {
		w.t.Fatal(err)
	}
	if err := w.tryOpen(false); !errors.Is(err, store.ErrIntegrity) {
		w.t.Fatalf("without an anchor: %v", err)
	}
	s, _, err := store.OpenLosing(store.Options{Dir: filepath.Join(w.dir, "data"), AnchorDir: filepath.Join(w.dir, "config"),
		RootKey: make([]byte, 32), Log: zerolog.Nop(), Now: w.clock})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = s
	if w.Broker, err = Open(context.Background(), Config{Store: s, PolicyFile: w.readPolicy, Log: zerolog.Nop(), Now: w.clock}); err != nil {
		w.t.Fatal(err)
	}
}

// A loss that is accepted ends every lease, every approval and every token of before, whether the next start reads the
// trail or a snapshot, and nothing of after.
func TestALossThatIsAcceptedEndsLeasesApprovalsAndTokens(t *testing.T) {
	for _, clean := range []bool{false, true} {
		w := newWorld(t)
		ctx := context.Background()
		w.put("key", "fake", policy.CredentialPolicy{})
		w.put("asked", "fake", policy.CredentialPolicy{})
		w.setPolicy(`version: 1
rules:
  - {name: asked, identities: ["*"], credentials: [asked], approval: operator}
  - {name: all, identities: ["*"], credentials: [key]}
`)
		text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		alice := w.agent("alice")
		g := w.lease(alice, "key")
		waiting, err := w.Lease(ctx, alice, Request{Credential: "asked"})
		if err != nil || waiting.Waiting == nil {
			t.Fatalf("%+v, %v", waiting, err)
		}
		w.loseAnchor(clean)
		for round := range 3 {
			if w.live() != 0 {
				t.Errorf("round %d: %d leases live on", round, w.live())
			}
			if _, err := w.Authenticate(ctx, text, "test"); !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("round %d: a token of before: %v", round, err)
			}
			if all := w.Tokens(); len(all) == 0 || all[0].ID == info.ID && all[0].State != "disabled" {
				t.Errorf("round %d: tokens %+v", round, all)
			}
			if _, err := w.Renew(ctx, alice, RenewRequest{LeaseID: g.LeaseID}); err == nil {
				t.Errorf("round %d: a lease of before is renewed", round)
			}
			if _, err := w.Lease(ctx, alice, Request{ApprovalID: waiting.Waiting.ID}); err == nil {
				t.Errorf("round %d: a question of before is still open", round)
			}
			w.restart(round == 0) // the second by the snapshot
		}
		text, _, err = w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		again := w.lease(alice, "key")
		w.restart(false)
		if p, err := w.Authenticate(ctx, text, "test"); err != nil || p.Proof != identity.Token {
			t.Errorf("a token of after: %v, %v", p, err)
		}
		w.pass(time.Second)
		if _, err := w.Renew(ctx, alice, RenewRequest{LeaseID: again.LeaseID}); err != nil {
			t.Errorf("a lease of after: %v", err)
		}
	}
}
