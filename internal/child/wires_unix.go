//go:build linux || darwin

package child

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"keylease/internal/mask"
)

// wires are what the program is connected by.
type wires struct {
	pty     *os.File    // our end of the program's terminal; nil: it has none of its own
	theirs  [3]*os.File // the program's stdin, stdout and stderr
	ours    []*os.File  // of theirs, those to be closed here once it runs
	streams []*stream
	typed   bool        // what is typed goes to the program's terminal
	cooked  *term.State // our terminal as it was; nil: it is as it was
	lent    *os.File    // our terminal, in front of which the program's group is; nil: it is not
	typing  sync.Once   // started to pass on what is typed
	reading sync.WaitGroup
}

// lay makes the wires. With a terminal as stdout the program gets a terminal of its own, for those of its three that are
// terminals here; else stdout and stderr are pipes, or one pipe where they are one file here, so that what is said on them
// keeps its order.
func (r *run) lay() (err error) {
	r.theirs = [3]*os.File{r.In, nil, nil}
	if isTerminal(r.Out) {
		if err := r.layTerminal(); err != nil {
			r.cutWires()
			return err
		}
	} else if r.theirs[1], err = r.pipe(r.Out); err != nil {
		return err
	}
	switch {
	case r.theirs[2] != nil:
	case r.pty == nil && sameFile(r.Out, r.Err):
		r.theirs[2] = r.theirs[1]
	default:
		if r.theirs[2], err = r.pipe(r.Err); err != nil {
			r.cutWires()
			return err
		}
	}
	return nil
}

func (r *run) layTerminal() error {
	ours, theirs, err := pty.Open()
	if err != nil {
		return fmt.Errorf("opening a terminal for the command: %w", err)
	}
	r.pty = ours
	r.theirs[1], r.ours = theirs, append(r.ours, theirs)
	if modes, err := term.GetState(int(r.Out.Fd())); err == nil {
		_ = term.Restore(int(theirs.Fd()), modes)
	}
	if isTerminal(r.In) {
		r.theirs[0], r.typed = theirs, true
	}
	if isTerminal(r.Err) {
		r.theirs[2] = theirs
	}
	if err := syscall.SetNonblock(int(ours.Fd()), true); err != nil { // after Fd, which undoes it: reads have to end in time
		return fmt.Errorf("setting up a terminal for the command: %w", err)
	}
	fd, err := unix.FcntlInt(ours.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("setting up a terminal for the command: %w", err)
	}
	_ = ours.Close()
	if err := syscall.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("setting up a terminal for the command: %w", err)
	}
	r.pty = os.NewFile(uintptr(fd), "pty")
	r.resize()
	r.streams = append(r.streams, newStream(r.pty, r.Out, r.Mask))
	return nil
}

// pipe returns an end for the program of which the other is masked and passed on to dst.
func (r *run) pipe(dst *os.File) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for the command: %w", err)
	}
	widen(read)
	r.ours = append(r.ours, write)
	r.streams = append(r.streams, newStream(read, dst, r.Mask))
	return write, nil
}

func (r *run) cutWires() {
	for _, f := range r.ours {
		_ = f.Close()
	}
	for _, s := range r.streams {
		_ = s.src.Close()
	}
}

func (r *run) files() []uintptr {
	fds := make([]uintptr, 3)
	for i, f := range r.theirs {
		fds[i] = f.Fd()
	}
	return fds
}

// open lets the output flow, and what is typed.
func (r *run) open() {
	for _, f := range r.ours {
		_ = f.Close()
	}
	for _, s := range r.streams {
		r.reading.Go(s.pass)
	}
	r.raw()
}

// drain waits for what the program has left in its pipes. After a program that was stopped nobody waits for a reader of
// ours.
func (r *run) drain() {
	for _, s := range r.streams {
		s.hurry()
	}
	if !r.told {
		r.reading.Wait()
		return
	}
	done := make(chan struct{})
	go func() { r.reading.Wait(); close(done) }()
	wait(done)
}

// stream is output on its way.
type stream struct {
	src  *os.File
	dst  io.WriteCloser
	last atomic.Pointer[time.Time] // when the program exited
}

func newStream(src, dst *os.File, m *mask.Masker) *stream {
	return &stream{src: src, dst: m.Writer(dst)}
}

// pass copies to the end of src. Nobody's buffer grows with what the program prints: where dst takes nothing, nothing is
// read. Where dst is gone, src is closed, and so the program's next write fails as it would without us.
func (s *stream) pass() {
	defer s.dst.Close()
	defer s.src.Close()
	buf := make([]byte, 64<<10)
	defer clear(buf)
	for left, late := linger, 0; left > 0 && late < excess; {
		began := time.Now()
		if s.last.Load() != nil {
			_ = s.src.SetReadDeadline(began.Add(left))
		}
		n, err := s.src.Read(buf)
		if exit := s.last.Load(); exit != nil {
			if began.Before(*exit) {
				began = *exit
			}
			left -= time.Since(began)
			late += n
		}
		if _, gone := s.dst.Write(buf[:n]); gone != nil {
			return
		}
		switch {
		case err == nil, errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EIO) && s.last.Load() == nil:
			time.Sleep(reopen) // closed by all, and not by us: that would be a hangup, which ends a program on its way out
		default:
			return
		}
	}
}

// hurry says that the program has exited, and gives a read that waits already no more than linger.
func (s *stream) hurry() {
	now := time.Now()
	s.last.Store(&now)
	_ = s.src.SetReadDeadline(now.Add(linger))
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// sameFile reports whether two descriptors lead to one pipe or file.
func sameFile(a, b *os.File) bool {
	one, err1 := a.Stat()
	two, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}
