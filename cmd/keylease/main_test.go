//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keylease": main, "mcpcall": mcpcall})
}

// TestScripts tells the stories in testdata/script with the real program. Each has a home, and daemons, of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // with -race, each command would otherwise take a second longer
			env.Defer(func() { stopDaemons(t, env.WorkDir) })
			return os.Mkdir(home, 0o700)
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "await": await, "take-port": takePort, "fill": fill, "keep": keep,
			"stop-daemons": func(ts *testscript.TestScript, _ bool, _ []string) { stopDaemons(t, ts.Getenv("WORK")) },
		},
	})
}

// mcpcall [-as NAME] TOOL JSON [TOOL JSON…] is an MCP client: it starts a relay and prints each tool's structured
// answer on a line. LAST in the JSON stands for the last lease_id that was seen. The tool "sh" runs a command line as
// an agent's shell would.
func mcpcall() {
	if err := mcpcalls(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mcpcall:", err)
		os.Exit(1)
	}
}

func mcpcalls(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	relay := exec.CommandContext(ctx, "keylease", "mcp")
	relay.Stderr = os.Stderr
	if len(args) > 1 && args[0] == "-as" {
		relay.Args = append(relay.Args, "--as", args[1])
		args = args[2:]
	}
	a, err := newAgent(relay)
	if err != nil {
		return err
	}
	defer a.leave()
	last := ""
	for ; len(args) > 1; args = args[2:] {
		if args[0] == "sh" {
			out, err := exec.CommandContext(ctx, "sh", "-c", args[1]).CombinedOutput()
			fmt.Printf("%s%v\n", out, err)
			continue
		}
		answer, _, err := a.call(args[0], json.RawMessage(strings.ReplaceAll(args[1], "LAST", last)))
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", answer)
		var got struct {
			LeaseID string `json:"lease_id"`
		}
		if json.Unmarshal(answer, &got) == nil && got.LeaseID != "" {
			last = got.LeaseID
		}
	}
	return nil
}

// exits CODE COMMAND… runs a command that must end with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	code, err := 0, ts.Exec(args[1], args[2:]...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

// await FILE [TEXT] waits until FILE is there and holds TEXT.
func await(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err != nil {
			continue
		}
		if len(args) == 1 || strings.Contains(ts.ReadFile(args[0]), args[1]) {
			return
		}
	}
	ts.Fatalf("%s: not in time", args)
}

// take-port listens on a free port of loopback for the rest of the script and puts its address into ADDR.
func takePort(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	ts.Setenv("ADDR", l.Addr().String())
}

// fill FILE N makes a file of N bytes.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat("x", n)), 0o600))
}

// keep VAR FIELD puts a field of the JSON object on the last stdout into a variable.
func keep(ts *testscript.TestScript, _ bool, args []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &object))
	ts.Setenv(args[0], fmt.Sprint(object[args[1]]))
}

// stopDaemons ends every daemon whose data folder is below dir, and waits until it is gone.
func stopDaemons(t *testing.T, dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "lock" && d.Type().IsRegular() {
			stopHolder(t, path)
		}
		return nil
	})
}

func stopHolder(t *testing.T, lock string) {
	f, err := os.Open(lock)
	if err != nil {
		return
	}
	defer f.Close()
	var note struct{ PID int }
	_ = json.NewDecoder(f).Decode(&note)
	for i := range 1000 {
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			return // nobody holds it
		}
		if note.PID > 1 && i == 0 {
			_ = syscall.Kill(note.PID, syscall.SIGTERM)
		}
		if note.PID > 1 && i == 500 {
			_ = syscall.Kill(note.PID, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the daemon of %s (process %d) did not stop", lock, note.PID)
}
