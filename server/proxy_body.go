package server

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"keylease/internal/lease"
)

// inBody is a request's body on its way to the upstream.
type inBody struct {
	io.ReadCloser
	use     *lease.Use
	w       *proxyWriter
	longest time.Duration
	in      atomic.Int64
	failed  atomic.Bool // it did not come whole
	since   time.Time   // when the deadline was set

	mu   sync.Mutex // guards what follows
	done bool       // it was read to its end: the deadline is no longer ours
	cut  bool
	by   time.Time // when cut: by when a Read ends
}

func (b *inBody) count() int64 {
	if b == nil {
		return 0
	}
	return b.in.Load()
}

// Read may be asked once more after the end: the transport looks whether there is more than was announced. By then
// net/http may have closed a body that was read to its end, and its word for that would break off the answer.
func (b *inBody) Read(into []byte) (int, error) {
	if !b.stillComes() {
		return 0, io.EOF
	}
	if err := b.use.Err(); err != nil {
		b.failed.Store(true)
		return 0, err
	}
	if now := time.Now(); now.Sub(b.since) > b.longest/10 {
		b.since = now
		b.deadline(now.Add(b.longest), false)
	}
	n, err := b.ReadCloser.Read(into)
	b.in.Add(int64(n))
	if err != nil {
		b.failed.Store(!errors.Is(err, io.EOF) && !b.interrupted())
		b.deadline(time.Time{}, errors.Is(err, io.EOF))
	}
	return n, err
}

func (b *inBody) interrupted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cut
}

func (b *inBody) deadline(at time.Time, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.cut && !b.done {
		_ = b.w.control.SetReadDeadline(at)
	}
	b.done = b.done || done
}

// stillComes reports whether there is a body that was not read to its end.
func (b *inBody) stillComes() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.done
}

// over is called when there is an answer and nothing more of the body is wanted. A client that still has to send some
// gets a moment to; net/http itself would read on for as long as it takes, since it forgets the deadline when it stops a
// Read that is under way.
func (b *inBody) over() {
	if b == nil {
		return
	}
	b.interrupt(time.Now().Add(restTime))
	_ = b.ReadCloser.Close()
}

// interrupt has a Read that waits for the client end by at, or earlier if that was said before.
func (b *inBody) interrupt(at time.Time) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done && (!b.cut || at.Before(b.by)) {
		b.by = at
		_ = b.w.control.SetReadDeadline(at)
	}
	b.cut = true
}
