//go:build linux || darwin

package child

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// raw hands our terminal's keys to the program's, where we are in front of it: its own line discipline makes signals of
// them, once.
func (r *run) raw() {
	if !r.typed || r.cooked != nil || !inFront(r.In) {
		return
	}
	if was, err := term.MakeRaw(int(r.In.Fd())); err == nil {
		r.cooked = was
	}
	r.typing.Do(func() { go r.pass() })
}

// pass copies what is typed. It ends with this process: nothing else ends a read of a terminal.
func (r *run) pass() {
	buf := make([]byte, 4096)
	for {
		n, err := r.In.Read(buf)
		if _, gone := r.pty.Write(buf[:n]); gone != nil || err != nil {
			return
		}
	}
}

// restore gives our terminal back as it was.
func (r *run) restore() {
	if r.lent != nil {
		_ = putInFront(r.lent, syscall.Getpgrp())
		_ = r.lent.Close()
		r.lent = nil
	}
	if r.cooked != nil {
		if inFront(r.In) {
			_ = term.Restore(int(r.In.Fd()), r.cooked)
		}
		r.cooked = nil
	}
}

// putInFront moves a process group in front of a terminal. The kernel would stop us for that while another is; the program,
// which runs already, keeps what SIGTTOU does.
func putInFront(tty *os.File, group int) error {
	signal.Ignore(syscall.SIGTTOU)
	return unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group)
}

// halted is for a program that was stopped. One that wants to read our terminal, or set it, is let in front of it; one
// that was suspended suspends us.
func (r *run) halted(by syscall.Signal) {
	switch by {
	case syscall.SIGTTIN, syscall.SIGTTOU:
		if !r.lend() {
			r.pause()
		}
		r.signal(syscall.SIGCONT)
	case syscall.SIGTSTP:
		r.pause()
		r.signal(syscall.SIGCONT)
	}
}

// lend puts the program's group in front of our terminal, if we are.
func (r *run) lend() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	if !inFront(tty) {
		_ = tty.Close()
		return false
	}
	if putInFront(tty, r.pid) != nil {
		_ = tty.Close()
		return false
	}
	r.lent = tty
	return true
}

// pause stops us, as the shell that we were started by expects, and returns when we are continued.
func (r *run) pause() {
	lent := r.lent != nil
	r.restore()
	who := os.Getpid()
	if lent {
		who = 0 // our group: the suspend key was for all of the shell's job, and reached the program alone
	}
	_ = syscall.Kill(who, syscall.SIGSTOP) // Go gives SIGTSTP no way back to what it does by itself
	for s := range r.signals {             // a thread may run on for a moment: were we to go on now, so would the program
		if s == syscall.SIGCONT {
			break
		}
		if s != syscall.SIGTSTP {
			r.forward(s.(syscall.Signal))
		}
	}
	r.raw()
	if lent {
		r.lend()
	}
}

// front is the process group in front of the program's own terminal; 0: it has none.
func (r *run) front() int {
	if r.pty == nil {
		return 0
	}
	group := 0
	if raw, err := r.pty.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	}
	return group
}

// inFront reports whether we are in front of this terminal: in its foreground process group.
func inFront(tty *os.File) bool {
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

func (r *run) resize() {
	if r.pty == nil {
		return
	}
	if size, err := pty.GetsizeFull(r.Out); err == nil {
		_ = pty.Setsize(r.pty, size)
	}
}
