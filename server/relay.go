package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/rs/zerolog"
)

// RelayOptions is one client's stdio and where to take it.
type RelayOptions struct {
	Paths     Paths
	In        io.Reader
	Out       io.Writer
	Log       zerolog.Logger
	As        string // the name that this connection declares; "" leaves it to the client's own
	Token     string // proves who it is; never downgraded to a name
	Version   string
	AutoStart bool
	Start     Start

	dial func(context.Context) (*link, error) // tests; nil: the daemon of Paths
}

const (
	reconnectTime = 45 * time.Second // how long the relay looks for a daemon: past lockTime + startTime, within the 60 s that clients wait
	returnTime    = 10 * time.Second // the same for a daemon that a service manager starts again
	maxRead       = 1 << 20          // of a line that is too long, to find out which request to refuse
)

// relay carries a client's lines to the daemon and back, and outlives the daemon: it keeps the client's handshake and
// what the client still waits for.
type relay struct {
	RelayOptions

	outMu sync.Mutex // guards writes to Out
	gone  context.CancelFunc

	badToken sync.Once // it was said

	linkMu sync.Mutex // held while a connection is made; never taken with mu held

	mu        sync.Mutex // guards all below
	cur       *link      // nil: no connection
	first     *envelope  // the client's first request: who it says it is
	pending   map[string]*flight
	order     uint64
	handshake [2][]byte // initialize and initialized, once the first was answered
	asked     bool      // the daemon's version was looked at
	session   string    // as a daemon named it that put us aside
	settled   *sync.Cond
}

// flight is a request that the client waits for.
type flight struct {
	id     json.RawMessage
	method string
	line   []byte
	order  uint64 // among all calls
	on     *link  // where it is being sent; nil: nowhere yet
	seq    uint64 // which line of on, from 1; 0: not sent whole. Guarded by on.mu until on has ended
}

// Relay joins a client's stdio to the daemon until In ends, the client stops reading, or ctx ends. It starts the daemon
// if need be, at the client's first request. What it can't do it answers with an error: its own is only for In and Out.
func Relay(ctx context.Context, o RelayOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &relay{RelayOptions: o, pending: map[string]*flight{}, gone: cancel}
	r.settled = sync.NewCond(&r.mu)
	if r.dial == nil {
		r.dial = r.dialDaemon
	}
	read := make(chan error, 1)
	go func() { read <- r.readClient(ctx) }() // ends with In: nothing else ends a read of stdin
	var err error
	select {
	case err = <-read:
		r.settle(ctx, drainTime)
	case <-ctx.Done(): // a signal, or the client reads no more
	}
	cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cur != nil {
		_ = r.cur.conn.Close()
	}
	return err
}

// settle waits until everything was answered.
func (r *relay) settle(ctx context.Context, longest time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		r.mu.Lock() // not between settle's look and its wait
		defer r.mu.Unlock()
		r.settled.Broadcast()
	})()
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.pending) > 0 && ctx.Err() == nil {
		r.settled.Wait()
	}
}

func (r *relay) readClient(ctx context.Context) error {
	in := bufio.NewReaderSize(r.In, 8<<10)
	for ctx.Err() == nil {
		line, err := readLine(in, maxRead)
		switch {
		case errors.Is(err, errLineTooLong):
			if skipLine(in) == nil { // else the next read says what is wrong
				r.write((&rpcError{mcp.INVALID_REQUEST, errLineTooLong.Error()}).line(nil))
			}
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading from the client: %w", err)
		case len(line) > maxLine:
			r.write((&rpcError{mcp.INVALID_REQUEST, errLineTooLong.Error()}).line(idOf(line)))
		case len(line) > 0:
			r.take(ctx, line)
		}
	}
	return nil
}

// take passes on one line of the client's. What is not a message never reaches the daemon, so that both agree about
// what is in flight.
func (r *relay) take(ctx context.Context, line []byte) {
	e, fault := parseEnvelope(line)
	if fault != nil {
		r.write(fault.line(e.ID))
		return
	}
	if !e.isRequest() {
		r.takeOther(&e, line)
		return
	}
	c := &flight{id: e.ID, method: e.Method, line: line}
	if !r.expect(c, &e) {
		r.write((&rpcError{mcp.INVALID_REQUEST, "a request with this id is still in flight"}).line(e.ID))
		return
	}
	l, err := r.link(ctx)
	if err != nil {
		if r.forget(c) {
			r.write(r.noDaemon(err).line(c.id))
		}
		return
	}
	r.send(l, c)
}

// expect remembers that the client waits for c.
func (r *relay) expect(c *flight, e *envelope) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := idKey(c.id)
	if r.pending[key] != nil {
		return false
	}
	if r.first == nil && e.Method != string(mcp.MethodPing) {
		r.first = e
	}
	r.order++
	c.order = r.order
	r.pending[key] = c
	return true
}

// forget reports whether c was still waited for.
func (r *relay) forget(c *flight) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := idKey(c.id)
	if r.pending[key] != c {
		return false
	}
	delete(r.pending, key)
	r.settled.Broadcast()
	return true
}

// takeOther passes on a notification or an answer, if there is somebody to pass it to: none of them starts a daemon.
func (r *relay) takeOther(e *envelope, line []byte) {
	r.mu.Lock()
	l := r.cur
	switch e.Method {
	case "notifications/initialized":
		r.handshake[1] = line
	case string(mcp.MethodNotificationCancelled):
		r.dropCancelled(e)
	}
	r.mu.Unlock()
	if l != nil {
		_, _ = l.write(line)
	}
}

// dropCancelled forgets a call that was never sent. Called with mu held.
func (r *relay) dropCancelled(e *envelope) {
	var p struct {
		RequestID json.RawMessage `json:"requestId"`
	}
	if json.Unmarshal(e.Params, &p) != nil || p.RequestID == nil {
		return
	}
	if c := r.pending[idKey(p.RequestID)]; c != nil && c.on == nil {
		delete(r.pending, idKey(p.RequestID))
		r.settled.Broadcast()
	}
}

// send writes c to l, unless it was sent or answered meanwhile, or l is over: then it waits for the next one.
func (r *relay) send(l *link, c *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.mu.Lock()
	mine := r.pending[idKey(c.id)] == c && c.on == nil && r.cur == l
	if mine {
		c.on = l
	}
	r.mu.Unlock()
	if mine {
		c.seq, _ = l.writeLocked(c.line) // a failure ends the link, whose reader sees to what was on it
	}
}

// answered passes a daemon's line to the client.
func (r *relay) answered(l *link, line []byte) {
	var e envelope
	if err := json.Unmarshal(line, &e); err == nil && e.isAnswer() {
		r.mu.Lock()
		if c := r.pending[idKey(e.ID)]; c != nil && c.on == l {
			delete(r.pending, idKey(e.ID))
			if c.method == string(mcp.MethodInitialize) && e.Error == nil {
				r.handshake = [2][]byte{c.line}
			}
		}
		r.mu.Unlock()
	}
	r.write(line)
	r.settled.Broadcast()
}

// write gives the client one line. A client that does not read any more has ended.
func (r *relay) write(line []byte) {
	r.outMu.Lock()
	defer r.outMu.Unlock()
	if _, err := r.Out.Write(append(line, '\n')); err != nil {
		r.gone()
	}
}

func (r *relay) noDaemon(err error) *rpcError {
	r.Log.Warn().Err(err).Msg("no daemon for a request")
	return &rpcError{mcp.INTERNAL_ERROR, "keylease: " + cleanText(err.Error(), 600)}
}

// unknownOutcome is what the client hears of a tool call that was with a daemon that is gone.
func unknownOutcome(id json.RawMessage) []byte {
	const message = "the keylease daemon went away during this call: it is unknown whether it took effect"
	const hint = "Look in list_credentials (your_leases) before trying again."
	problem := map[string]any{"error": map[string]string{"code": "unavailable", "message": message, "hint": hint}}
	return mustJSON(map[string]any{"jsonrpc": mcp.JSONRPC_VERSION, "id": id, "result": map[string]any{
		"isError":           true,
		"structuredContent": problem,
		"content":           []any{map[string]string{"type": "text", "text": string(mustJSON(problem))}},
	}})
}

// idOf finds the id of a request that is too long to be read otherwise; nil where it has none.
func idOf(line []byte) json.RawMessage {
	var msg struct {
		ID jsontext.Value `json:"id"`
	}
	if json.Unmarshal(line, &msg) != nil || len(msg.ID) == 0 || !goodID(json.RawMessage(msg.ID)) {
		return nil
	}
	return json.RawMessage(msg.ID)
}
