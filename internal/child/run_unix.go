//go:build linux || darwin

package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// run is a program that runs.
type run struct {
	*Command
	wires
	pid     int // and its process group's number
	signals chan os.Signal
	told    bool // to stop
}

// change is what the kernel tells of a program: it has stopped for a while, or ended.
type change struct {
	status syscall.WaitStatus
	err    error
}

// Run runs the program until it ends and returns its exit code. Errors are ours, before it ran: ErrNotFound,
// ErrCannotRun, others.
//
// The program has a process group of its own, so that it can be stopped with all it started; signals that come to us are
// passed on to it. When the program exits its output is read to the end, but a process that it left behind, and that holds
// the output open, is waited for no longer than a second.
func (c *Command) Run() (code int, err error) {
	r := &run{Command: c, signals: make(chan os.Signal, 64)}
	if err := r.lay(); err != nil {
		return Failed, err
	}
	r.catch()
	defer signal.Stop(r.signals)
	changes, err := r.start()
	if err != nil {
		r.cutWires()
		return codeOf(err), err
	}
	r.open()
	defer r.restore()
	status, err := r.attend(changes)
	r.drain()
	if err != nil {
		return Failed, err
	}
	return r.code(status), nil
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return NotFound
	case errors.Is(err, ErrCannotRun):
		return CannotRun
	}
	return Failed
}

// code of a program that was stopped is never 0, whatever it made of the SIGTERM: it did not come to its own end.
func (r *run) code(status syscall.WaitStatus) int {
	code := status.ExitStatus()
	if status.Signaled() {
		code = signalBase + int(status.Signal())
	}
	if r.told && code == 0 {
		code = signalBase + int(syscall.SIGTERM)
	}
	return code
}

// start starts the program from a thread that lives as long as it does: the kernel kills it when that thread ends
// (PR_SET_PDEATHSIG, on Linux), and so when we are killed.
func (r *run) start() (<-chan change, error) {
	changes, started := make(chan change), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		pid, err := r.fork()
		r.pid = pid
		started <- err
		if err != nil {
			return
		}
		for {
			var c change
			_, c.err = syscall.Wait4(pid, &c.status, syscall.WUNTRACED, nil)
			if errors.Is(c.err, syscall.EINTR) {
				continue
			}
			changes <- c
			if !c.status.Stopped() {
				return
			}
		}
	}()
	return changes, <-started
}

func (r *run) fork() (int, error) {
	attr := &syscall.ProcAttr{Env: r.Env, Files: r.files(), Sys: r.attributes()}
	pid, err := syscall.ForkExec(r.Path, r.Argv, attr)
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, which shells run all the same
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"sh", r.Path}, r.Argv[1:]...), attr)
	}
	switch {
	case err == nil:
		return pid, nil
	case errors.Is(err, fs.ErrNotExist) && !exists(r.Path):
		return 0, fmt.Errorf("%w: %s", ErrNotFound, r.Path)
	}
	return 0, fmt.Errorf("%w: %s: %w", ErrCannotRun, r.Path, err)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// attend stays with the program until it has ended and, where it was told to, its whole group.
func (r *run) attend(changes <-chan change) (syscall.WaitStatus, error) {
	var kill <-chan time.Time
	var said chan struct{}
	for {
		select {
		case s := <-r.signals:
			r.forward(s.(syscall.Signal))
		case why := <-r.Stop:
			r.told = true
			r.signal(syscall.SIGTERM)
			r.signal(syscall.SIGCONT) // what is stopped hears nothing
			r.Stopped()
			said = make(chan struct{})
			go func() { r.Say(why); close(said) }() // who reads our stderr may have stopped to
			kill = time.After(r.grace())
		case <-kill:
			r.signal(syscall.SIGKILL)
		case c := <-changes:
			if c.err == nil && c.status.Stopped() {
				r.halted(c.status.StopSignal())
				continue
			}
			if r.told {
				r.clear(kill)
				wait(said)
			}
			return c.status, c.err
		}
	}
}

// clear waits until the rest of the group is gone too.
func (r *run) clear(kill <-chan time.Time) {
	for r.signal(0) {
		select {
		case <-kill:
			r.signal(syscall.SIGKILL)
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// wait waits until done is closed, or no longer than linger.
func wait(done <-chan struct{}) {
	select {
	case <-done:
	case <-time.After(linger):
	}
}

// signal sends s to the program's group and, in a terminal of its own, to the group in front there. It reports whether
// anybody was there to get it.
func (r *run) signal(s syscall.Signal) bool {
	err := syscall.Kill(-r.pid, s)
	if front := r.front(); front > 1 && front != r.pid {
		_ = syscall.Kill(-front, s)
	}
	return !errors.Is(err, syscall.ESRCH)
}

// catch takes the signals that are for the program. One that we were started to ignore (nohup) is left alone.
func (r *run) catch() {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGPIPE} {
		if !signal.Ignored(s) {
			signal.Notify(r.signals, s)
		}
	}
}

func (r *run) forward(s syscall.Signal) {
	switch s {
	case syscall.SIGPIPE: // a reader of ours is gone: the program finds out by its own write
	case syscall.SIGWINCH:
		r.resize()
	case syscall.SIGCONT:
		r.raw()
		r.signal(s)
	case syscall.SIGTSTP:
		if r.pty == nil {
			r.signal(s)
			return
		}
		r.signal(syscall.SIGSTOP) // alone in its terminal it would not heed SIGTSTP
		r.pause()
	case syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM: // mean something to the program alone
		_ = syscall.Kill(r.pid, s)
	default:
		r.signal(s)
	}
}
