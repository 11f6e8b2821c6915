//go:build linux

package promises

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// built is the binary under test. TestMain sets it before any test runs: it builds it, or takes the one that
// KEYLEASE_TEST_BINARY names (e2e/remedies has many to try).
var built string

func TestMain(m *testing.M) {
	if os.Getenv(strangerEnv) != "" {
		os.Exit(stranger())
	}
	if os.Getenv(crowdEnv) != "" {
		os.Exit(floodSocket())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp(ground(), "klbin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "keylease")
		if ready := os.Getenv("KEYLEASE_TEST_BINARY"); ready != "" {
			built = ready
		} else if err := build(built); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// ground is where homes are made: in memory where there is enough of it. To a process that is killed that is as good a
// disk as any, and on a busy machine it is one that syncs in time. (The power cut is the store's own test.)
func ground() string {
	const shm, noexec = "/dev/shm", 0x8
	var fs syscall.Statfs_t
	if syscall.Statfs(shm, &fs) != nil || fs.Flags&noexec != 0 || fs.Bavail*uint64(fs.Bsize) < 2<<30 {
		return os.TempDir()
	}
	return shm
}

// build builds it without a version from git, so that it calls itself the same everywhere.
func build(to string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", to, "keylease/cmd/keylease")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building keylease: %w\n%s", err, out)
	}
	return nil
}

// patience is how long anything may take that normally takes milliseconds: the machine may be busy. Where tests are
// meant to fail (e2e/remedies), KEYLEASE_TEST_PATIENCE shortens it.
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("KEYLEASE_TEST_PATIENCE")); err == nil {
		return d
	}
	return 20 * time.Second
}()

// world is one user's machine: a HOME of its own, and a link to the binary in it, by which its processes are known.
type world struct {
	t     testing.TB
	home  string
	bin   string
	under []string // the program, with its arguments, that becomes the daemon; nil: the daemon is started by itself
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, ground())
}

// newWorldOn makes one on a certain disk: where syncing takes its time there is a moment between deciding and knowing.
func newWorldOn(t testing.TB, disk string) *world {
	t.Helper()
	home, err := os.MkdirTemp(disk, "kl") // short: a socket's path has 100 bytes
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, home: home, bin: filepath.Join(home, "bin", "keylease")}
	t.Cleanup(func() {
		w.endAll()
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(w.data(), "daemon.log")); err == nil && len(log) > 0 {
				t.Logf("daemon.log:\n%s", tail(string(log), 4000))
			}
		}
		_ = os.RemoveAll(home)
	})
	w.must(os.Mkdir(filepath.Dir(w.bin), 0o700))
	if os.Link(built, w.bin) != nil { // another disk
		data, err := os.ReadFile(built)
		w.must(err)
		w.must(writeProgram(w.bin, data))
	}
	return w
}

// writeProgram writes a file that can be run at once. A test beside it that starts a process meanwhile would hand the
// open file on to its child until that has become another program, and running ours would be "text file busy"
// (go.dev/issue/22315): so nobody forks as long as it is open.
func writeProgram(path string, data []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, 0o700)
}

func (w *world) data() string   { return filepath.Join(w.home, ".local", "share", "keylease") }
func (w *world) config() string { return filepath.Join(w.home, ".config", "keylease") }
func (w *world) socket() string { return filepath.Join(w.data(), "keylease.sock") }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// env is all that a process here gets of an environment, and then more.
func (w *world) env(more ...string) []string {
	return append([]string{"HOME=" + w.home, "PATH=/usr/local/bin:/usr/bin:/bin"}, more...)
}

// write puts a file of the user's there, whole: keylease never sees half of it.
func (w *world) write(path, text string) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(path), 0o700))
	w.must(os.WriteFile(path+".new", []byte(text), 0o600))
	w.must(os.Rename(path+".new", path))
}

func (w *world) configure(yaml string) { w.write(filepath.Join(w.config(), "keylease.yaml"), yaml) }
func (w *world) policy(yaml string)    { w.write(w.policyFile(), yaml) }
func (w *world) policyFile() string    { return filepath.Join(w.config(), "policy.yaml") }

// openPolicy lets everybody lease everything at any rate.
const openPolicy = `version: 1
limits: {leaseRate: 0}
rules:
  - name: everybody
    identities: ["*"]
    credentials: ["*"]
`

// outcome is how a command ended.
type outcome struct {
	out, err string
	code     int
}

func (o outcome) String() string { return fmt.Sprintf("exit %d\n%s%s", o.code, o.out, o.err) }

// cli runs keylease as the user would in a terminal.
func (w *world) cli(args ...string) outcome { return w.cliIn("", args...) }

func (w *world) cliIn(stdin string, args ...string) outcome {
	w.t.Helper()
	return w.run(exec.Command(w.bin, args...), stdin)
}

func (w *world) run(cmd *exec.Cmd, stdin string) outcome {
	w.t.Helper()
	var out, err bytes.Buffer
	if cmd.Env == nil {
		cmd.Env = w.env()
	}
	if cmd.Dir == "" {
		cmd.Dir = w.home
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &err
	w.must(cmd.Start())
	hung := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer hung.Stop()
	_ = cmd.Wait() // its code is what counts
	return outcome{out.String(), err.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that has to succeed and returns what it printed.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	o := w.cli(args...)
	if o.code != 0 {
		w.t.Fatalf("keylease %s: %s", strings.Join(args, " "), o)
	}
	return o.out
}

// refused runs a command that has to end with this code, and returns it.
func (w *world) refused(code int, args ...string) outcome {
	w.t.Helper()
	o := w.cli(args...)
	if o.code != code {
		w.t.Fatalf("keylease %s: want exit %d, got %s", strings.Join(args, " "), code, o)
	}
	return o
}

func (w *world) json(into any, args ...string) {
	w.t.Helper()
	text := w.ok(append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), into); err != nil {
		w.t.Fatalf("keylease %s --json: %v in %s", strings.Join(args, " "), err, tail(text, 500))
	}
}

// seed stores credentials: each is the inside of one item of a seed file's list.
func (w *world) seed(items ...string) {
	w.t.Helper()
	w.ok("seed", w.seedFile(items...))
}

func (w *world) seedFile(items ...string) string {
	path := filepath.Join(w.home, "seed.yaml")
	w.write(path, "credentials:\n  - {"+strings.Join(items, "}\n  - {")+"}\n")
	return path
}

// secretOf is a generic secret that says whose it is; more is further fields of the item.
func secretOf(name, more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("name: %s, type: generic-secret, value: %s%s", name, valueOf(name), more)
}

func valueOf(name string) string { return "fake-value-of-" + name }

// served is a daemon that the user started by hand.
type served struct {
	*exec.Cmd
	addr   string // host:port
	log    *buffer
	exited chan struct{}
}

var listening = regexp.MustCompile(`(?:127\.0\.0\.1|0\.0\.0\.0|\[::\]):([1-9]\d*)`)

// serve starts a daemon and waits until it answers. HTTP gets a port of the kernel's choice unless args say otherwise.
func (w *world) serve(args ...string) *served {
	w.t.Helper()
	if !slices.Contains(args, "--http") {
		args = append(args, "--http", "127.0.0.1:0")
	}
	argv := slices.Concat(w.under, []string{w.bin, "serve"}, args)
	s := &served{Cmd: exec.Command(argv[0], argv[1:]...), log: &buffer{}, exited: make(chan struct{})}
	s.Env, s.Dir, s.Stdout, s.Stderr = w.env(), w.home, s.log, s.log
	w.must(s.Start())
	go func() { _ = s.Wait(); close(s.exited) }()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("serve (pid %d):\n%s", s.Process.Pid, tail(s.log.String(), 4000))
		}
	})
	w.eventually("serve is up", func() error {
		select {
		case <-s.exited:
			w.t.Fatalf("serve ended: %s", s.log)
		default:
		}
		if w.holder() != s.Process.Pid || !w.answers() {
			return errors.New(s.log.String())
		}
		if m := listening.FindString(s.log.String()); m != "" {
			s.addr = "127.0.0.1" + m[strings.LastIndexByte(m, ':'):]
		} else if !slices.Contains(args, "off") {
			return errors.New("no address: " + s.log.String())
		}
		return nil
	})
	return s
}

// kill ends the daemon without a word.
func (s *served) kill() { _ = s.Process.Kill(); <-s.exited }

// stop ends it as a service manager does, and returns its exit code.
func (s *served) stop() int {
	_ = s.Process.Signal(syscall.SIGTERM)
	<-s.exited
	return s.ProcessState.ExitCode()
}

// eventually waits until check is content.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	w.t.Fatalf("never came true: %s: %v", what, err)
}

// buffer collects output of a process while others read it.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// together runs do for 0..n-1 at once and fails the test with the first error.
func together(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	start, errs := make(chan struct{}), make(chan error, n)
	for i := range n {
		all.Go(func() {
			<-start
			if err := do(i); err != nil {
				errs <- err
			}
		})
	}
	close(start)
	all.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
}

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}
