//go:build linux

package promises

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestG3ThePreviousRootKeyOpensNothing: after rotate-key keylease refuses to start with the key before, and leaves every
// byte as it was; with the new one all is there: values, leases, tokens, the trail.
func TestG3ThePreviousRootKeyOpensNothing(t *testing.T) {
	t.Parallel()
	w := lived(t)
	keyFile := filepath.Join(w.config(), "root.key")
	old, err := os.ReadFile(keyFile)
	w.must(err)
	s := w.serve()
	token, _ := w.token("web")
	c := w.web(s.addr, token, true)
	id := lend(t, c, "db", "ttl", "1h")
	w.ok("rotate-key")
	if got := call(t, c, "lease_credential", args{"credential": "db", "delivery": "value"}); got.get("value") != valueOf("db") {
		t.Errorf("after the rotation: %s", got.code())
	}
	if code := s.stop(); code != 0 {
		t.Fatal(s.log)
	}
	fresh, err := os.ReadFile(keyFile)
	w.must(err)
	w.must(os.WriteFile(keyFile, old, 0o600))
	before := tree(w, w.data(), w.config())
	w.refusesToServe(6)
	w.refused(6, "ls")
	sameTree(w, before, w.data(), w.config())
	w.must(os.WriteFile(keyFile, fresh, 0o600))
	s = w.serve()
	w.verified()
	if _, live := w.leases()[id]; !live {
		t.Error("a lease did not survive the rotation")
	}
	if got := call(t, w.web(s.addr, token, true), "lease_credential", args{"credential": "db", "delivery": "value"}); got.get("value") != valueOf("db") {
		t.Errorf("after a restart: %s", got.code())
	}
	if n := len(find(w.audit(), "key.rotated")); n != 1 {
		t.Errorf("the trail tells of %d rotations", n)
	}
}

// TestARotationOfTheRootKeyThatIsKilledLeavesOneKey: the daemon is killed at random moments of rotate-key. Each time it
// starts again with what lies where the root key belongs, all is there, one key file is left, and the trail tells of each
// key that came into force.
func TestARotationOfTheRootKeyThatIsKilledLeavesOneKey(t *testing.T) {
	t.Parallel()
	w := lived(t)
	kills := 8
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		kills = 100
	}
	keyFile := filepath.Join(w.config(), "root.key")
	changed := 0
	key, err := os.ReadFile(keyFile)
	w.must(err)
	for range kills {
		s := w.serve("--http", "off")
		cmd := exec.Command(w.bin, "rotate-key")
		cmd.Env, cmd.Dir = w.env(), w.home
		w.must(cmd.Start())
		time.Sleep(rand.N(60 * time.Millisecond))
		s.kill()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		w.stopDaemon() // the command may have started one
		s = w.serve("--http", "off")
		now, err := os.ReadFile(keyFile)
		w.must(err)
		if string(now) != string(key) {
			changed++
		}
		key = now
		if _, err := os.Lstat(keyFile + ".new"); err == nil {
			t.Error("two key files are left")
		}
		a := w.agent("alice")
		if got := call(t, a, "lease_credential", args{"credential": "db", "delivery": "value"}); got.get("value") != valueOf("db") {
			t.Fatalf("after a kill: %s", got.raw)
		}
		a.leave()
		if n := len(find(w.audit(), "key.rotated")); n < changed {
			t.Fatalf("the trail tells of %d rotations, and there were %d", n, changed)
		}
		s.kill()
	}
	w.verified()
	t.Logf("the key changed in %d of %d", changed, kills)
}
