package lease

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/policy"
	"keylease/store"
)

// backupOf is a backup of what w has, and restoreOf has w go on with it, as on a machine that has the root key alone.
func backupOf(w *world) []byte {
	w.t.Helper()
	var out bytes.Buffer
	if _, err := w.Backup(ctx, operator, &out); err != nil {
		w.t.Fatal(err)
	}
	return out.Bytes()
}

func restoreOf(w *world, file []byte, kept string) Stock {
	w.t.Helper()
	w.lastUses()
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.dir = w.t.TempDir()
	key := func(string) ([]byte, string, error) { return make([]byte, 32), "test", nil }
	r, err := store.Unpack(ctx, bytes.NewReader(file), store.Options{Dir: filepath.Join(w.dir, "data"), AnchorDir: filepath.Join(w.dir, "config"),
		Log: zerolog.Nop(), Now: w.clock}, key)
	if err != nil {
		w.t.Fatal(err)
	}
	stock, err := TakeStock(r.Store, w.clock())
	if err != nil {
		w.t.Fatal(err)
	}
	e := store.Entry{Event: store.EventStoreRestored, Time: w.clock()}
	if kept != "" {
		e.Details = store.DetailsOf("kept", kept)
	}
	if err := r.Finish(e); err != nil {
		w.t.Fatal(err)
	}
	w.open()
	return stock
}

// lent is a world with a lease, a token, and a version that only the lease keeps.
func lentWorld(t *testing.T) (w *world, lease, tokenText, tokenID string) {
	w = newWorld(t)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{MaxLeaseTTL: 4 * time.Hour, DefaultLeaseTTL: time.Hour})
	text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "bot"})
	if err != nil {
		t.Fatal(err)
	}
	return w, w.lease(w.agent("claude-code"), "openai").LeaseID, text, info.ID
}

func TestARestoreEndsWhatThereWas(t *testing.T) {
	w, id, text, tokenID := lentWorld(t)
	stock := restoreOf(w, backupOf(w), "")
	if stock.Credentials != 1 || stock.Versions != 1 || stock.Leases != 1 || stock.Tokens != 1 || len(stock.Damaged) > 0 {
		t.Errorf("%+v", stock)
	}
	for _, clean := range []bool{false, true} { // from the trail, and from a snapshot
		if w.live() != 0 {
			t.Error("a lease goes on")
		}
		if _, err := w.Authenticate(ctx, text, "test"); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("the token: %v", err)
		}
		w.restart(clean)
	}
	for range 5 {
		w.sweep(ctx)
	}
	var ends []string
	if err := w.Entries(ctx, EntryFilter{LeaseID: id}, func(e *store.Entry) error {
		ends = append(ends, string(e.Event)+" "+e.Details.Get("reason"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := "lease.revoked " + epochReason[store.EventStoreRestored]; len(ends) != 2 || ends[1] != want {
		t.Errorf("the trail says of the lease: %q", ends)
	}
	fresh, info, err := w.RotateToken(ctx, operator, tokenID, time.Hour)
	if err != nil || info.State != stateActive {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := w.Authenticate(ctx, fresh, "test"); err != nil {
		t.Errorf("the new text: %v", err)
	}
	if _, err := w.Authenticate(ctx, text, "test"); err == nil {
		t.Error("an overlap brought the old text back")
	}
	w.restart(false)
	if _, err := w.Authenticate(ctx, fresh, "test"); err != nil {
		t.Errorf("the new text after a restart: %v", err)
	}
}

func TestWhatARestoreKeeps(t *testing.T) {
	w, _, text, _ := lentWorld(t)
	file := backupOf(w)
	w.pass(2 * time.Hour) // it may have been renewed since
	stock := restoreOf(w, file, KeptTokens)
	if stock.Leases != 1 || stock.Overdue != 1 {
		t.Errorf("%+v", stock)
	}
	if _, err := w.Authenticate(ctx, text, "test"); err != nil {
		t.Errorf("a token that was to be kept: %v", err)
	}

	w, id, text, _ := lentWorld(t)
	restoreOf(w, backupOf(w), KeptLeases)
	if live := w.Leases(Filter{}); len(live) != 1 || live[0].LeaseID != id {
		t.Errorf("leases that were to be kept: %+v", live)
	}
	if _, err := w.Authenticate(ctx, text, "test"); err == nil {
		t.Error("a token that was not to be kept")
	}
}

// A root key that came into force and was not recorded is, at the next start.
func TestARotationThatACrashCutShortIsRecordedAtTheNextStart(t *testing.T) {
	w, _, _, _ := lentWorld(t)
	if err := w.store.RotateRoot(bytes.Repeat([]byte{5}, 32)); err != nil {
		t.Fatal(err)
	}
	w.rootKey = bytes.Repeat([]byte{5}, 32)
	for range 2 {
		w.restart(false)
		n := 0
		if err := w.Entries(ctx, EntryFilter{Event: string(store.EventKeyRotated)}, func(e *store.Entry) error { n++; return nil }); err != nil || n != 1 {
			t.Errorf("recorded %d times, %v", n, err)
		}
		if w.store.Rotated() {
			t.Error("what the old key opens is still there")
		}
	}
	w.lease(w.agent("claude-code"), "openai")
}

// However many versions are to be destroyed, they go a few hundred at a time, and others are let in between.
func TestVersionsAreDestroyedInBatches(t *testing.T) {
	w := newWorld(t)
	w.put("openai", "sk-fake-0", policy.CredentialPolicy{})
	c := w.ix.creds["openai"]
	for i := range maxDestroy + 10 {
		w.ix.destroy[store.ValueRef{CredentialID: c.rec.ID, Version: 1000 + i}] = "openai"
	}
	w.pass(2 * quiet)
	for _, left := range []int{10, 0, 0} {
		if err := w.destroyUnused(w.clock()); err != nil {
			t.Fatal(err)
		}
		if len(w.ix.destroy) != left {
			t.Errorf("%d left, want %d", len(w.ix.destroy), left)
		}
	}
}
