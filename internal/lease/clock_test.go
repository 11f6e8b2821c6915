package lease

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/boottime"
	"keylease/policy"
	"keylease/store"
)

func TestTheClockNeverGoesBackAndNeverStandsStill(t *testing.T) {
	start := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	wall, up := start, 100*time.Hour
	c := newClock(func() time.Time { return wall }, func() time.Duration { return up }, start.Add(10*time.Second))
	for _, s := range []struct {
		what           string
		wall, up, want time.Duration // want from start
		behind         time.Duration
	}{
		{"behind what was known at the start", 0, 0, 10 * time.Second, 10 * time.Second},
		{"it counts on", 5 * time.Second, 5 * time.Second, 15 * time.Second, 10 * time.Second},
		{"the wall clock catches up", 15 * time.Second, 0, 20 * time.Second, 0},
		{"set back by an hour", -time.Hour, 0, 20 * time.Second, time.Hour},
		{"and it counts on", 30 * time.Second, 30 * time.Second, 50 * time.Second, time.Hour},
		{"suspended for two hours, and the wall clock stood still", 0, 2 * time.Hour, 2*time.Hour + 50*time.Second, 3 * time.Hour},
		{"set right", 3 * time.Hour, 0, 2*time.Hour + 50*time.Second, 0},
		{"set an hour ahead", time.Hour, 0, 3*time.Hour + 50*time.Second, 0},
		{"and back", -time.Hour, 0, 3*time.Hour + 50*time.Second, time.Hour},
		{"the machine's clock goes back, which it never does", 0, -time.Hour, 3*time.Hour + 50*time.Second, time.Hour},
	} {
		wall, up = wall.Add(s.wall), up+s.up
		if got := c.now().Sub(start); got != s.want || c.behind() != s.behind {
			t.Errorf("%s: %v past the start and %v ahead, want %v and %v", s.what, got, c.behind(), s.want, s.behind)
		}
	}
}

// What the machine does at random moments between two readings adds up to nothing: the clock does not run away from
// the wall clock.
func TestTheClockDoesNotRunAway(t *testing.T) {
	c := newClock(time.Now, boottime.Up, time.Time{})
	for begun := time.Now(); time.Since(begun) < 300*time.Millisecond; {
		c.now()
	}
	if ahead := c.behind(); ahead > 2*time.Millisecond {
		t.Errorf("it is %v ahead", ahead)
	}
}

// F3, G3: a lease is never longer than it was granted for, whatever becomes of the wall clock, the daemon and the
// machine meanwhile.
func TestF3ALeaseIsNeverLonger(t *testing.T) {
	const long = 15 * time.Minute
	for what, passes := range map[string]func(w *world){
		"the wall clock is set back":                      func(w *world) { w.turnClocks(-time.Hour, long) },
		"set back, and the daemon is killed":              func(w *world) { w.turnClocks(-time.Hour, long); w.restart(false) },
		"killed, and set back while it is down":           func(w *world) { w.stop(false); w.turnClocks(-time.Hour, long); w.open() },
		"stopped, and set back while it is down":          func(w *world) { w.stop(true); w.turnClocks(-time.Hour, long); w.open() },
		"suspended, and the wall clock stood still":       func(w *world) { w.turnClocks(0, long) },
		"set ahead, and back again":                       func(w *world) { w.turnClocks(time.Hour, 0); w.sweep(ctx); w.turnClocks(-time.Hour, 0) },
		"a power cut, and a clock that begins in 1970":    func(w *world) { w.stop(false); w.turnClocks(-500_000*time.Hour, 0); w.reboot(); w.open() },
		"a power cut of 15 minutes":                       func(w *world) { w.stop(false); w.turnClocks(long, 0); w.reboot(); w.open() },
		"a restart of the machine, with its clock behind": func(w *world) { w.stop(true); w.turnClocks(-time.Second, 0); w.reboot(); w.open() },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.put("db", "fake-v1", policy.CredentialPolicy{})
			c := w.agent("web")
			c.Session = "" // else it ends with the grace
			g := w.lease(c, "db")
			w.turnClocks(0, 0)
			w.sweep(ctx)
			passes(w)
			_, err := w.Reveal(ctx, c, g.LeaseID)
			wantCode(t, err, LeaseEnded)
			if w.live() != 0 {
				t.Error("it is live")
			}
		})
	}
}

// It is not shorter either: neither a kill, nor a restart of the machine whose clock is right, nor a small step of the
// clock takes anything from it.
func TestF3ALeaseIsNotShorterForIt(t *testing.T) {
	w := newWorld(t)
	w.put("db", "fake-v1", policy.CredentialPolicy{})
	c := w.agent("web")
	c.Session = ""
	g := w.lease(c, "db")
	w.restart(false)
	w.turnClocks(-time.Second, 10*time.Second)
	w.restart(false)
	w.turnClocks(5*time.Minute, 5*time.Minute)
	w.restart(true)
	w.turnClocks(9*time.Minute+30*time.Second, 10*time.Second)
	w.stop(false)
	w.reboot()
	w.open()
	w.turnClocks(19*time.Second, 19*time.Second)
	if w.value(c, g.LeaseID) != "fake-v1" {
		t.Error("it ended early")
	}
	w.pass(12 * time.Second) // the clock had counted 10 s where the wall clock was a second back
	_, err := w.Reveal(ctx, c, g.LeaseID)
	wantCode(t, err, LeaseEnded)
}

// The wall clock goes ten years ahead by mistake and comes back: all leases have ended, for ever, and keylease is ten
// years ahead until an operator says that the wall clock is right. Then nothing that was made meanwhile lasts ten
// years longer.
func TestAClockThatWasAheadIsAcceptedBack(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	w := newWorld(t)
	w.put("db", "fake-v1", policy.CredentialPolicy{})
	c := w.agent("web")
	c.Session = ""
	old := w.lease(c, "db")
	_, before, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "web", TTL: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w.turnClocks(years, 0)
	w.sweep(ctx)
	ahead := w.lease(c, "db")
	_, wrong, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "web", TTL: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w.turnClocks(-years, 0)
	if skew := w.Activity().Skew; skew != years {
		t.Errorf("it knows to be %v ahead", skew)
	}
	w.restart(true)
	if skew := w.Activity().Skew; skew != years {
		t.Errorf("after a restart: %v ahead", skew)
	}
	w.stop(false)
	if err := w.tryOpenAs(Config{AcceptClock: true}); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} {
		if again {
			w.restart(false)
		}
		if skew := w.Activity().Skew; skew != 0 || w.live() != 0 {
			t.Errorf("accepted: %v ahead, %d live", skew, w.live())
		}
		for _, g := range []Grant{old, ahead} {
			if _, err := w.Reveal(ctx, c, g.LeaseID); err == nil {
				t.Error("a lease is back")
			}
		}
		for _, i := range w.Tokens() {
			if want := map[string]string{before.ID: stateActive, wrong.ID: stateRevoked}[i.ID]; i.State != want {
				t.Errorf("token %s is %s, want %s", i.ID, i.State, want)
			}
		}
	}
	if n := w.told(store.EventClockSetBack); n != 1 {
		t.Errorf("the trail tells of it %d times", n)
	}
	w.turnClocks(time.Minute, time.Minute)
	if g := w.lease(c, "db"); !g.IssuedAt.Equal(w.clock()) {
		t.Errorf("a lease of %v begins at %v", w.clock(), g.IssuedAt)
	}
	if r, err := w.Verify(ctx, ""); err != nil || r.Problem != "" {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// That the wall clock is far behind is logged once, and once that it no longer is.
func TestFarBehindIsLoggedOnce(t *testing.T) {
	w := newWorld(t)
	var log strings.Builder
	w.cfg.Log = zerolog.New(&log)
	w.turnClocks(-time.Hour, 0)
	for range 3 {
		w.turnClocks(2*time.Minute, 2*time.Minute)
		w.sweep(context.Background())
	}
	w.turnClocks(time.Hour, 0)
	for range 2 {
		w.turnClocks(2*time.Minute, 2*time.Minute)
		w.sweep(context.Background())
	}
	if n, m := strings.Count(log.String(), "is behind keylease's"), strings.Count(log.String(), "has caught up"); n != 1 || m != 1 {
		t.Errorf("said %d and %d times: %s", n, m, &log)
	}
}

// What was counted by a clock that was wrong does not stand in the way once it is right: budgets of a day, and when a
// token was last used. What a rotation let go on of a token's earlier text does not last longer for it.
func TestAnAcceptedClockLeavesNothingAheadOfIt(t *testing.T) {
	const ahead = 3 * 24 * time.Hour
	w := newWorld(t)
	w.budget(20_000)
	w.put("openai", "sk-fake-1", policy.CredentialPolicy{})
	c := w.agent("web")
	c.Session = ""
	text, info, err := w.CreateToken(ctx, operator, TokenSpec{Identity: "web"})
	if err != nil {
		t.Fatal(err)
	}
	w.turnClocks(ahead, 0)
	second, _, err := w.RotateToken(ctx, operator, info.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Authenticate(ctx, text, "test"); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Lease(ctx, c, Request{Credential: "openai"})
	}
	wantCode(t, err, RateLimited)
	w.turnClocks(-ahead, 0)
	w.stop(true)
	if err := w.tryOpenAs(Config{AcceptClock: true}); err != nil {
		t.Fatal(err)
	}
	for _, clean := range []bool{false, true} {
		w.turnClocks(24*time.Hour, 24*time.Hour)
		if _, err := w.Lease(ctx, c, Request{Credential: "openai"}); err != nil {
			t.Errorf("on another day, after its budget was spent by a clock ahead: %v", err)
		}
		if _, err := w.Authenticate(ctx, text, "test"); err == nil {
			t.Error("the text before the rotation lasts a day longer than it was to")
		}
		if _, err := w.Authenticate(ctx, second, "test"); err != nil {
			t.Errorf("the token itself: %v", err)
		}
		if at := w.tokenInfo(info.ID).LastUsedAt; at == nil || at.After(w.clock()) {
			t.Errorf("last used %v, by a clock that says %v", at, w.clock())
		}
		w.restart(clean)
	}
	if n := len(w.ix.books.Spent); w.ix.books.Day != dayOf(w.clock()) || n == 0 {
		t.Errorf("day %d with %d budgets, today is %d", w.ix.books.Day, n, dayOf(w.clock()))
	}
}
