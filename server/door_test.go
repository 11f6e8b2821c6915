//go:build linux || darwin

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(open)
}

// Every connection holds a handle on its process: however it ends, that is given back.
func TestNoDescriptorStaysBehindAConnection(t *testing.T) {
	_, p := openHouse(t)
	knock := func(say string, read bool) {
		conn, err := connect(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, say)
		if read {
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = conn.Read(make([]byte, 1000))
		}
	}
	round := func() {
		knock("", false)
		knock("nonsense\n", true)
		knock(`{"keylease":1,"kind":"root"}`+"\n", true)
		knock(`{"keylease":1,"kind":"mcp","as":"x"}`+"\n", true)
		knock(`{"keylease":1,"kind":"mcp","token":"kl_fake_bad"}`+"\n", true)
		knock(`{"keylease":1,"kind":"mcp"}`+"\n"+strings.Repeat("x", 70<<10), true)
		knock(`{"keylease":1,"kind":"admin"}`+"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", true)
		knock(`{"keylease":1,"kind":"admin"}`+"\nnonsense\r\n\r\n", true)
		knock(`{"keylease":1,"kind":"handover"}`+"\n", true)
	}
	round()
	base := 0
	comesTrue(t, "the first round is over", func() bool { n := descriptors(t); same := n == base; base = n; return same })
	for range 20 {
		round()
	}
	comesTrue(t, "all is given back", func() bool { return descriptors(t) <= base+2 })
}

// Who follows the trail does not hold up the stop; and the store closes after the last admin verb has ended, one that
// goes on after its connection was cut included.
func TestAStopWaitsForAdminVerbsAndNotForFollowers(t *testing.T) {
	for name, c := range map[string]struct{ work, longest time.Duration }{
		"a follower":  {50 * time.Millisecond, time.Second},
		"a slow verb": {stopDrain + 300*time.Millisecond, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stopUnder(t, c.work, c.longest)
		})
	}
}

// stopUnder stops a daemon under an admin verb that works on for a while after it was told that nobody listens.
func stopUnder(t *testing.T, work, longest time.Duration) {
	h, p := newHouse(), shortDir(t)
	var inside, closedUnder atomic.Bool
	entered := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	up, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- serve(ctx, Options{Paths: p, Ready: func(Listening) { close(up) }}, func(_ context.Context, d *daemon) (backend, error) {
			b := h.backend(zerolog.Nop(), d.touch)
			b.admin = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inside.Store(true)
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				close(entered)
				<-r.Context().Done() // as audit --follow waits for the next entry
				time.Sleep(work)     // and then reads the trail once more
				inside.Store(false)
			})
			b.close = func() error { closedUnder.Store(inside.Load()); return nil }
			return b, nil
		})
	}()
	<-up
	conn, err := dialAdmin(context.Background(), DialOptions{Paths: p})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	start := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if closedUnder.Load() {
		t.Error("the store was closed under a verb")
	}
	if took := time.Since(start); took > longest {
		t.Errorf("it held up the stop for %v", took)
	}
}

// A relay says once, on stderr, that its token is no good.
// A connection that is let in just as the daemon stops is one that the stop waits for. Only the race detector can tell.
func TestAStopWaitsForWhoCameLast(t *testing.T) {
	for range 40 {
		p := shortDir(t)
		stop := newHouse().open(t, Options{Paths: p})
		conn, err := connect(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	}
}

func TestABadTokenIsSaidOnStderrOnce(t *testing.T) {
	_, p := openHouse(t)
	var log lockedBuffer
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, Token: "kl_fake_bad", Log: zerolog.New(&log)})
	s.open("claude-code")
	for range 3 {
		if a := s.ask(call1("1", "whoami", "")); a.text() != "unauthenticated" {
			t.Fatal(a.raw)
		}
	}
	if said := log.String(); strings.Count(said, "is not valid") != 1 || strings.Contains(said, "kl_fake") {
		t.Errorf("on stderr: %s", said)
	}
	log = lockedBuffer{}
	s = startRelay(t, context.Background(), RelayOptions{Paths: p, Token: "kl_fake_good", Log: zerolog.New(&log)})
	s.open("claude-code")
	if log.String() != "" {
		t.Errorf("for a good one: %s", log.String())
	}
}

func TestDoorsAdmitByWhoTheKernelSaysItIs(t *testing.T) {
	s := &System{AgentUIDs: []int{1001, 1002}, AgentGroups: []int{50}, AdminUIDs: []int{1009}, AdminSocket: "/run/x"}
	me := os.Geteuid()
	for _, c := range []struct {
		peer         localPeer
		agent, admin bool
	}{
		{localPeer{UID: 1001, GID: 1}, true, false},
		{localPeer{UID: 1003, GID: 1}, false, false},
		{localPeer{UID: 1003, GID: 50}, true, false},
		{localPeer{UID: 1003, GID: 1, Groups: []int{7, 50}}, true, false},
		{localPeer{UID: 1003, GID: 1, Groups: []int{7, 51}}, false, false},
		{localPeer{UID: 1009, GID: 50}, false, true},
		{localPeer{UID: 0, GID: 50}, false, true},
		{localPeer{UID: me, GID: 50}, false, true},
	} {
		for who, got := range map[string]error{"agent": s.agent(&c.peer), "admin": s.operator(&c.peer)} {
			want := map[string]bool{"agent": c.agent, "admin": c.admin}[who]
			var denied *HelloError
			if (got == nil) != want || got != nil && (!errors.As(got, &denied) || denied.Code != string(CodeDenied)) {
				t.Errorf("%+v as %s: %v", c.peer, who, got)
			}
		}
	}
}

// Group 0 may write what is closed to all but root (onlyRootAnd), so nobody leases by being in it.
func TestB8RootsGroupIsNoAgents(t *testing.T) {
	s := &System{AgentGroups: []int{50, 0}, AdminSocket: "/run/x"}
	var unsafe *UnsafeError
	if err := s.check(shortDir(t)); !errors.As(err, &unsafe) || !strings.Contains(err.Error(), "group 0 is root's own") || unsafe.Remedy == "" {
		t.Errorf("it starts with agents in group 0: %v", err)
	}
	for _, p := range []localPeer{{UID: 1003, GID: 0}, {UID: 1003, GID: 1, Groups: []int{7, 0}}} {
		if s.agent(&p) == nil {
			t.Errorf("%+v is let in by group 0", p)
		}
	}
}

func TestOnlyRootAndTheOwnerDecide(t *testing.T) {
	me := os.Geteuid()
	dir := shortDir(t).Data // in /tmp, below a folder of ours
	make := func(mode os.FileMode, parts ...string) string {
		path := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := make(0o755, "good", "below")
	open := make(0o777, "open")
	below := make(0o755, "open", "below")
	if err := os.Symlink(good, filepath.Join(dir, "to-good")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("open/below", filepath.Join(dir, "to-open")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("circle", filepath.Join(dir, "circle")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		good: "", filepath.Join(good, "not", "there", "yet"): "", filepath.Join(dir, "to-good", "x"): "",
		open: "others may write", below: "others may write", filepath.Join(dir, "to-open"): "others may write", filepath.Join(dir, "circle"): "too many links",
		"/tmp": "others may write", make(0o777|os.ModeSticky, "sticky"): "others may write", make(0o755, "sticky", "ours"): "",
	} {
		err := onlyRootAnd(me, path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", strings.TrimPrefix(path, dir), err, want)
		}
	}
	if me != 0 {
		return
	}
	for _, path := range []string{good, filepath.Join(dir, "sticky", "ours")} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if err := onlyRootAnd(0, path); err == nil {
			t.Errorf("%s is uid 12345's", path)
		}
	}
	if err := onlyRootAnd(12345, good); err != nil {
		t.Errorf("uid 12345's own: %v", err)
	}
	if err := onlyRootAnd(12345, filepath.Join(dir, "sticky", "ours")); err == nil {
		t.Error("who was first in a folder of everybody's is believed")
	}
}

func TestKinIsBoundedAndCantBeForgedByAName(t *testing.T) {
	table := map[int]process{
		9: {parent: 8, exe: "/usr/bin/keylease"}, 8: {parent: 7, exe: "/opt/my agent < 1 /sbin/init"}, 7: {parent: 1, exe: "/bin/bash (deleted)"},
	}
	look := func(pid int) (process, bool) { p, ok := table[pid]; return p, ok }
	if got, want := kin(&localPeer{PID: 9}, look), `9 /usr/bin/keylease < 8 "/opt/my agent < 1 /sbin/init" < 7 /bin/bash`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := kin(&localPeer{PID: 9, lost: true}, look); got != "" {
		t.Errorf("of a process that is gone: %s", got)
	}
	endless := func(pid int) (process, bool) { return process{parent: pid + 1, exe: "/x"}, true }
	if got := kin(&localPeer{PID: 9}, endless); strings.Count(got, " < ") != maxKinHops || !strings.HasSuffix(got, kinMore) {
		t.Errorf("a long chain: %s", got)
	}
	wordy := func(pid int) (process, bool) {
		return process{parent: pid + 1, exe: "/" + strings.Repeat("\u202eé", 90)}, true
	}
	if got := kin(&localPeer{PID: 9}, wordy); len(got) > maxKinBytes || strings.ContainsRune(got, '\u202e') || !strings.HasSuffix(got, kinMore) {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

func TestAHandleOnAProcessKnowsItsEnd(t *testing.T) {
	_, p := openHouse(t)
	conn, err := connect(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := peerOf(conn.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	if peer.UID != os.Geteuid() || peer.PID != os.Getpid() || peer.gone() {
		t.Errorf("ourselves: %+v", peer)
	}
	if want, err := os.Getgroups(); err == nil && fmt.Sprint(len(want)) != fmt.Sprint(len(peer.Groups)) {
		t.Errorf("our groups are %v, the kernel says %v", want, peer.Groups)
	}
	peer.letGo()
	peer.letGo()
	if knowsLives(peer) && !peer.gone() {
		t.Error("a handle that was given back still answers")
	}
}

// A relay that was told where its daemon is waits for that one to come back, and is there again unasked: its leases are
// adopted before their grace is over.
func TestARelayWaitsForANamedDaemonToComeBack(t *testing.T) {
	p := shortDir(t)
	p.Socket = p.SocketPath()
	first := newHouse()
	stop := first.open(t, Options{Paths: p})
	s := startRelay(t, context.Background(), RelayOptions{Paths: p})
	s.open("claude-code")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	second := newHouse()
	second.open(t, Options{Paths: p})
	comesTrue(t, "the relay is back", func() bool { return len(second.callers()) == 1 })
	if a := s.ask(call1("1", "whoami", "")); a.text() != "agent claude-code declared claude-code/1.0" {
		t.Fatal(a.raw)
	}
	absent := startRelay(t, context.Background(), RelayOptions{Paths: shortDir(t)})
	start := time.Now()
	if a := absent.ask(handshake("0", "x")); a.Error == nil || time.Since(start) > 3*time.Second {
		t.Errorf("where there was never one: %s after %v", a.raw, time.Since(start))
	}
}
