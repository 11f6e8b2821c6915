//go:build linux

package promises

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestG9APrunedTrailIsGuardedToo: a trail that was pruned behind an export verifies, and so does the export, which leads
// up to it; leases that were opened before the base go on. A byte that is flipped in any file of the store is found, or
// was no part of the trail.
func TestG9APrunedTrailIsGuardedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure("audit: {keep: 1s}\ngrace: 1h\n")
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	for range 10 {
		lend(t, a, "db")
	}
	a.leave()
	file := filepath.Join(w.home, "trail.jsonl")
	w.ok("audit", "export", file)
	w.stopDaemon() // writes the snapshot that pruning wants
	var s struct {
		Head uint64
		Base *struct{ Seq uint64 }
	}
	w.eventually("pruning", func() error {
		if w.json(&s, "audit", "status"); s.Base == nil {
			return errors.New("nothing is pruned")
		}
		return nil
	})
	if n := len(w.leases()); n != 10 {
		t.Errorf("%d leases of 10 went on", n)
	}
	w.ok("audit", "verify", "--file", file, "--with-store")
	w.stopDaemon()

	folder := filepath.Join(w.data(), "store")
	sound := tree(w, w.data(), w.config())
	tried, found := 0, 0
	for path, data := range sound {
		used := len(bytes.TrimRight(data, "\x00"))
		if filepath.Dir(path) != folder || used == 0 {
			continue
		}
		tried++
		changed := slices.Clone(data)
		changed[used/2] ^= 0x10
		w.must(os.WriteFile(path, changed, 0o600))
		switch o := w.cli("audit", "verify", "--file", file, "--with-store"); o.code {
		case 9:
			found++
		case 0:
			if n := len(w.leases()); n != 10 {
				t.Errorf("flipping a byte of %s: found sound, with %d leases of 10", filepath.Base(path), n)
			}
		default:
			t.Errorf("flipping a byte of %s: exit %d: %s", filepath.Base(path), o.code, o.err)
		}
		w.stopDaemon()
		putBack(w, sound, w.data(), w.config())
	}
	if t.Logf("%d changes, %d found", tried, found); found == 0 {
		t.Error("none was found")
	}
	w.ok("audit", "verify", "--file", file, "--with-store")
}

// TestABudgetOfTheTrailHoldsThroughAKill: over the daily budget nothing more is granted, giving back goes on, denials
// are counted, and neither a kill nor a stop gives a fresh budget.
func TestABudgetOfTheTrailHoldsThroughAKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy("version: 1\nlimits: {trailBytes: 15000}\nrules: [{name: all, identities: [\"*\"], credentials: [\"*\"]}]\n")
	w.seed(secretOf("db", ""))
	server := w.serve()
	a := w.agent("alice")
	var held []string
	for {
		r := call(t, a, "lease_credential", args{"credential": "db"})
		if r.refused {
			if r.code() != "rate_limited" {
				t.Fatalf("refused with %s", r.code())
			}
			break
		}
		if held = append(held, r.lease()); len(held) > 100 {
			t.Fatal("nobody stops it")
		}
	}
	before := len(find(w.audit(), "lease.denied"))
	for i := range 50 {
		call(t, a, "lease_credential", args{"credential": fmt.Sprintf("none-%d", i)})
	}
	call(t, a, "release_lease", args{"lease_id": held[0]})
	if all := w.audit(); len(find(all, "lease.denied")) != before || len(find(all, "lease.released")) != 1 {
		t.Errorf("%d denials recorded beyond the budget, %d releases", len(find(all, "lease.denied"))-before, len(find(all, "lease.released")))
	}
	a.leave()
	server.kill()
	b := w.agent("bob")
	if r := call(t, b, "lease_credential", args{"credential": "db"}); r.code() != "rate_limited" {
		t.Errorf("after a kill: %s", r.raw)
	}
	b.leave()
	w.stopDaemon()
	if counted := find(w.audit(), "trail.suppressed"); len(counted) == 0 {
		t.Error("what was suppressed is not told")
	}
}
