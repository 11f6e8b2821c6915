package child

import (
	"errors"
	"os"
	"syscall"
)

// attributes: a process group of its own or, with a terminal, a session. macOS can't have it die with us.
func (r *run) attributes() *syscall.SysProcAttr {
	if r.pty != nil {
		return &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}

func widen(*os.File) {}

func inMemory(string) error { return errors.New("macOS has no file system in memory") }
