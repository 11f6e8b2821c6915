package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
)

const (
	maxInFlight = 64                      // calls of one connection at a time; more wait unread
	drainTime   = 5 * time.Second         // how long calls in flight are waited for after the client left
	stopDrain   = 1500 * time.Millisecond // the same when the daemon stops, which takes 2 s at most
	writeTime   = 30 * time.Second        // a client that reads nothing for so long is gone
)

// local is what every MCP connection of the socket needs of the daemon.
type local struct {
	mcp          *mcpserver.MCPServer
	attach       func(context.Context, identity.Caller)
	detach       func(ctx context.Context, session string)
	authenticate func(ctx context.Context, token, source string) (identity.Principal, error)
	log          zerolog.Logger
	called       func() // a request came: the daemon is in use
}

// mcpConn is one MCP connection of the local socket, served by the daemon's own loop over HandleMessage.
//
// Its identity is fixed by the first of these that is there: the token of the hello, the name of the hello, the
// clientInfo of the first request. Nothing that comes later changes it.
type mcpConn struct {
	local
	conn    net.Conn
	r       *bufio.Reader
	session *session
	hello   hello
	peer    *localPeer
	kin     string // see kin

	proven   identity.Principal // by the token of the hello; zero without one, or with a bad one
	badToken bool
	caller   identity.Caller // set once by identify, before any request runs
	known    bool            // caller is somebody; false after a bad token, which is never downgraded to a name
	named    bool            // identify has run

	wmu     sync.Mutex             // guards writes to conn
	read    atomic.Uint64          // lines taken from conn
	stopWhy atomic.Pointer[string] // set: nothing more is read

	mu       sync.Mutex // guards inFlight
	inFlight map[string]bool
	calls    sync.WaitGroup
	slots    chan struct{}
}

func newMCPConn(l local, conn net.Conn, r *bufio.Reader, h hello, peer *localPeer) *mcpConn {
	return &mcpConn{local: l, conn: conn, r: r, session: newSession(), hello: h, peer: peer,
		inFlight: map[string]bool{}, slots: make(chan struct{}, maxInFlight)}
}

// serve reads until the client leaves, is told to, or breaks the rules; then it lets the calls in flight end and
// reports the session's end, so that its leases are orphaned.
func (c *mcpConn) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.mcp.RegisterSession(ctx, c.session); err != nil {
		c.log.Error().Err(err).Msg("registering a local session")
		return
	}
	defer c.mcp.UnregisterSession(context.WithoutCancel(ctx), c.session.id)
	ctx = c.mcp.WithContext(ctx, c.session)

	if c.hello.Token != "" || c.hello.As != "" || c.hello.ClientName != "" {
		c.identify(ctx, c.hello.ClientName, c.hello.ClientVersion)
	}
	var pump sync.WaitGroup
	pump.Go(func() { c.forwardNotifications(ctx) })
	c.readLoop(ctx)
	why := c.stopWhy.Load()
	if why != nil {
		c.sayGoodbye(*why)
	} else {
		c.drain(drainTime)
	}
	cancel()
	pump.Wait()
	_ = c.conn.Close()
	if c.known && why == nil { // a daemon that stops orphans everything when it starts again
		c.detach(context.WithoutCancel(ctx), c.session.id)
	}
}

func (c *mcpConn) readLoop(ctx context.Context) {
	for c.stopWhy.Load() == nil {
		line, err := readLine(c.r, maxLine)
		if errors.Is(err, errLineTooLong) {
			c.write((&rpcError{mcp.INVALID_REQUEST, err.Error()}).line(nil))
			return
		}
		if err != nil {
			return
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
	case e.isAnswer(): // we ask nothing of local clients, so there is nothing that this could answer
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
	c.slots <- struct{}{}
	run := func() {
		answer := c.handle(ctx, e, line)
		c.finish(key)
		if answer != nil {
			c.flush(c.encode(e, answer))
		}
		<-c.slots
	}
	if e.Method == string(mcp.MethodInitialize) {
		run()
		return
	}
	c.calls.Go(run)
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
	c.caller = identity.Caller{Session: c.session.id, Transport: "local", PID: c.peer.PID, Peer: c.kin,
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
	c.attach(ctx, c.caller)
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
	c.stopWhy.CompareAndSwap(nil, &why)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// sayGoodbye tells the relay how much of what it sent was read and, by now, answered.
func (c *mcpConn) sayGoodbye(why string) {
	if c.drain(stopDrain) {
		c.write(mustJSON(control{Keylease: why, Read: c.read.Load()}))
	}
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
func (c *mcpConn) write(line []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		_ = c.conn.Close()
	}
}
