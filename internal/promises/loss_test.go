//go:build linux

package promises

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keylease/store"
)

// killedWith is a world with credentials, a token and live leases whose daemon was killed: the newest events are in
// Badger's log alone.
func killedWith(t *testing.T) (w *world, token string, lease string) {
	t.Helper()
	w = newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("other", ""))
	token, _ = w.token("robot")
	s.stop()
	s = w.serve()
	a := w.agent("alice")
	for range 12 {
		lease = lend(t, a, "db", "ttl", "30m")
	}
	a.leave() // or it would start another
	s.kill()
	return w, token, lease
}

func (w *world) storeFile(pattern string) string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.data(), "store", pattern))
	w.must(err)
	if len(paths) == 0 {
		w.t.Fatalf("no %s", pattern)
	}
	return paths[len(paths)-1]
}

// TestG8LossIsRefusedThenAccepted: where events are missing keylease refuses to start, says how many and from which on,
// and leaves every byte as it was; by --accept-loss it goes on with what is left, in a trail that says so: every lease
// and approval ended, every token disabled, and what is left is lent. The folder as it was before is no way back.
func TestG8LossIsRefusedThenAccepted(t *testing.T) {
	t.Parallel()
	w, token, lease := killedWith(t)
	w.refused(2, "serve", "--http", "off", "--accept-loss") // nothing is lost
	whole := tree(w, w.data())
	s := w.serve()
	a := w.agent("alice")
	lost := lend(t, a, "other")
	a.leave()
	s.kill()
	w.must(os.RemoveAll(filepath.Join(w.data(), "store")))
	putBack(w, whole, w.data())
	found := tree(w, w.data(), w.config())
	o := w.refusesToServe(9)
	if !strings.Contains(o.err, "events are missing, from event") || !strings.Contains(o.err, "keylease: hint: ") || !strings.Contains(o.err, "--accept-loss") {
		t.Errorf("it does not say what is missing and what to do: %s", o)
	}
	sameTree(w, found, w.data(), w.config())
	if o := w.cli("ls"); o.code != 9 || !strings.Contains(o.err, "--accept-loss") {
		t.Errorf("started by a command: %s", o)
	}

	s = w.serve("--accept-loss")
	for _, words := range []string{"events are missing", "are kept and", "all tokens are disabled", "lost-"} {
		if !strings.Contains(s.log.String(), words) {
			t.Errorf("the start does not say %q: %s", words, s.log)
		}
	}
	all := w.audit()
	told := find(all, "store.loss_accepted")
	if len(told) != 1 || told[0].Details["epoch"] != "2" || told[0].Details["missing"] == "" || told[0].Details["missing"] == "0" || told[0].Details["held"] == "" {
		t.Errorf("the trail says %+v", told)
	}
	if live := w.leases(); len(live) != 0 {
		t.Errorf("leases live on: %v", live)
	}
	if got, err := w.web(s.addr, token, true).try("list_credentials", args{}); err == nil && !got.refused {
		t.Errorf("a token of before: %s", got.raw)
	}
	a = w.agent("alice")
	for _, id := range []string{lease, lost} {
		got := call(t, a, "lease_credential", args{"lease_id": id})
		if code := got.code(); code != "lease_ended" && code != "not_available" {
			t.Errorf("renewing a lease of before: %s", got.raw)
		}
		if got := call(t, a, "release_lease", args{"lease_id": id}); got.get("value") != "" || got.get("status") == "released" {
			t.Errorf("releasing a lease of before: %s", got.raw)
		}
	}
	lend(t, a, "db")
	again, _ := w.token("robot")
	if got := call(t, w.web(s.addr, again, true), "lease_credential", args{"credential": "db"}); got.refused {
		t.Errorf("a token of after: %s", got.raw)
	}
	w.verified()
	a.leave()
	s.stop()
	s = w.serve() // as any other start; the snapshot knows of it all
	if got, err := w.web(s.addr, token, true).try("list_credentials", args{}); err == nil && !got.refused {
		t.Errorf("a token of before, after a restart: %s", got.raw)
	}
	s.stop()
	w.refused(2, "serve", "--http", "off", "--accept-loss")
	w.must(os.RemoveAll(filepath.Join(w.data(), "store")))
	putBack(w, whole, w.data())
	if o := w.refusesToServe(9); !strings.Contains(o.err, "epoch") {
		t.Errorf("the folder of before: %s", o)
	}
}

// TestG8ADamagedLogIsTriedElsewhere: after a kill the database is opened by another process first, on a copy: what
// Badger does to a log that does not hold, it does there.
func TestG8ADamagedLogIsTriedElsewhere(t *testing.T) {
	t.Parallel()
	w, _, _ := killedWith(t)
	log := w.storeFile("*.mem")
	data, err := os.ReadFile(log)
	w.must(err)
	data[len(strings.TrimRight(string(data), "\x00"))/2] ^= 0x10
	w.must(os.WriteFile(log, data, 0o600))
	found := tree(w, w.data(), w.config())
	for range 2 {
		if o := w.refusesToServe(9); !strings.Contains(o.err, "are missing, from event") {
			t.Errorf("%s", o)
		}
		sameTree(w, found, w.data(), w.config())
	}
	copied := filepath.Join(w.home, "store.trial")
	w.must(os.CopyFS(copied, os.DirFS(filepath.Join(w.data(), "store"))))
	var answer struct{ End uint64 }
	if o := w.cli("trial", copied); o.code != 0 || json.Unmarshal([]byte(o.out), &answer) != nil || answer.End == 0 {
		t.Errorf("a trial: %s", o)
	}
	table, err := filepath.Glob(filepath.Join(copied, "*.sst"))
	w.must(err)
	w.must(os.Truncate(table[0], 200))
	if o := w.cli("trial", copied); o.code == 0 || strings.Contains(o.out, "end") {
		t.Errorf("a trial with a damaged table: %s", o)
	}
	if o := w.cli("trial", filepath.Join(w.data(), "store")); o.code == 0 {
		t.Errorf("a trial on the store itself: %s", o)
	}
	sameTree(w, found, w.data(), w.config())
}

// spoil makes a record another than the trail speaks of, as somebody can who has the root key: an older one that was
// put back, or another's, looks the same.
func (w *world) spoil(kind store.Kind, id string) {
	w.t.Helper()
	s := w.openStore()
	_, err := s.Submit(store.Change{Entry: store.Entry{Event: store.EventTrailSuppressed},
		Records: []store.RecordWrite{{Kind: kind, ID: id, Plain: []byte(`{"state":"active"}`)}}}).Wait()
	w.must(err)
	w.must(s.Close())
}

// TestG8ADamagedRecordIsRefusedAlone: a credential or a token whose record is not what the trail says is refused and
// named; all others are served.
func TestG8ADamagedRecordIsRefusedAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("other", ""))
	bad, badID := w.token("robot")
	good, _ := w.token("friend")
	id := find(w.audit(), "credential.created")[0].CredentialID
	name := find(w.audit(), "credential.created")[0].Credential
	rest := map[string]string{"db": "other", "other": "db"}[name]
	s.stop()
	w.spoil(store.KindCredential, id)
	w.spoil(store.KindToken, badID)
	s = w.serve()
	for _, words := range []string{"credential " + name, "token " + badID, "is not what event"} {
		if !strings.Contains(s.log.String(), words) {
			t.Errorf("the log does not say %q: %s", words, s.log)
		}
	}
	a := w.web(s.addr, good, true)
	if got := call(t, a, "lease_credential", args{"credential": name}); !got.refused || strings.Contains(got.raw, valueOf(name)) {
		t.Errorf("the damaged one: %s", got.raw)
	}
	lend(t, a, rest)
	if got, err := w.web(s.addr, bad, true).try("list_credentials", args{}); err == nil && !got.refused {
		t.Errorf("the damaged token: %s", got.raw)
	}
	if !strings.Contains(w.ok("ls"), "damaged") {
		t.Errorf("ls does not say it: %s", w.ok("ls"))
	}
	w.verified() // the trail itself holds
}
