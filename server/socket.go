package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/tools"
)

const (
	maxInFlight = 64                      // calls of one process or principal at a time; more wait unread
	drainTime   = 5 * time.Second         // how long calls in flight are waited for after the client left
	stopDrain   = 1500 * time.Millisecond // the same when the daemon stops, which takes 2 s at most
	writeTime   = 10 * time.Second        // a client that reads nothing for so long is gone
)

// local is what every MCP connection of the socket needs of the daemon.
type local struct {
	mcp          *mcpserver.MCPServer
	attach       func(context.Context, identity.Caller)
	detach       func(ctx context.Context, session string)
	authenticate func(ctx context.Context, token, source string) (identity.Principal, error)
	lapse        func(session string) // the session is quiet and was put aside; its leases go on
	log          zerolog.Logger
	called       func() // a request came: the daemon is in use
}

// mcpConn is one MCP connection of the local socket, served by the daemon's own loop over HandleMessage.
//
// Its identity is fixed by the first of these that is there: the token of the hello, the name of the hello, the
// clientInfo of the first request. Nothing that comes later changes it.
type mcpConn struct {
	local
	*bounds
	conn    net.Conn
	r       *bufio.Reader
	session *session
	hello   hello
	peer    *localPeer
	kin     string // see kin
	guest   *guest

	proven   identity.Principal // by the token of the hello; zero without one, or with a bad one
	badToken bool
	caller   identity.Caller // set once by identify, before any request runs
	known    bool            // caller is somebody; false after a bad token, which is never downgraded to a name
	named    bool            // identify has run

	wmu     sync.Mutex             // guards writes to conn
	read    atomic.Uint64          // lines taken from conn
	stopWhy atomic.Pointer[string] // set: nothing more is read
	stopped chan struct{}          // closed when stopWhy is set
	left    chan struct{}          // closed when nothing more will be read
	aside   atomic.Bool            // stopped to make room: that is no disconnect

	mu       sync.Mutex // guards inFlight
	inFlight map[string]bool
	calls    sync.WaitGroup
	jobs     chan func()   // to workers that wait for one
	process  chan struct{} // slots of calls of the process at the other end, whatever it calls itself
	slots    chan struct{} // slots of calls of caller, over all its connections; nil while it is nobody
	letGo    []func()      // gives back both
}

func newMCPConn(l local, b *bounds, conn net.Conn, r *bufio.Reader, h hello, peer *localPeer) *mcpConn {
	c := &mcpConn{local: l, bounds: b, conn: conn, r: r, session: newSession(), hello: h, peer: peer,
		inFlight: map[string]bool{}, jobs: make(chan func()), stopped: make(chan struct{}), left: make(chan struct{})}
	var done func()
	c.session.send, c.session.gone = c.write, c.left
	c.process, done = b.running.of(peer.process())
	c.letGo = append(c.letGo, done)
	return c
}

// serve reads until the client leaves, is told to, or breaks the rules; then it lets the calls in flight end and
// reports the session's end, so that its leases are orphaned.
func (c *mcpConn) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer func() {
		for _, done := range c.letGo {
			done()
		}
	}()
	if c.hello.Token != "" || c.hello.As != "" || c.hello.ClientName != "" {
		c.identify(ctx, c.hello.ClientName, c.hello.ClientVersion)
	}
	c.hello.Session = "" // from here on the session keeps its id: who says only later who it is goes on with none
	if err := c.mcp.RegisterSession(ctx, c.session); err != nil {
		c.log.Error().Err(err).Msg("registering a local session")
		_ = c.conn.Close()
		if c.known {
			c.detach(context.WithoutCancel(ctx), c.session.id)
		}
		return
	}
	ctx = c.mcp.WithContext(ctx, c.session)
	var pump sync.WaitGroup
	pump.Go(func() { c.forwardNotifications(ctx) })
	waits, leave := context.WithCancel(ctx)
	c.readLoop(tools.Ending(ctx, waits))
	close(c.left)
	leave()
	why, answered := c.stopWhy.Load(), false
	if why != nil {
		answered = c.drain(stopDrain)
	} else {
		c.drain(drainTime)
	}
	cancel()
	pump.Wait()
	c.mcp.UnregisterSession(context.WithoutCancel(ctx), c.session.id)
	switch {
	case why == nil && c.known:
		_ = c.conn.Close()
		c.detach(context.WithoutCancel(ctx), c.session.id)
		return
	case c.aside.Load() && c.known: // before its client hears of it, which may be back at once
		c.lapse(c.session.id)
		c.absent.note(c.session.id, c.caller.Principal)
	}
	if answered {
		c.sayGoodbye(*why)
	}
	_ = c.conn.Close() // a daemon that stops orphans everything when it starts again
}

func (c *mcpConn) readLoop(ctx context.Context) {
	for c.stopWhy.Load() == nil {
		line, err := c.nextLine()
		if errors.Is(err, errLineTooLong) {
			c.write((&rpcError{mcp.INVALID_REQUEST, err.Error()}).line(nil))
			return
		}
		if err != nil {
			return
		}
		if !c.await(c.stopped, 0, c.peer.process(), c.rateKey()) { // before a byte of it is parsed
			return // told to go meanwhile: it counts as unread
		}
		c.read.Add(1)
		if len(line) > 0 {
			c.take(ctx, line)
		}
	}
}

// take does what one line asks. Handshake and notifications are done in order; requests run beside each other.
func (c *mcpConn) take(ctx context.Context, line []byte) {
	e, fault := parseEnvelope(line)
	switch {
	case fault != nil:
		c.write(fault.line(e.ID))
	case e.isAnswer():
		c.session.take(&e)
	case e.isNotification():
		c.handle(ctx, &e, line)
	default:
		c.called()
		if !c.named && e.Method != string(mcp.MethodPing) {
			name, version := claimedClient(&e)
			c.identify(ctx, name, version)
		}
		c.request(ctx, &e, line)
	}
}

func (c *mcpConn) request(ctx context.Context, e *envelope, line []byte) {
	key := idKey(e.ID)
	if !c.begin(key) {
		c.write((&rpcError{mcp.INVALID_REQUEST, "a request with this id is still in flight"}).line(e.ID))
		return
	}
	leave, ok := c.enter()
	if !ok { // told to stop, and this did not begin: it counts as unread
		c.finish(key)
		c.read.Add(^uint64(0))
		return
	}
	run := func() {
		defer leave()
		answer := c.handle(ctx, e, line)
		c.finish(key)
		if answer != nil {
			c.flush(c.encode(e, answer))
		}
	}
	if e.Method == string(mcp.MethodInitialize) {
		run()
		return
	}
	c.calls.Add(1)
	c.beside(func() { defer c.calls.Done(); run() })
}

func (c *mcpConn) begin(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight[key] {
		return false
	}
	c.inFlight[key] = true
	return true
}

func (c *mcpConn) finish(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.inFlight, key)
}

// handle gives the message to mcp-go as the connection's caller. A panic becomes an error that says nothing.
func (c *mcpConn) handle(ctx context.Context, e *envelope, line []byte) (answer mcp.JSONRPCMessage) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error().Str("panic", panicText(p)).Bytes("stack", debug.Stack()).Msg("a call panicked")
			answer = mcp.JSONRPCError{JSONRPC: mcp.JSONRPC_VERSION,
				Error: mcp.NewJSONRPCErrorDetails(mcp.INTERNAL_ERROR, "panic", nil)}
		}
		answer = neutral(c.log, answer)
	}()
	if e.isRequest() && c.stillKnown(ctx, e) {
		ctx = identity.With(ctx, c.caller)
	}
	return c.mcp.HandleMessage(ctx, line)
}

// stillKnown reports whether a request may speak for the caller: a token can be revoked or run out under a living
// connection, so it is asked for at each tool call.
func (c *mcpConn) stillKnown(ctx context.Context, e *envelope) bool {
	if !c.known || c.hello.Token == "" || e.Method != string(mcp.MethodToolsCall) {
		return c.known
	}
	p, err := c.authenticate(ctx, c.hello.Token, "local")
	return err == nil && p == c.caller.Principal
}

// encode writes the answer with the id as the client wrote it.
func (c *mcpConn) encode(e *envelope, answer mcp.JSONRPCMessage) []byte {
	if failed, ok := answer.(mcp.JSONRPCError); ok {
		return mustJSON(struct {
			JSONRPC string          `json:"jsonrpc"`
			ID      json.RawMessage `json:"id"`
			Error   any             `json:"error"`
		}{mcp.JSONRPC_VERSION, e.ID, failed.Error})
	}
	if told, ok := answer.(mcp.JSONRPCResponse); ok {
		if result, ok := told.Result.(*mcp.CallToolResult); ok && plainResult(result) {
			return appendResult(e.ID, result)
		}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		c.log.Error().Err(err).Msg("encoding an answer")
		return (&rpcError{mcp.INTERNAL_ERROR, "internal error"}).line(e.ID)
	}
	return b
}

// prove looks at the token of the hello, once, before the hello is answered: whoever sent a bad one is to hear of it.
func (c *mcpConn) prove() {
	if c.hello.Token == "" {
		return
	}
	var err error
	if c.proven, err = c.authenticate(context.Background(), c.hello.Token, "local"); err != nil {
		c.badToken = true
		c.log.Warn().Err(err).Int("pid", c.peer.PID).Msg("a local connection came with a token that is not valid")
	}
}

// identify fixes who this connection is.
func (c *mcpConn) identify(ctx context.Context, claimedName, claimedVersion string) {
	c.named = true
	c.caller = identity.Caller{Session: c.session.id, Transport: "local", PID: c.peer.PID, UID: strconv.Itoa(c.peer.UID), Peer: c.kin,
		ClientName: cleanText(claimedName, maxClaim), ClientVersion: cleanText(claimedVersion, maxClaim)}
	switch {
	case c.hello.Token != "":
		if c.badToken {
			return
		}
		c.caller.Principal = c.proven
	case c.hello.As != "":
		c.caller.Principal = declared(c.hello.As, c.peer)
	default:
		c.caller.Principal = declared(callerName(claimedName), c.peer)
	}
	c.known = true
	if c.absent.back(c.hello.Session, c.caller.Principal) {
		c.session.id, c.caller.Session = c.hello.Session, c.hello.Session
	}
	var done func()
	c.slots, done = c.running.of(principalGate(c.caller.Principal))
	c.letGo = append(c.letGo, done)
	c.attach(ctx, c.caller)
}

func (c *mcpConn) rateKey() string {
	if c.known {
		return c.caller.RateKey()
	}
	return c.peer.user()
}

func declared(name string, peer *localPeer) identity.Principal {
	return identity.Principal{Type: identity.Agent, Name: name, Proof: identity.Declared, By: fmt.Sprintf("uid:%d", peer.UID)}
}

// drain waits for the calls in flight: a lease that was granted is told of if anybody still listens. It reports
// whether all have ended.
func (c *mcpConn) drain(longest time.Duration) bool {
	done := make(chan struct{})
	go func() { c.calls.Wait(); close(done) }()
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// stop makes serve end the connection from the daemon's side.
func (c *mcpConn) stop(why string) {
	if c.stopWhy.CompareAndSwap(nil, &why) {
		close(c.stopped)
	}
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// putAside makes serve end a quiet connection to make room for another. Its relay comes back when its client speaks.
func (c *mcpConn) putAside() {
	c.aside.Store(true)
	c.stop(controlIdle)
}

// sayGoodbye tells the relay how much of what it sent was read and, by now, answered, and what session it was.
func (c *mcpConn) sayGoodbye(why string) {
	c.writeWithin(stopDrain, mustJSON(control{Keylease: why, Read: c.read.Load(), Session: c.session.id}))
}

func (c *mcpConn) forwardNotifications(ctx context.Context) {
	for {
		select {
		case n := <-c.session.notifications:
			c.write(mustJSON(n))
		case <-ctx.Done():
			return
		}
	}
}

// flush writes an answer after the notifications that were sent before it.
func (c *mcpConn) flush(line []byte) {
	for {
		select {
		case n := <-c.session.notifications:
			c.write(mustJSON(n))
		default:
			c.write(line)
			return
		}
	}
}

// write sends one line whole. A client that can't be written to is gone; its reader will find out.
func (c *mcpConn) write(line []byte) { c.writeWithin(c.writeTime, line) }

func (c *mcpConn) writeWithin(longest time.Duration, line []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(longest))
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		_ = c.conn.Close()
	}
}
