//go:build linux

package promises

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is a person's: a shell's, or a program's that leads its session.
type terminal struct {
	w      *world
	screen *buffer
	keys   *os.File
	cmd    *exec.Cmd
	ended  chan struct{}
}

// atTerminal runs a program in a terminal of its own.
func (w *world) atTerminal(argv ...string) *terminal {
	w.t.Helper()
	keys, tty, err := pty.Open()
	w.must(err)
	w.must(pty.Setsize(keys, &pty.Winsize{Rows: 33, Cols: 101}))
	t := &terminal{w: w, screen: &buffer{}, keys: keys, cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	t.cmd.Env, t.cmd.Dir = w.env("TERM=xterm", "PS1=shell> "), w.home
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = tty, tty, tty
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	w.must(t.cmd.Start())
	go func() { _, _ = io.Copy(t.screen, keys) }() // ends with keys
	go func() { _ = t.cmd.Wait(); close(t.ended) }()
	w.t.Cleanup(func() {
		_ = t.cmd.Process.Kill()
		<-t.ended
		_ = tty.Close()
		_ = keys.Close()
	})
	return t
}

func (t *terminal) types(keys string) {
	t.w.t.Helper()
	_, err := io.WriteString(t.keys, keys)
	t.w.must(err)
}

func (t *terminal) shows(text string) {
	t.w.t.Helper()
	t.w.eventually("the terminal shows "+text, func() error {
		if !strings.Contains(t.screen.String(), text) {
			return errors.New(tail(t.screen.String(), 1000))
		}
		return nil
	})
}

// cooked reports whether the terminal echoes and edits lines.
func (t *terminal) cooked() bool {
	modes, err := unix.IoctlGetTermios(int(t.keys.Fd()), unix.TCGETS)
	t.w.must(err)
	return modes.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == unix.ICANON|unix.ECHO|unix.ISIG
}

// TestExecInATerminal: the command has a terminal of the same size, follows its changes, is interrupted once by its key,
// is masked on it, and leaves the person's terminal as it was, also when keylease exec is ended by a signal or the lease.
func TestExecInATerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	tty := w.atTerminal("/bin/sh", "-c", `"$0" exec --credential db -- sh -c '
		n=0; trap "n=\$((n+1))" INT; trap "stty size" WINCH
		test -t 0 && test -t 1 && test -t 2 && echo all three; stty size; printenv DB; printenv DB > /dev/tty
		echo "ready"; i=0; while [ $n = 0 ]; do sleep 0.02; done; sleep 0.1; echo interrupted $n
		stty -echo; printf "password: "; read x; stty echo; echo "and got $x"; exit 6'; echo code $?; read y; echo "then $y"`, w.bin)
	tty.shows("ready\r\n")
	for _, want := range []string{"all three\r\n33 101\r\n[secret]\r\n[secret]\r\n"} {
		tty.shows(want)
	}
	w.must(pty.Setsize(tty.keys, &pty.Winsize{Rows: 44, Cols: 55}))
	tty.shows("44 55")
	if tty.cooked() {
		t.Error("the keys are not the command's")
	}
	tty.types("\x03")
	tty.shows("interrupted 1\r\n")
	tty.shows("password: ")
	tty.types("typed\r")
	tty.shows("and got typed\r\ncode 6")
	tty.types("more\r")
	tty.shows("then more")
	<-tty.ended
	if screen := tty.screen.String(); strings.Count(screen, "typed") != 1 || strings.Contains(screen, valueOf("db")) {
		t.Errorf("%q", screen)
	}
	for name, end := range map[string]func(pid int){
		"SIGTERM":   func(pid int) { w.must(syscall.Kill(pid, syscall.SIGTERM)) },
		"its lease": func(int) { w.ok("revoke-leases", "--all") },
	} {
		tty := w.atTerminal("/bin/sh", "-c", `"$0" exec --credential db -- sh -c "echo ready; exec sleep 60"; echo code $?; sleep 60`, w.bin)
		tty.shows("ready")
		if tty.cooked() {
			t.Error(name + ": the keys are not the command's")
		}
		end(w.processes("exec")[0])
		tty.shows("code 143")
		if !tty.cooked() {
			t.Errorf("%s: the terminal was left as it was for the command", name)
		}
	}
}

// TestExecBesideATerminal: with stdout elsewhere the command reads the person's own terminal, and a shell's job control
// holds: suspended with its key, it goes on in front.
func TestExecBesideATerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip("needs bash")
	}
	out := filepath.Join(w.home, "out")
	tty := w.atTerminal("/bin/bash", "--norc", "--noediting", "-i")
	tty.shows("shell> ")
	tty.types(w.bin + ` exec --credential db -- sh -c 'echo ready >&2; read x; echo "got $x" >&2; printenv DB; echo waiting >&2; read y; echo "got $y too" >&2; exit 3' > ` + out + "; echo code $?\n")
	tty.shows("ready\r\n")
	tty.types("one\n")
	tty.shows("got one\r\n")
	tty.shows("waiting\r\n") // a shell that is just starting a program can't be stopped: vfork
	tty.types("\x1a")
	tty.shows("Stopped")
	tty.shows("code 147\r\nshell> ") // 128 and SIGSTOP
	tty.types("fg\n")
	tty.shows("shell> fg\r\n" + w.bin)
	tty.types("two\n")
	tty.shows("got two too\r\n")
	tty.types("echo code $?\n")
	tty.shows("code 3\r\n")
	if text, _ := os.ReadFile(out); string(text) != "[secret]\n" {
		t.Errorf("%q", text)
	}
	tty.types(w.bin + ` exec --credential db -- sh -c 'echo again; exec sleep 60' | cat` + "\n")
	tty.shows("again\r\n")
	tty.types("\x03")
	tty.types("echo code ${PIPESTATUS[0]}\n")
	tty.shows("code 130\r\n")
	tty.types("exit\n")
	<-tty.ended
}
