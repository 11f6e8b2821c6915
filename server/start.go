package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Start is how the daemon is started by whoever finds none. Everything in it is fixed by the program, nothing by the
// folder or the environment that an agent was started in: all agents share this daemon.
type Start struct {
	Exe  string   // the program, as resolved when this process started
	Args []string // its arguments: serve --auto …
	Env  []string // its whole environment: see StartEnv
}

// StartEnv is the environment of a daemon that a relay or a command starts. extra is for what only cmd can decide
// about (the root key, where the store says that it comes from the environment).
func StartEnv(home, user string, extra ...string) []string {
	return append([]string{
		"HOME=" + home,
		"USER=" + user,
		"LOGNAME=" + user,
		"PATH=/usr/local/bin:/usr/bin:/bin",
		"LANG=C.UTF-8",
	}, extra...)
}

const (
	startTime  = 20 * time.Second // for a daemon to come up: a slow disk took over 10 s to open the store
	lockTime   = 22 * time.Second // for another one's start to end
	dialTime   = 2 * time.Second
	maxLogSize = 1 << 20 // beyond it the daemon's log starts anew
)

// DialOptions is how to find the daemon.
type DialOptions struct {
	Paths     Paths
	Version   string
	AutoStart bool // start it where none runs
	Start     Start
}

// Dial connects to the daemon and checks, before a byte is sent, that the folder, the socket and the process behind
// it are ours. Errors: ErrUntrusted, ErrNotOpen, ErrUnreachable, *StartError.
func Dial(ctx context.Context, o DialOptions) (net.Conn, error) {
	if !supported {
		return nil, ErrUnsupported
	}
	conn, err := connect(ctx, o.Paths)
	if !errors.Is(err, ErrUnreachable) || !o.AutoStart {
		return conn, err
	}
	if err := ownFolder(o.Paths.Data); err != nil {
		return nil, err
	}
	lock, err := takeLock(o.Paths.startLock(), lockTime)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if conn, err := connect(ctx, o.Paths); !errors.Is(err, ErrUnreachable) {
		return conn, err // somebody started it while we waited
	}
	return o.start(ctx)
}

func unreachable(path string) error { return fmt.Errorf("%w at %s", ErrUnreachable, path) }

func notOpen(path string) error {
	return fmt.Errorf("%w to uid %d: %s", ErrNotOpen, os.Geteuid(), path)
}

// connect tries once. Where nothing listens the error is ErrUnreachable, where we may not enter ErrNotOpen.
func connect(ctx context.Context, p Paths) (net.Conn, error) {
	path := p.SocketPath()
	owner, err := socketOwner(path, p.Socket != "")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, unreachable(path)
	case errors.Is(err, fs.ErrPermission):
		return nil, notOpen(path)
	case err != nil:
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTime}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
			return nil, unreachable(path) // a socket that a killed daemon left
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, notOpen(path)
		}
		return nil, fmt.Errorf("connecting to the daemon: %w", err)
	}
	if err := checkPeer(conn, owner); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// start runs the daemon and waits until it answers. The caller holds the start lock, so there is one at a time; the
// daemon itself waits for one that is just leaving.
func (o DialOptions) start(ctx context.Context) (net.Conn, error) {
	log, from, err := openLog(o.Paths.daemonLog())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := &exec.Cmd{Path: o.Start.Exe, Args: append([]string{o.Start.Exe}, o.Start.Args...), Env: o.Start.Env,
		Dir: "/", Stdout: log, Stderr: log, SysProcAttr: detached()}
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would mean ours
	}
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	exited := make(chan int, 1)
	go func() { _ = cmd.Wait(); exited <- cmd.ProcessState.ExitCode() }() // lives as long as the daemon or we do
	deadline := time.NewTimer(startTime)
	defer deadline.Stop()
	for pause := 2 * time.Millisecond; ; pause = min(pause*3/2, 50*time.Millisecond) {
		conn, err := connect(ctx, o.Paths)
		if !errors.Is(err, ErrUnreachable) {
			return conn, err
		}
		select {
		case code := <-exited:
			if conn, err := connect(ctx, o.Paths); err == nil {
				return conn, nil // it gave way to one that a person started
			}
			return nil, &StartError{code, lastLine(log, from)}
		case <-deadline.C:
			return nil, &StartError{-1, lastLine(log, from)}
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// openLog opens the daemon's log for appending and says where the new lines begin.
func openLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|noFollow, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the daemon's log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() > maxLogSize {
		err = f.Truncate(0)
		return f, 0, err
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("opening the daemon's log: %w", err)
	}
	return f, info.Size(), nil
}

// lastLine is what the daemon said last since from: its error and the hint that goes with it, where it ended with one.
func lastLine(log *os.File, from int64) string {
	last, failure, hint := "", "", ""
	lines := bufio.NewScanner(io.NewSectionReader(log, from, maxLogSize))
	for lines.Scan() {
		line := strings.TrimSpace(cleanText(lines.Text(), 500))
		switch {
		case strings.HasPrefix(line, "keylease: error: "):
			failure, hint = line, ""
		case strings.HasPrefix(line, "keylease: hint: "):
			hint = "; " + strings.TrimPrefix(line, "keylease: ")
		case strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: "):
			return "it crashed: see " + log.Name()
		case line != "":
			last = line
		}
	}
	if failure != "" {
		return strings.TrimPrefix(failure, "keylease: error: ") + hint
	}
	return last
}

// dialAdmin opens a connection that speaks HTTP to the admin API. A daemon that is just going may take the connection
// and end it; nothing was asked of it yet, so the next one is asked.
func dialAdmin(ctx context.Context, o DialOptions) (net.Conn, error) {
	conn, err := helloAdmin(ctx, o)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		if conn, err = helloAdmin(ctx, o); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
	}
	return conn, err
}

func helloAdmin(ctx context.Context, o DialOptions) (net.Conn, error) {
	conn, err := Dial(ctx, o)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	if _, err := sayHello(conn, r, hello{Kind: kindAdmin, Version: o.Version}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return readConn{conn, r}, nil
}

// askHandover asks an auto-started daemon to stop and waits until its connection ends.
func askHandover(ctx context.Context, p Paths, version string) error {
	conn, err := connect(ctx, p)
	if errors.Is(err, ErrUnreachable) {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := sayHello(conn, bufio.NewReader(conn), hello{Kind: kindHandover, Version: version}); err != nil {
		return fmt.Errorf("asking the running daemon to hand over: %w", err)
	}
	return nil
}

// holdData takes the lock of the data folder for this daemon's life, from a daemon that a relay started if need be.
func holdData(ctx context.Context, o Options) (*os.File, error) {
	wait := 200 * time.Millisecond // longer than anybody holds it without being a daemon
	if o.Auto {
		wait = takeoverTime // the one that is leaving, whose socket is gone already
	}
	lock, err := takeLock(o.Paths.lock(), wait)
	if !errors.Is(err, errHeld) {
		return lock, err
	}
	if o.Auto || o.inProcess {
		return nil, runningOn(o.Paths)
	}
	starting, err := takeLock(o.Paths.startLock(), lockTime) // or a relay would start another one in between
	if err != nil {
		return nil, err
	}
	defer starting.Close()
	// Asked again and again: who holds the lock may have taken it only now, from one that died, and not be listening
	// or have signed yet.
	for deadline := time.Now().Add(takeoverTime); ; {
		if running := runningOn(o.Paths); !running.Auto && alive(running.PID) || time.Now().After(deadline) {
			return nil, running
		}
		if err := askHandover(ctx, o.Paths, o.Version); err != nil && time.Now().After(deadline) {
			return nil, errors.Join(runningOn(o.Paths), err)
		}
		if lock, err := takeLock(o.Paths.lock(), 200*time.Millisecond); !errors.Is(err, errHeld) {
			return lock, err
		}
	}
}

// runningOn is who signed the lock last.
func runningOn(p Paths) *RunningError {
	note := readLockNote(p.lock())
	return &RunningError{note.PID, note.Auto, note.Version}
}

// Standalone is a daemon and one client in this process: it ends when the client does. Where a daemon has the data
// folder already the error is *RunningError.
func Standalone(ctx context.Context, o Options, r RelayOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.inProcess, o.Auto, r.AutoStart = true, false, false
	up := make(chan struct{})
	ready := o.Ready
	o.Ready = func(l Listening) {
		if ready != nil {
			ready(l)
		}
		close(up)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, o) }()
	select {
	case err := <-served:
		return err
	case <-up:
	}
	err := Relay(ctx, r)
	cancel()
	return errors.Join(err, <-served)
}
