package lease

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"keylease/store"
)

// failed are the details of the auth.failed entries, the oldest first.
func (w *world) failed() (all []map[string]string) {
	w.t.Helper()
	err := w.Entries(context.Background(), EntryFilter{Event: string(store.EventAuthFailed)}, func(e *store.Entry) error {
		all = append(all, e.Details.Map())
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestAFailureNamesTheTokenRecordWhereItIsKnown(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	revoked, r, _ := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
	expired, e, _ := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci", TTL: time.Second})
	replaced, p, _ := w.CreateToken(ctx, operator, TokenSpec{Identity: "ci"})
	if _, err := w.RevokeToken(ctx, operator, r.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.RotateToken(ctx, operator, p.ID, time.Second); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	want := []struct{ text, reason, id string }{{revoked, "revoked token", r.ID}, {expired, "expired token", e.ID},
		{replaced, "replaced token", p.ID}, {"kl_nonsense", "unknown token", ""}}
	for _, c := range want {
		for range 2 {
			if _, err := w.Authenticate(ctx, c.text, "test"); !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%s: %v", c.reason, err)
			}
		}
	}
	got := w.failed()
	if len(got) != len(want) {
		t.Fatalf("the trail has %v", got)
	}
	for n, c := range want {
		if got[n]["reason"] != c.reason || got[n]["token_id"] != c.id {
			t.Errorf("the trail has %v, want %s of %s", got[n], c.reason, c.id)
		}
	}
}

func TestNamesInFailuresFillNeitherTheTrailNorTheMemory(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for n := range 1000 {
		w.AuthFailed(ctx, AuthFailure{Source: "192.0.2.1", Reason: "token that no identity matches",
			Issuer: "https://idp.example.com", Subject: strconv.Itoa(n) + "\x1b" + strings.Repeat("x", 10_000)})
	}
	w.AuthFailed(ctx, AuthFailure{Source: "192.0.2.2", Reason: "token that no identity matches", Issuer: "https://idp.example.com", Subject: "other"})
	got := w.failed()
	if len(got) != maxNamed+2 || got[maxNamed]["subject"] != "" || got[maxNamed+1]["subject"] != "other" {
		t.Errorf("%d entries: %v", len(got), got)
	}
	if s := got[0]["subject"]; strings.Contains(s, "\x1b") || len(s) > maxClaimed+10 {
		t.Errorf("the subject is kept as %q", s)
	}
	w.pass(summaryEvery)
	w.sweep(ctx)
	got = w.failed()
	if last := got[len(got)-1]; len(got) != maxNamed+3 || last["count"] != strconv.Itoa(1000-maxNamed-1) || last["subject"] != "" {
		t.Errorf("%d entries, the last: %v", len(got), last)
	}
}
