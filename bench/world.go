//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func yield() { runtime.Gosched() }

// build builds the binary as a release is built.
func build(to string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, "keylease/cmd/keylease")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building keylease: %w\n%s", err, out)
	}
	return nil
}

// All is on as it is in use: a rule with a limit of leases that is counted at each of them, and a limit of the
// credential's own. Only the rates are off, which would measure themselves.
const (
	thePolicy = `version: 1
limits: {leaseRate: 0, useRate: 0}
rules:
  - name: nobody else
    effect: deny
    identities: [mallory]
    credentials: ["*"]
  - name: agents
    identities: ["*"]
    credentials: ["*"]
    maxLeases: 100
`
	theConfig = "grace: 1h\nlimits: {callRate: 0, httpConnections: 2000}\n"
)

// world is a HOME with a store in it, and the shipped daemon when it runs.
type world struct {
	r    *run
	home string
	addr string // of /mcp, while the daemon serves
	pid  int
	stop func() error
	log  *output
}

func (r *run) world() (*world, error) { return r.worldOn(r.disk) }

func (r *run) worldOn(disk string) (*world, error) {
	home, err := r.folderOn(disk)
	if err != nil {
		return nil, err
	}
	w := &world{r: r, home: home}
	return w, errors.Join(w.write(filepath.Join(w.config(), "keylease.yaml"), theConfig), w.write(w.policyFile(), thePolicy))
}

func (w *world) data() string       { return filepath.Join(w.home, ".local", "share", "keylease") }
func (w *world) config() string     { return filepath.Join(w.home, ".config", "keylease") }
func (w *world) policyFile() string { return filepath.Join(w.config(), "policy.yaml") }
func (w *world) socket() string     { return filepath.Join(w.data(), "keylease.sock") }
func (w *world) env() []string {
	return []string{"HOME=" + w.home, "PATH=/usr/local/bin:/usr/bin:/bin"}
}

func (w *world) write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// cli runs one of the operator's commands. None may run while this process has a connection to the socket: keylease
// would take it for an agent's.
func (w *world) cli(args ...string) (string, error) {
	cmd := exec.CommandContext(w.r.ctx, w.r.binary, args...)
	cmd.Env, cmd.Dir = w.env(), w.home
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("keylease %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

func (w *world) cliJSON(into any, args ...string) error {
	text, err := w.cli(append(args, "--json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// seed stores credentials: each is the inside of one item of a seed file's list. A file may not be longer than 1 MiB, so
// many of them are several files.
func (w *world) seed(items ...string) error {
	path := filepath.Join(w.home, "seed.yaml")
	for part := range slices.Chunk(items, 2500) {
		if err := w.write(path, "credentials:\n  - {"+strings.Join(part, "}\n  - {")+"}\n"); err != nil {
			return err
		}
		if _, err := w.cli("seed", path); err != nil {
			return err
		}
	}
	return nil
}

// fakeKey is a credential of a usual size, with a limit of its own.
func fakeKey(name string) string {
	return fmt.Sprintf("name: %s, type: api-key, value: %q, metadata: {environment: development}, policy: {maxLeases: 1000000}", name, valueOf(name))
}

func valueOf(name string) string { return "fake-" + name + strings.Repeat("-0123456789", 4) }

func (w *world) token(name string) (string, error) {
	var out struct {
		Token string `json:"token"`
	}
	err := w.cliJSON(&out, "token", "create", "--identity", name)
	return out.Token, err
}

// output collects what a process says.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

var listens = regexp.MustCompile(`http://127\.0\.0\.1:([1-9]\d*)/mcp`)

// serve starts the daemon and waits until it says where it listens.
func (w *world) serve() error {
	cmd := exec.Command(w.r.binary, "serve", "--http", "127.0.0.1:0")
	log := &output{}
	w.log = log
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = w.env(), w.home, log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	w.pid = cmd.Process.Pid
	w.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-exited
		if cmd.ProcessState.ExitCode() != 0 {
			return fmt.Errorf("the daemon ended with %s: %s", cmd.ProcessState, tail(log.String()))
		}
		return nil
	}
	w.r.later(func() { _ = cmd.Process.Kill(); <-exited })
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		select {
		case <-exited:
			return fmt.Errorf("the daemon ended: %s", tail(log.String()))
		default:
		}
		if m := listens.FindStringSubmatch(log.String()); m != nil {
			w.addr = "127.0.0.1:" + m[1]
			return nil
		}
	}
	return fmt.Errorf("the daemon does not come up: %s", tail(log.String()))
}

func tail(s string) string { return s[max(0, len(s)-2000):] }
