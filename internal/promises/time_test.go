//go:build linux

package promises

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// laterBy makes the machine's own clock read so much more for the daemons that are started from here on, as it does
// where the wall clock is set back by that much. (A wall clock of its own no process can have.)
func (w *world) laterBy(d time.Duration) {
	w.t.Helper()
	w.under = []string{"unshare", "--time", "--boottime", fmt.Sprint(int(d.Seconds())), "--"}
	if out, err := exec.Command(w.under[0], append(w.under[1:], "true")...).CombinedOutput(); err != nil {
		w.t.Skipf("this needs root and time namespaces: %v %s", err, out)
	}
}

// TestF3AClockSetBackLengthensNoLease: while the daemon is down after a kill the wall clock is set back by an hour. A
// lease of half an hour has ended; how far the clocks are apart is told; and it ends when an operator says so, with
// all leases.
func TestF3AClockSetBackLengthensNoLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.laterBy(0)
	s := w.serve()
	w.seed(secretOf("db", "policy: {maxLeaseTTL: 4h}"))
	token, _ := w.token("web")
	lent := func(s *served, ttl string) string {
		t.Helper()
		got, err := w.web(s.addr, token, true).try("lease_credential", args{"credential": "db", "ttl": ttl})
		if err != nil || got.refused {
			t.Fatal(err, got.raw)
		}
		return got.lease()
	}
	short, long := lent(s, "30m"), lent(s, "2h")
	if got, err := do("GET", "http://"+s.addr+"/readyz", ""); err != nil || !strings.Contains(got.body, `"clock":"ok"`) {
		t.Errorf("/readyz: %v %s", err, got.body)
	}
	s.kill()

	w.laterBy(time.Hour)
	s = w.serve()
	live := w.leases()
	if _, is := live[short]; is {
		t.Error("a lease of 30 minutes is live after an hour")
	}
	if l, is := live[long]; !is {
		t.Error("a lease of two hours is gone after one")
	} else if left := time.Until(l.ExpiresAt); left < time.Hour || left > 2*time.Hour {
		t.Errorf("it is live for another %s of the wall clock", left)
	}
	if got, err := w.web(s.addr, token, true).try("lease_credential", args{"lease_id": short, "ttl": "30m"}); err != nil || got.code() != "lease_ended" {
		t.Errorf("renewing it: %v %s", err, got.raw)
	}
	if got, err := do("GET", "http://"+s.addr+"/readyz", ""); err != nil || !strings.Contains(got.body, `"clock":"the system's clock is 1h0m`) {
		t.Errorf("/readyz: %v %s", err, got.body)
	}
	if o := w.cli("leases"); !strings.Contains(o.err, "clock is 1h0m") || !strings.Contains(o.out, "in 59m") && !strings.Contains(o.out, "in 1h") {
		t.Errorf("keylease leases: %s", o)
	}
	w.eventually("it is logged", func() error { return unless(strings.Contains(s.log.String(), "--accept-clock"), s.log.String()) })
	if n := strings.Count(s.log.String(), "is behind keylease's"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if code := s.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}

	s = w.serve("--accept-clock")
	if n := len(w.leases()); n != 0 {
		t.Errorf("%d leases live on", n)
	}
	if got, err := do("GET", "http://"+s.addr+"/readyz", ""); err != nil || !strings.Contains(got.body, `"clock":"ok"`) {
		t.Errorf("/readyz: %v %s", err, got.body)
	}
	if e := find(w.audit(), "server.clock_set_back"); len(e) != 1 || time.Since(e[0].Time).Abs() > time.Minute {
		t.Errorf("in the trail: %+v", e)
	}
	lent(s, "30m")
	w.verified()
}

// TestG10AKeySourceThatHangsFailsTheStart: where the root key should come from is a pipe that nobody writes to.
func TestG10AKeySourceThatHangsFailsTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ok("init")
	pipe := filepath.Join(w.home, "key")
	w.must(syscall.Mkfifo(pipe, 0o600))
	begun := time.Now()
	o := w.cli("serve", "--http", "off", "--root-key-file", pipe)
	if took := time.Since(begun); o.code != 6 || took > patience/2 {
		t.Errorf("after %s: %s", took, o)
	}
	w.ok("ls") // nothing is the worse for it
}
