//go:build linux

package promises

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"
)

// TestG11AHundredThousandLeases: with 10^5 leases live, of agents with sessions and of agents without, keylease lends
// within a second of being started and is gone two seconds after it was told to stop. What a kill leaves is told, and
// held to nothing but patience.
func TestG11AHundredThousandLeases(t *testing.T) {
	t.Parallel()
	if os.Getenv("KEYLEASE_TEST_FULL") == "" {
		t.Skip("takes a minute or two: set KEYLEASE_TEST_FULL")
	}
	const many, at = 100_000, 64
	for _, c := range []struct {
		name  string
		bound bool
	}{{"without sessions", false}, {"with sessions", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorldOn(t, os.TempDir())
			w.configure("grace: 1h\nlimits: {callRate: 0}\n")
			w.policy(openPolicy)
			s := w.serve()
			w.seed(secretOf("db", ""))
			token, _ := w.token("web")
			a := w.web(s.addr, token, !c.bound)
			a.over = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: at}}
			lend(t, a, "db")
			empty := w.ended(t, s)
			s, few := w.begun(t, s.addr, a)
			var left atomic.Int64
			left.Store(many)
			begin := time.Now()
			together(t, at, func(int) error {
				for left.Add(-1) >= 0 {
					got, err := a.try("lease_credential", args{"credential": "db", "ttl": "1h"})
					if err != nil || got.refused {
						return fmt.Errorf("%w: %s", err, got.raw)
					}
				}
				return nil
			})
			t.Logf("%d leases lent in %s", many, time.Since(begin))
			stop := w.ended(t, s)
			s, start := w.begun(t, s.addr, a)
			s.kill()
			s, killed := w.begun(t, s.addr, a)
			again := w.ended(t, s)
			s, second := w.begun(t, s.addr, a)
			t.Logf("started in %s, then %s (%.0f times the %s that it takes with one lease); after a kill in %s; stopped in %s, then %s (with one lease: %s)",
				start, second, start.Seconds()/few.Seconds(), few, killed, stop, again, empty)
			if n := len(w.leases()); n < many {
				t.Errorf("%d leases are live, %d were lent", n, many)
			}
			if start > time.Second || second > time.Second {
				t.Errorf("started in %s and %s: 1 s is promised", start, second)
			}
			if stop > 2*time.Second || again > 2*time.Second {
				t.Errorf("stopped in %s and %s: 2 s are promised", stop, again)
			}
			s.kill()
		})
	}
}

// begun starts a daemon at addr, and says how long it took until somebody was lent something.
func (w *world) begun(t *testing.T, addr string, c caller) (*served, time.Duration) {
	t.Helper()
	s := &served{Cmd: exec.Command(w.bin, "serve", "--http", addr), addr: addr, log: &buffer{}, exited: make(chan struct{})}
	s.Env, s.Dir, s.Stdout, s.Stderr = w.env(), w.home, s.log, s.log
	begin := time.Now()
	w.must(s.Start())
	go func() { _ = s.Wait(); close(s.exited) }()
	for {
		got, err := c.try("lease_credential", args{"credential": "db", "ttl": "1h"})
		took := time.Since(begin)
		switch {
		case err == nil && !got.refused:
			return s, took
		case took > 6*patience:
			t.Fatalf("nothing was lent in %s: %v %s\n%s", took, err, got.raw, tail(s.log.String(), 2000))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// ended stops a daemon and says how long that took.
func (w *world) ended(t *testing.T, s *served) time.Duration {
	t.Helper()
	begin := time.Now()
	if code := s.stop(); code != 0 {
		t.Fatalf("exit %d: %s", code, tail(s.log.String(), 2000))
	}
	return time.Since(begin)
}
