// Package child runs one program with a secret in its hands. Its rule: what the program prints passes through the mask,
// and when the secret is taken back the program and all that it started in its own process group are gone within 10 s.
package child

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"keylease/internal/mask"
)

// Command is one program and what stands between it and its surroundings. All fields but Grace are needed.
type Command struct {
	Path    string   // see Find
	Argv    []string // with the program's own name
	Env     []string // all of it
	Mask    *mask.Masker
	In      *os.File // goes to the program as it is, unless it gets a terminal of its own
	Out     *os.File // when this is a terminal the program gets one of its own
	Err     *os.File
	Stop    <-chan string // gives, once, why the program is to be stopped
	Stopped func()        // is called as soon as it was told to
	Say     func(line string)
	Grace   time.Duration // between SIGTERM and SIGKILL; 0: 10 s
}

const (
	grace  = 10 * time.Second
	linger = time.Second          // how long a pipe is read that somebody else holds open after the program has exited
	reopen = 5 * time.Millisecond // until a terminal that everybody has closed is looked at again
	excess = 1 << 20              // and how much, in bytes: the most that a pipe holds
)

// Exit codes of env and of shells. A program that a signal ended has 128 and the signal's number.
const (
	Failed     = 125 // we did, not the program
	CannotRun  = 126
	NotFound   = 127
	signalBase = 128
)

var (
	// ErrNotFound: there is no such program.
	ErrNotFound = errors.New("there is no such program")
	// ErrCannotRun: it is there and can't be run.
	ErrCannotRun = errors.New("this program can't be run")
	// ErrUnsupported: this system lacks what it takes.
	ErrUnsupported = errors.New("keylease exec does not run on this system: it needs Linux or macOS")
)

// Find returns where a program is: a path, or a name that is looked up in PATH. What is in the working directory has to
// be asked for by a path. Errors: ErrNotFound, ErrCannotRun.
func Find(program string) (string, error) {
	path, err := exec.LookPath(program)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrPermission), isFolder(program):
		return "", ErrCannotRun
	}
	return "", ErrNotFound
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (c *Command) grace() time.Duration {
	if c.Grace > 0 {
		return c.Grace
	}
	return grace
}
