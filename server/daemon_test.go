//go:build linux || darwin

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestMain lets this binary be the daemon that a test starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "test-daemon" {
		os.Exit(testDaemon(os.Args[2], os.Args[3], os.Args[4]))
	}
	os.Exit(m.Run())
}

// testDaemon is a real process around serve with the fake backend. It leaves what it was started with in the folder.
func testDaemon(data, how, version string) int {
	if how == "broken" {
		fmt.Fprintln(os.Stderr, "keylease: error: the root key does not fit this store")
		fmt.Fprintln(os.Stderr, "keylease: hint: restore root.key")
		return 9
	}
	wd, _ := os.Getwd()
	_ = os.WriteFile(filepath.Join(data, fmt.Sprintf("started-%d", os.Getpid())), []byte(strings.Join(append(os.Environ(), "WD="+wd), "\n")), 0o600)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	h := newHouse()
	o := Options{Paths: Paths{Data: data}, Auto: how != "hand", Version: version, Log: zerolog.New(os.Stderr)}
	if how == "idle" {
		o.IdleStop = 300 * time.Millisecond
	}
	err := serve(ctx, o, func(_ context.Context, d *daemon) (backend, error) { return h.backend(o.Log, d.touch), nil })
	if err != nil {
		fmt.Fprintln(os.Stderr, "keylease: error:", err)
		return 8
	}
	return 0
}

func testStart(t testing.TB, p Paths, how, version string) Start {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killDaemons(p) })
	return Start{Exe: exe, Args: []string{"test-daemon", p.Data, how, version}, Env: StartEnv("/nowhere", "me")}
}

// started lists the processes that were started as this folder's daemon.
func started(p Paths) (pids []int) {
	files, _ := filepath.Glob(filepath.Join(p.Data, "started-*"))
	for _, f := range files {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(f), "started-%d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func killDaemons(p Paths) {
	for _, pid := range started(p) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestEightStartersMakeOneDaemon(t *testing.T) {
	p := shortDir(t)
	o := DialOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "auto", "1.0.0")}
	var all sync.WaitGroup
	var failed atomic.Int64
	for range 8 {
		all.Go(func() {
			s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: o.Start, Version: "1.0.0"})
			s.open("claude-code")
			if a := s.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent claude-code") {
				failed.Add(1)
			}
		})
	}
	all.Wait()
	if n := len(started(p)); n != 1 || failed.Load() != 0 {
		t.Errorf("%d daemons, %d relays failed", n, failed.Load())
	}
	if n := readLockNote(p.lock()); !n.Auto || n.PID != started(p)[0] || n.Version != "1.0.0" {
		t.Errorf("the lock says %+v", n)
	}
}

// B10: what an agent's environment and folder hold does not reach the daemon that all share.
func TestAutoStartGivesTheDaemonNothingOfOurEnvironment(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"HTTPS_PROXY", "SSL_CERT_FILE", "GODEBUG", "LD_PRELOAD", "KEYLEASE_HTTP", "KEYLEASE_ROOT_KEY", "TMPDIR", "XDG_CONFIG_HOME", "GOTRACEBACK"} {
		t.Setenv(name, "hostile")
	}
	p := shortDir(t)
	conn, err := Dial(context.Background(), DialOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "auto", "1")})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := os.ReadFile(filepath.Join(p.Data, fmt.Sprintf("started-%d", started(p)[0])))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(string(b), "\n")
	want := []string{"HOME=/nowhere", "USER=me", "LOGNAME=me", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "WD=/"}
	if !slices.Equal(got, want) {
		t.Errorf("the daemon was started with %q", got)
	}
	if proc, ok := lookProcess(started(p)[0]); ok && proc.session != started(p)[0] {
		t.Error("the daemon is in our session: it would go with our terminal")
	}
}

func TestAFailedStartTellsTheLastLineOfTheLog(t *testing.T) {
	p := shortDir(t)
	if err := ownFolder(p.Data); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.daemonLog(), []byte(strings.Repeat("old line\n", 200_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Dial(context.Background(), DialOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "broken", "1")})
	var start *StartError
	if !errors.As(err, &start) || start.Code != 9 || start.LastLine != "the root key does not fit this store; hint: restore root.key" {
		t.Fatalf("got %v", err)
	}
	if info, _ := os.Stat(p.daemonLog()); info.Size() > 1000 {
		t.Error("a log of more than 1 MiB was kept")
	}
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "broken", "1")})
	if a := s.ask(handshake("0", "x")); a.Error == nil || !strings.Contains(a.Error.Message, "the root key does not fit") {
		t.Fatal(a.raw)
	}
}

func TestACrashIsNotToldAsAStackTrace(t *testing.T) {
	log, _, err := openLog(filepath.Join(t.TempDir(), "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.WriteString("panic: boom\n\ngoroutine 1 [running]:\n\tlevels.go:119 +0x512\n"); err != nil {
		t.Fatal(err)
	}
	if got := lastLine(log, 0); got != "it crashed: see "+log.Name() {
		t.Errorf("told %q", got)
	}
}

func TestServeTakesOverFromAnAutoStartedDaemonOnly(t *testing.T) {
	p := shortDir(t)
	start := testStart(t, p, "auto", "1.0.0")
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: start, Version: "1.0.0"})
	s.open("claude-code")
	begin := time.Now()
	newHouse().open(t, Options{Paths: p, Version: "1.0.0"})
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("taking over took %v", took)
	}
	if n := readLockNote(p.lock()); n.PID != os.Getpid() {
		t.Errorf("the lock says %+v", n)
	}
	if a := s.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent claude-code") {
		t.Fatalf("the relay did not move: %s", a.raw)
	}
	err := serve(context.Background(), Options{Paths: p}, nil)
	var running *RunningError
	if !errors.As(err, &running) || running.PID != os.Getpid() {
		t.Fatalf("a second daemon by hand gave %v", err)
	}
}

func TestRelayOfANewerVersionReplacesAnAutoStartedDaemonOnce(t *testing.T) {
	p := shortDir(t)
	old := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "auto", "1.0.0"), Version: "1.0.0"})
	old.open("old")
	young := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "auto", "1.1.0"), Version: "1.1.0"})
	young.open("young")
	if a := old.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent old") {
		t.Fatal(a.raw)
	}
	if a := young.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent young") {
		t.Fatal(a.raw)
	}
}

func TestRelayOutlivesAKilledAndAnIdleDaemon(t *testing.T) {
	p := shortDir(t)
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: testStart(t, p, "idle", "1.0.0"), Version: "1.0.0"})
	s.open("claude-code")
	_ = syscall.Kill(readLockNote(p.lock()).PID, syscall.SIGKILL)
	comesTrue(t, "the relay started another daemon unasked", func() bool { return len(started(p)) == 2 })
	if a := s.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent claude-code") {
		t.Fatal(a.raw)
	}
	comesTrue(t, "the idle daemon went", func() bool { return errors.Is(checkSocket(p.SocketPath()), os.ErrNotExist) })
	time.Sleep(100 * time.Millisecond)
	if n := len(started(p)); n != 2 {
		t.Fatalf("an idle daemon was started again: %d", n)
	}
	if a := s.ask(call1("2", "whoami", "")); !strings.HasPrefix(a.text(), "agent claude-code") {
		t.Fatal(a.raw)
	}
}

func TestADaemonWithALiveLeaseOrStartedByHandDoesNotStopForIdleness(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	h.leases = 1
	h.open(t, Options{Paths: p, Auto: true, IdleStop: 50 * time.Millisecond})
	by := newHouse()
	p2 := shortDir(t)
	by.open(t, Options{Paths: p2, IdleStop: 50 * time.Millisecond})
	time.Sleep(200 * time.Millisecond)
	if checkSocket(p.SocketPath()) != nil || checkSocket(p2.SocketPath()) != nil {
		t.Error("a daemon in use stopped")
	}
	h.mu.Lock()
	h.leases = 0
	h.mu.Unlock()
	comesTrue(t, "it stops when the lease is over", func() bool { return checkSocket(p.SocketPath()) != nil })
}

func TestLongPathsMoveToAFolderOfOurOwn(t *testing.T) {
	long := strings.Repeat("/long-folder-name", 10)
	a, b := Paths{Data: long + "/a"}.SocketPath(), Paths{Data: long + "/b"}.SocketPath()
	if a == b || len(a) > MaxSocketPath || !strings.HasPrefix(a, fmt.Sprintf("/tmp/keylease-%d/", os.Geteuid())) {
		t.Errorf("got %s and %s", a, b)
	}
	p := Paths{Data: filepath.Join(t.TempDir(), strings.Repeat("x", 100))}
	h := newHouse()
	h.open(t, Options{Paths: p})
	w := dialWire(t, p, hello{As: "x"})
	if a := w.ask(call1("1", "whoami", "")); a.Error != nil {
		t.Fatal(a.raw)
	}
}

func TestServeRefusesAForeignOrOpenFolder(t *testing.T) {
	p := shortDir(t)
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(p.Data, 0o755)
	if err := serve(context.Background(), Options{Paths: p}, nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("an open folder gave %v", err)
	}
}

func TestAPortInUseIsItsOwnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = serve(context.Background(), Options{Paths: shortDir(t), HTTPAddr: l.Addr().String()}, nil)
	var port *PortError
	if !errors.As(err, &port) || port.Addr != l.Addr().String() {
		t.Errorf("got %v", err)
	}
}

func TestADaemonStopsInTimeWhoeverIsConnected(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p})
	for range 20 {
		dialWire(t, p, hello{As: "idle"})
	}
	w := dialWire(t, p, hello{As: "x"})
	w.send(call1("1", "hold", `"mark":"a"`)) // never ends
	<-h.entered
	silent, err := connect(context.Background(), p) // says no hello
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	admin, err := dialAdmin(context.Background(), DialOptions{Paths: p}) // sends no request
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	begin := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > stopTime {
		t.Errorf("stopping took %v", took)
	}
	if _, err := os.Lstat(p.SocketPath()); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is still there")
	}
}
