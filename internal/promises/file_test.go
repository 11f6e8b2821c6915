//go:build linux

package promises

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tree reads every plain file below the folders. The locks and the daemon's log are no part of the store: they say who
// is there, and why a start failed.
func tree(w *world, folders ...string) map[string][]byte {
	w.t.Helper()
	files := map[string][]byte{}
	for _, folder := range folders {
		w.must(filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || slices.Contains([]string{"lock", "start.lock", "daemon.log"}, d.Name()) {
				return err
			}
			files[path], err = os.ReadFile(path)
			return err
		}))
	}
	return files
}

// putBack makes the folders what they were when files was read.
func putBack(w *world, files map[string][]byte, folders ...string) {
	w.t.Helper()
	for path, data := range tree(w, folders...) {
		if was, there := files[path]; !there {
			w.must(os.Remove(path))
		} else if !bytes.Equal(was, data) {
			w.must(os.WriteFile(path, was, 0o600))
		}
	}
	for path, data := range files {
		if _, err := os.Stat(path); err != nil {
			w.must(os.MkdirAll(filepath.Dir(path), 0o700))
			w.must(os.WriteFile(path, data, 0o600))
		}
	}
}

// sameTree fails the test where the folders are not byte for byte what they were.
func sameTree(w *world, before map[string][]byte, folders ...string) {
	w.t.Helper()
	after := tree(w, folders...)
	for path, data := range before {
		if !bytes.Equal(after[path], data) {
			w.t.Errorf("%s was changed", path)
		}
	}
	for path := range after {
		if before[path] == nil {
			w.t.Errorf("%s was made", path)
		}
	}
}

// refusesToServe runs serve and wants it to end by itself with this code.
func (w *world) refusesToServe(code int, args ...string) outcome {
	w.t.Helper()
	return w.refused(code, append([]string{"serve", "--http", "off"}, args...)...)
}

// lived is a world whose store has seen a life: credentials, a token, leases that ended and leases that live. Nothing
// runs in it.
func lived(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.policy(openPolicy)
	w.seed(secretOf("db", ""), secretOf("other", ""))
	w.token("alice")
	a := w.agent("alice")
	for i := range 20 {
		id := lend(t, a, "db", "purpose", fmt.Sprintf("work number %d", i))
		if i%2 == 0 {
			call(t, a, "release_lease", args{"lease_id": id})
		}
	}
	a.leave()
	w.stopDaemon()
	return w
}

var namesEvent = regexp.MustCompile(`event \d+`)

// TestG9AnyEditOfTheTrailIsFound: a byte is flipped at many places of every file of the store, and every file is cut
// short, emptied and removed. Either keylease refuses to start or to lend (exit 9, and verify names the event), or what
// was changed was no part of the trail: then the trail is whole, to its last event.
func TestG9AnyEditOfTheTrailIsFound(t *testing.T) {
	t.Parallel()
	w := lived(t)
	folder := filepath.Join(w.data(), "store")
	whole := w.books()
	events := len(w.audit())
	w.stopDaemon()
	sound := tree(w, w.data(), w.config())
	tried, found := 0, 0
	try := func(what, path string, change func([]byte) []byte) {
		t.Helper()
		tried++
		defer putBack(w, sound, w.data(), w.config())
		if change == nil {
			w.must(os.Remove(path))
		} else {
			w.must(os.WriteFile(path, change(slices.Clone(sound[path])), 0o600))
		}
		o := w.cli("audit", "verify")
		switch {
		case o.code == 9:
			found++
		case o.code != 0:
			t.Errorf("%s of %s: exit %d: %s", what, filepath.Base(path), o.code, o.err)
		default:
			if all := w.audit(); len(all) < events || len(w.books().live) != len(whole.live) {
				t.Errorf("%s of %s: found sound, with %d of %d events", what, filepath.Base(path), len(all), events)
			}
		}
		w.stopDaemon()
	}
	for path, data := range sound {
		if filepath.Dir(path) != folder {
			continue
		}
		used := len(bytes.TrimRight(data, "\x00"))
		for i := range 3 {
			if at := used * (2*i + 1) / 6; used > 0 {
				try(fmt.Sprintf("flipping byte %d", at), path, func(b []byte) []byte { b[at] ^= 0x10; return b })
			}
		}
		try("cutting the end", path, func(b []byte) []byte { return b[:used-min(used, 40)] })
		try("removing", path, nil)
	}
	t.Logf("%d changes, %d found", tried, found)
	if found < tried/3 {
		t.Errorf("only %d of %d changes were found", found, tried)
	}
}

// TestG9ARolledBackFolderIsRefused: the whole data folder put back to an earlier, valid copy is refused, because the
// anchor lies elsewhere, by daemon, command and relay alike; so is a folder without its anchor.
func TestG9ARolledBackFolderIsRefused(t *testing.T) {
	t.Parallel()
	w := lived(t)
	yesterday := tree(w, w.data())
	a := w.agent("alice")
	lend(t, a, "other")
	a.leave()
	w.stopDaemon()
	today, anchor := tree(w, w.data()), tree(w, w.config())
	putBack(w, yesterday, w.data())
	o := w.refusesToServe(9)
	if !namesEvent.MatchString(o.err) || !strings.Contains(o.err, "anchor") {
		t.Errorf("it does not say what is missing: %s", o)
	}
	if o := w.cli("ls"); o.code != 9 {
		t.Errorf("started by a command: %s", o)
	}
	b, err := w.start(spec{client: "bob"})
	w.must(err)
	if err := b.handshake(legacy); err == nil || !namesEvent.MatchString(err.Error()) {
		t.Errorf("an agent is not told why: %v", err)
	}
	b.leave()
	putBack(w, today, w.data())
	for path := range anchor {
		if strings.Contains(filepath.Base(path), "anchor") {
			w.must(os.Remove(path))
		}
	}
	w.refusesToServe(9)
	putBack(w, anchor, w.config())
	w.verified()
}

// TestG9APinnedKeyTellsOneTrailFromAnother: without the fingerprint that was noted, verify says that the trail is
// consistent and no more; with it, authenticated; with another's, exit 9.
func TestG9APinnedKeyTellsOneTrailFromAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var made struct{ Fingerprint string }
	w.json(&made, "init")
	w.seed(secretOf("db", ""))
	if out := w.ok("audit", "verify"); !strings.Contains(out, "consistent, not authenticated") || !strings.Contains(out, made.Fingerprint) {
		t.Errorf("without a pinned key: %s", out)
	}
	if out := w.ok("audit", "verify", "--key", made.Fingerprint); strings.Contains(out, "not authenticated") {
		t.Errorf("with its own key: %s", out)
	}
	w.refused(9, "audit", "verify", "--key", "SHA256:"+strings.Repeat("A", 43))
}

// TestG12AWrongKeyWritesNothing: with another root key, a missing one or one that is none, keylease refuses, leaves
// every byte of data and configuration as it was, makes no new key, and does not repeat the one that it read.
func TestG12AWrongKeyWritesNothing(t *testing.T) {
	t.Parallel()
	w := lived(t)
	keyFile := filepath.Join(w.config(), "root.key")
	right, err := os.ReadFile(keyFile)
	w.must(err)
	wrong := fmt.Sprintf("%x\n", sha256.Sum256([]byte("another key")))
	for name, key := range map[string]string{"another": wrong, "half": string(right[:32]), "none at all": "hello", "empty": "", "missing": "-"} {
		if key == "-" {
			w.must(os.Remove(keyFile))
		} else {
			w.must(os.WriteFile(keyFile, []byte(key), 0o600))
		}
		before := tree(w, w.data(), w.config())
		for _, verb := range [][]string{{"serve", "--http", "off"}, {"ls"}, {"audit", "verify"}} {
			o := w.cli(verb...)
			if o.code != 6 || strings.Contains(o.err, strings.TrimSpace(wrong)) || !strings.Contains(o.err, "keylease: error: ") {
				t.Errorf("%s key, %v: %s", name, verb, o)
			}
		}
		sameTree(w, before, w.data(), w.config())
	}
	if o := w.cli("init"); o.code == 0 {
		t.Errorf("init made a key for a store that exists: %s", o)
	}
	w.must(os.WriteFile(keyFile, right, 0o600))
	w.verified()
}

// TestG10APolicyEditHoldsFromTheNextCall: for new leases and for the renewal of live ones. A file that is malformed or
// vanished changes nothing, and /readyz, the CLI and the trail say so; a start without it is refused.
func TestG10APolicyEditHoldsFromTheNextCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("other", ""))
	a := w.agent("alice")
	id := lend(t, a, "db")
	w.policy(openPolicy + "  - {name: not db, credentials: [db], effect: deny}\n")
	wantCode(t, a, "not_available", "lease_credential", args{"lease_id": id})
	wantCode(t, a, "not_available", "lease_credential", args{"credential": "db"})
	if list := call(t, a, "list_credentials", args{}); strings.Contains(list.raw, `"db"`) {
		t.Errorf("listed though denied: %s", list.raw)
	}
	lend(t, a, "other", "ttl", "1h")
	if got := call(t, a, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
		t.Errorf("giving back what policy now denies: %s", got.raw)
	}
	w.policy(openPolicy + "    maxLeaseTTL: 90s\n")
	if got := call(t, a, "lease_credential", args{"credential": "db", "ttl": "1h"}); got.get("ttl") != "1m30s" {
		t.Errorf("the new ceiling: %s", got.raw)
	}
	loaded := len(find(w.audit(), "policy.loaded"))
	if loaded != 3 {
		t.Errorf("three policies, %d policy.loaded", loaded)
	}

	governs := func(why string) {
		t.Helper()
		if got := call(t, a, "lease_credential", args{"credential": "db", "ttl": "1h"}); got.get("ttl") != "1m30s" {
			t.Errorf("%s: %s", why, got.raw)
		}
	}
	says := func(why string) {
		t.Helper()
		got, err := do("GET", "http://"+s.addr+"/readyz", "")
		w.must(err)
		if !strings.Contains(got.body, "not in force") {
			t.Errorf("%s: /readyz says HTTP %d %s", why, got.status, got.body)
		}
	}
	w.policy("version: 1\nrules: [{name: broken, credential: x, efect: deny}]\n")
	w.eventually("/readyz tells of a malformed file before anybody leases", func() error {
		got, err := do("GET", "http://"+s.addr+"/readyz", "")
		return errors.Join(err, unless(strings.Contains(got.body, "not in force"), got.body))
	})
	governs("malformed")
	says("malformed")
	if o := w.cli("policy", "check"); o.code != 2 || !strings.Contains(o.err, "policy.yaml:2") || !strings.Contains(o.err, "effect") {
		t.Errorf("policy check of a malformed file: %s", o)
	}
	w.must(os.Remove(w.policyFile()))
	governs("vanished")
	says("vanished")
	w.must(os.Mkdir(w.policyFile(), 0o700))
	governs("a folder in its place")
	w.must(os.Remove(w.policyFile()))
	all := w.audit()
	if len(find(all, "policy.loaded")) != loaded || len(find(all, "policy.rejected")) < 2 {
		t.Errorf("in the trail: %d loaded, %d rejected", len(find(all, "policy.loaded")), len(find(all, "policy.rejected")))
	}
	if code := s.stop(); code != 0 {
		t.Errorf("stopped with exit %d: %s", code, s.log)
	}
	a.leave()
	w.stopDaemon()
	o := w.refusesToServe(1)
	if !strings.Contains(o.err, "--no-policy") {
		t.Errorf("a start without the policy that governed: %s", o)
	}
	w.serve("--no-policy")
	dropped := find(w.audit(), "policy.loaded")
	if last := dropped[len(dropped)-1]; len(dropped) != loaded+1 || last.Details["hash"] != "" {
		t.Errorf("dropping the policy is not recorded: %+v", last)
	}
}
