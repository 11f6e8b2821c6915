//go:build linux || darwin

package child

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"keylease/internal/mask"
)

const fake = "fake-value-0123456789"

// trial is a command with pipes for a terminal's three.
type trial struct {
	Command
	out  *os.File // what it prints
	stop chan string
	said chan string
}

func try(t testing.TB, script string) *trial {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &trial{out: read, stop: make(chan string, 1), said: make(chan string, 10)}
	t.Cleanup(func() { _, _, _ = in.Close(), read.Close(), write.Close() })
	c.Command = Command{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: append(os.Environ(), "KEY="+fake), Mask: mask.New([]byte(fake)),
		In: in, Out: write, Err: write, Stop: c.stop, Stopped: func() { c.said <- "stopped" }, Say: func(line string) { c.said <- line }}
	return c
}

// run runs it and returns what it printed.
func (c *trial) run(t testing.TB) (string, int) {
	t.Helper()
	all := make(chan string)
	go func() {
		text, _ := io.ReadAll(c.out)
		all <- string(text)
	}()
	code, err := c.Run()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Out.Close()
	return <-all, code
}

// TestWhatIsSaidOnOneFileKeepsItsOrder: stdout and stderr that are one file here are one for the command.
func TestWhatIsSaidOnOneFileKeepsItsOrder(t *testing.T) {
	t.Parallel()
	want := ""
	for i := range 50 {
		want += fmt.Sprintf("out %d\nerr %d\n", i, i)
	}
	out, code := try(t, `i=0; while [ $i -lt 50 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done; echo "$KEY"`).run(t)
	if code != 0 || out != want+"[secret]\n" {
		t.Errorf("%d: %q", code, out)
	}
}

// TestWhatDoesNotHeedIsKilledWithItsGroup: SIGTERM, a while, SIGKILL; a process that the command left behind in its group
// is not forgotten, whether or not the command itself heeds.
func TestWhatDoesNotHeedIsKilledWithItsGroup(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{
		`trap '' TERM; sleep 60 & echo $!; while :; do sleep 0.05; done`:                     128 + 9,
		`(trap '' TERM; exec sleep 60) & p=$!; trap 'exit 7' TERM; echo $p; sleep 60 & wait`: 7,
	} {
		c := try(t, script)
		c.Grace = time.Second
		line := make([]byte, 20)
		go func() {
			n, _ := c.out.Read(line)
			line = line[:n]
			time.Sleep(50 * time.Millisecond) // for the trap
			c.stop <- "over"
		}()
		began := time.Now()
		ended := make(chan int, 1)
		go func() { code, _ := c.Run(); ended <- code }()
		select {
		case code := <-ended:
			if code != want || time.Since(began) < c.Grace {
				t.Errorf("%s: %d after %s", script, code, time.Since(began))
			}
		case <-time.After(15 * time.Second):
			t.Fatalf("%s: it lives", script)
		}
		if a, b := <-c.said, <-c.said; a != "stopped" || b != "over" {
			t.Errorf("said %q, %q", a, b)
		}
		left, _ := strconv.Atoi(strings.TrimSpace(string(line)))
		for i := 0; alive(left); i++ {
			if i > 500 {
				t.Fatalf("%s: process %d is left", script, left)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// alive reports whether there is such a process that has not ended.
func alive(pid int) bool {
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		_, state, _ := strings.Cut(string(stat), ") ")
		return !strings.HasPrefix(state, "Z")
	}
	return syscall.Kill(pid, 0) == nil
}

// TestNobodyWhoStoppedReadingKeepsAStoppedCommand: its output has nowhere to go, and neither has the word of why.
func TestNobodyWhoStoppedReadingKeepsAStoppedCommand(t *testing.T) {
	t.Parallel()
	c := try(t, `yes`)
	c.Say = func(line string) { _, _ = c.Err.WriteString(line) }
	go func() { time.Sleep(200 * time.Millisecond); c.stop <- strings.Repeat("over", 1<<16) }()
	ended := make(chan int)
	go func() { code, _ := c.Run(); ended <- code }()
	select {
	case code := <-ended:
		if code != 128+15 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}

// TestASlowReaderGetsAllOfIt: a command that has ended is not cut off because what it printed is still on its way.
func TestASlowReaderGetsAllOfIt(t *testing.T) {
	t.Parallel()
	const n = 700_000
	c := try(t, fmt.Sprintf(`head -c %d /dev/zero | tr '\0' x`, n))
	var all bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 100_000)
		for {
			time.Sleep(150 * time.Millisecond)
			k, err := c.out.Read(buf)
			all.Write(buf[:k])
			if err != nil {
				return
			}
		}
	}()
	if code, err := c.Run(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	_ = c.Out.Close()
	if <-read; all.Len() != n {
		t.Errorf("%d of %d bytes came", all.Len(), n)
	}
}

func TestFindTellsWhatIsNotThereFromWhatCannotRun(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	for program, want := range map[string]error{"sh": nil, "/bin/sh": nil, "no-such": ErrNotFound, plain: ErrCannotRun, dir: ErrCannotRun, dir + "/no": ErrNotFound, "": ErrNotFound} {
		if _, err := Find(program); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", program, err, want)
		}
	}
}

// BenchmarkOutput is what a command's output costs on its way, against a pipe into cat: see docs/exec.md.
func BenchmarkOutput(b *testing.B) {
	const size = 256 << 20
	for name, script := range map[string]string{"masked": "head -c %d /dev/zero", "cat": "head -c %d /dev/zero | cat"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				c := try(b, fmt.Sprintf(script, size))
				null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
				if err != nil {
					b.Fatal(err)
				}
				c.Out, c.Err = null, null
				if name == "cat" {
					c.Argv[2] = "(" + c.Argv[2] + ") > /dev/null"
				}
				if code, err := c.Run(); code != 0 || err != nil {
					b.Fatal(code, err)
				}
				_ = null.Close()
			}
		})
	}
}
