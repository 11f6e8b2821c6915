package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// smallBody is up to what length, in bytes, a request's body goes out in one piece with the head where it came so.
const smallBody = 32 << 10

// forward sends a request on and its answer back.
func (p *proxy) forward(ctx context.Context, t *passing) {
	out, err := t.outgoing(ctx)
	if err == nil {
		var over func()
		over, err = t.giveBody(out)
		defer over()
	}
	var res *http.Response
	if err == nil {
		res, err = t.ways.send(out, t.Lease.Plan)
	}
	if err != nil {
		p.failed(t, err)
		return
	}
	dropHops(res.Header)
	if err := t.answered(res); err != nil {
		_ = res.Body.Close()
		p.failed(t, err)
		return
	}
	t.handBack(res)
}

// giveBody puts the body into a request that goes out. Nothing reads of it once over was called. A body whose first piece
// is all of it is handed to the transport as that: it then writes head and body at once.
func (t *passing) giveBody(out *http.Request) (over func(), err error) {
	if t.body == nil {
		return func() {}, nil
	}
	out.ContentLength = t.in.ContentLength
	rest := io.Reader(t.body)
	if n := out.ContentLength; n > 0 && n <= smallBody {
		first := make([]byte, n)
		got, err := t.body.Read(first)
		switch {
		case int64(got) == n:
			out.Body = io.NopCloser(bytes.NewReader(first))
			return func() {}, nil
		case err != nil:
			return func() {}, err
		}
		rest = io.MultiReader(bytes.NewReader(first[:got]), rest)
	}
	lent := &lentBody{Reader: rest}
	out.Body = lent
	return func() { _ = lent.Close() }, nil
}

// lentBody is the client's body as the transport has it, which reads of it on a goroutine of its own: it is not to close
// it, and not to read of it once the request is over.
type lentBody struct {
	io.Reader
	over atomic.Bool
}

var errOver = errors.New("the request is over")

func (b *lentBody) Read(into []byte) (int, error) {
	if b.over.Load() {
		return 0, errOver
	}
	return b.Reader.Read(into)
}

func (b *lentBody) Close() error {
	b.over.Store(true)
	return nil
}

// handBack gives the client the answer, as answered left it. One that breaks off is broken off to the client too.
func (t *passing) handBack(res *http.Response) {
	h := t.w.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	announced := len(res.Trailer)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range res.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	t.w.WriteHeader(res.StatusCode)
	var err error
	switch {
	case t.small != nil:
		_, err = t.w.Write(t.small)
	case res.Body != http.NoBody:
		err = t.w.stream(res.Body)
	}
	_ = res.Body.Close() // now: what comes after the body is there then
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if len(res.Trailer) > 0 {
		_ = t.w.control.Flush() // a short body would otherwise get a length, and then nothing may follow it
	}
	prefix := ""
	if len(res.Trailer) != announced {
		prefix = http.TrailerPrefix
	}
	for name, values := range res.Trailer {
		h[prefix+name] = values
	}
}

// stream passes on a body as it comes, and the head before that.
func (w *proxyWriter) stream(body io.Reader) error {
	if err := w.FlushError(); err != nil {
		return err
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	defer clear(*b)
	for {
		n, err := body.Read(*b)
		if n > 0 {
			if _, err := w.Write((*b)[:n]); err != nil {
				return err
			}
			if err := w.FlushError(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// buffers are what answers are copied through.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
