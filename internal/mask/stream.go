package mask

import (
	"errors"
	"io"
	"sync"
	"time"

	"keylease/internal/secret"
)

// A stream that stops in the middle of what may become a secret: after pause a Writer lets up to slip bytes of it through,
// because a prompt may well end in the letter that a key begins with. If the key goes on, the rest of it is masked all the
// same: slip bytes are the most that ever shows of one. Three, because "sk-" is no secret, and half of eight bytes is.
const (
	pause = 50 * time.Millisecond
	slip  = 3
)

// stream masks a text that comes in pieces. What it holds is the text from the first place on where a secret may have
// begun and not ended.
type stream struct {
	m      *Masker
	held   []byte
	done   int    // so much of held is dealt with: masked, or let through by release
	masked bool   // the last byte dealt with was masked
	out    []byte // what feed returns, used again
}

// feed takes the next piece and returns what can go on: a part of data or a buffer that is good until the next call.
// Secrets that overlap are one. With last nothing more comes, and a secret of which 8 bytes or more are there is masked.
func (s *stream) feed(data []byte, last bool) []byte {
	b, out := data, s.out[:0]
	if len(s.held) > 0 {
		s.held = append(s.held, data...)
		b = s.held
	}
	i := s.m.next(b, 0)
	for ; i < len(b); i = s.m.next(b, i+1) {
		n, open := s.m.match(b[i:])
		if last && open && len(b)-i >= least {
			n = len(b) - i
		}
		if end := i + n; n > 0 && end > s.done {
			out = s.pass(out, b, i)
			if !s.masked || i >= s.done {
				out = append(out, secret.Masked...)
			}
			s.done, s.masked = end, true
		}
		if open && !last {
			break
		}
	}
	if len(out) == 0 && s.done == 0 && len(s.held) == 0 { // the usual case: nothing was found, nothing is copied
		s.held = append(s.held, data[i:]...)
		s.masked = s.masked && i == 0
		return data[:i]
	}
	s.out = s.pass(out, b, i)
	s.held = append(s.held[:0], b[i:]...)
	s.done = max(0, s.done-i)
	return s.out
}

// pass appends what of b up to end is not dealt with yet.
func (s *stream) pass(out, b []byte, end int) []byte {
	if end <= s.done {
		return out
	}
	out = append(out, b[s.done:end]...)
	s.done, s.masked = end, false
	return out
}

// hesitates says that what is held is short enough to be let through after a pause.
func (s *stream) hesitates() bool { return s.done < len(s.held) && len(s.held) <= slip }

// release returns what is held and keeps its place in the secret that this may be the beginning of.
func (s *stream) release() []byte { return s.pass(nil, s.held, len(s.held)) }

// wipe forgets what is held.
func (s *stream) wipe() {
	clear(s.held[:cap(s.held)])
	clear(s.out[:cap(s.out)])
	s.held, s.out = nil, nil
}

// Writer masks what is written to it, in any pieces, and writes the rest on: at once what can't be part of a secret, after
// a pause of 50 ms up to three bytes that may be its beginning, and all else when it is clear what it is, or at Close.
// Its methods may be called at the same time.
type Writer struct {
	mu    sync.Mutex // guards all below, and makes writes to dst one at a time
	dst   io.Writer
	s     stream
	timer *time.Timer
	err   error
}

var errClosed = errors.New("writing to a masked output that is closed")

// Writer returns a Writer to dst. It must be closed; dst is not closed with it.
func (m *Masker) Writer(dst io.Writer) *Writer {
	w := &Writer{dst: dst, s: stream{m: m}}
	w.timer = time.AfterFunc(pause, w.hesitated)
	w.timer.Stop()
	return w
}

// Write reports an error of dst's once more at every later call. Without one it takes all of b.
func (w *Writer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if w.pass(b, false); w.err != nil {
		return 0, w.err
	}
	if w.s.hesitates() {
		w.timer.Reset(pause)
	}
	return len(b), nil
}

// Close writes what is held, save the beginning of a secret of 8 bytes or more, which is masked. Once it returned nothing
// is written to dst.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if errors.Is(w.err, errClosed) {
		return nil
	}
	w.pass(nil, true)
	w.s.wipe()
	err := w.err
	w.err = errClosed
	return err
}

func (w *Writer) pass(b []byte, last bool) {
	if w.err != nil {
		return
	}
	w.send(w.s.feed(b, last))
}

func (w *Writer) send(b []byte) {
	if len(b) > 0 {
		_, w.err = w.dst.Write(b)
	}
}

func (w *Writer) hesitated() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.s.hesitates() {
		w.send(w.s.release())
	}
}

// Reader returns src masked, for a body. A Read gives what src gave, as soon as src gave it, save a last part that may be
// the beginning of a secret: this waits for what follows it. An event that ends with a blank line is not held back. Where
// src ends, with EOF or another error, the same holds as for Close. The Reader is for one goroutine.
func (m *Masker) Reader(src io.Reader) io.Reader { return &reader{src: src, s: stream{m: m}} }

type reader struct {
	src  io.Reader
	s    stream
	rest []byte // of what feed returned last
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	for len(p) > 0 && len(r.rest) == 0 {
		if r.err != nil {
			r.s.wipe()
			return 0, r.err
		}
		var n int
		n, r.err = r.src.Read(p)
		r.rest = r.s.feed(p[:n], r.err != nil)
		if n == 0 && r.err == nil {
			break
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
