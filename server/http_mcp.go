package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/tools"
)

// httpCall is what the guard settled about one request to /mcp, for the hooks that mcp-go calls back.
type httpCall struct {
	principal identity.Principal
	modern    bool
	opened    *httpSession // initialize: the session that its answer will name

	id    json.RawMessage             // of the request; nil: whatever comes, mcp-go encodes
	plain atomic.Pointer[plainAnswer] // see standIn
}

type httpCallKey struct{}

func (h *httpHandler) newStreamable() *mcpserver.StreamableHTTPServer {
	return mcpserver.NewStreamableHTTPServer(h.MCP,
		mcpserver.WithSessionIdManagerResolver(boundSessions{h}),
		mcpserver.WithHTTPContextFunc(privately),
		mcpserver.WithStreamableHTTPLogger(slog.New(slogTo{h.Log})),
		// mcp-go's own Host check knows loopback only; ours, in front, knows the configured names too.
		mcpserver.WithDisableLocalhostProtection(len(h.AllowedHosts) > 0),
	)
}

// serveMCP serves both eras at one address, as mcp-go does: a message of 2026-07-28 has no session, an older one
// lives in the session that initialize opened.
func (h *httpHandler) serveMCP(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	switch r.Method {
	case http.MethodPost:
		h.postMCP(w, r, p)
	case http.MethodGet:
		h.listenMCP(w, r, p)
	case http.MethodDelete:
		h.deleteMCP(w, r, p)
	}
}

func (h *httpHandler) postMCP(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	done, f := h.call(r, p) // before the body is read: limits come before parsing
	if f != nil {
		f.refuse(w, r)
		return
	}
	defer done()
	m := readMessage(w, r)
	if m == nil {
		return
	}
	if f := h.outOfScope(r, p, m); f != nil {
		f.write(w)
		return
	}
	switch {
	case m.modern || mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)):
		h.postModern(w, r, p, m)
	case m.Method == string(mcp.MethodInitialize):
		h.initialize(w, r, p, m)
	default:
		h.postLegacy(w, r, p, m)
	}
}

func (h *httpHandler) postModern(w http.ResponseWriter, r *http.Request, p identity.Principal, m *httpMessage) {
	r.Header.Del(mcpserver.HeaderKeySessionID) // means nothing in this era
	caller := identity.Caller{Principal: p, Transport: "http", ClientName: m.client.Name, ClientVersion: m.client.Version}
	ctx := r.Context()
	if m.Method == string(mcp.MethodSubscriptionsListen) {
		release, f := h.sessions.stream(p)
		if f != nil {
			f.write(w)
			return
		}
		defer release()
		var end context.CancelFunc
		ctx, end = h.streamContext(r, p, h.closing)
		defer end()
	}
	h.serveStreamable(w, r.WithContext(ctx), caller, &httpCall{principal: p, modern: true, id: m.ID})
}

func (h *httpHandler) initialize(w http.ResponseWriter, r *http.Request, p identity.Principal, m *httpMessage) {
	s, f := h.sessions.open(p, "http", m.client)
	if f != nil {
		f.write(w)
		return
	}
	r.Header.Del(mcpserver.HeaderKeySessionID)
	caller, _ := s.enter(r.Context())
	h.serveStreamable(w, r, caller, &httpCall{principal: p, opened: s})
	s.leave()
	if w.Header().Get(mcpserver.HeaderKeySessionID) != s.id {
		s.finish() // the client was not told of it
	}
}

func (h *httpHandler) postLegacy(w http.ResponseWriter, r *http.Request, p identity.Principal, m *httpMessage) {
	s, f := h.sessionOf(r, p)
	if f != nil {
		f.write(w)
		return
	}
	caller, alive := s.enter(r.Context())
	if !alive {
		noSession().write(w)
		return
	}
	defer s.leave()
	h.serveStreamable(w, r, caller, &httpCall{principal: p, id: m.ID})
}

// listenMCP is the stream from server to client of a handshake session. When its last one closes, the holder left;
// any later request of the session says that it is back.
func (h *httpHandler) listenMCP(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	if mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)) {
		methodNotAllowed("POST").write(w)
		return
	}
	s, f := h.sessionOf(r, p)
	if f == nil {
		var release func()
		if release, f = h.sessions.stream(p); f == nil {
			defer release()
		}
	}
	if f != nil {
		f.write(w)
		return
	}
	if !s.openStream(r.Context()) {
		noSession().write(w)
		return
	}
	defer s.closeStream()
	ctx, end := h.streamContext(r, p, s.ctx)
	defer end()
	h.serveStreamable(w, r.WithContext(ctx), s.caller(), &httpCall{principal: p})
}

func (h *httpHandler) deleteMCP(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	if mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)) {
		methodNotAllowed("POST").write(w)
		return
	}
	s, f := h.sessionOf(r, p)
	if f != nil {
		f.write(w)
		return
	}
	h.serveStreamable(w, r, s.caller(), &httpCall{principal: p})
	s.finish()
}

// sessionOf finds the session that r names among p's own.
func (h *httpHandler) sessionOf(r *http.Request, p identity.Principal) (*httpSession, *fault) {
	id := r.Header.Get(mcpserver.HeaderKeySessionID)
	if id == "" {
		return nil, badRequest(400, "this request needs the Mcp-Session-Id that initialize gave", "Begin with initialize, or speak revision 2026-07-28.")
	}
	s, foreign := h.sessions.find(id, p)
	if foreign {
		h.misused(r, p, "http")
	}
	if s == nil || s.transport != "http" {
		return nil, noSession()
	}
	return s, nil
}

func (h *httpHandler) serveStreamable(w http.ResponseWriter, r *http.Request, caller identity.Caller, call *httpCall) {
	caller = sender(r, caller)
	ctx := context.WithValue(identity.With(tools.Ending(r.Context(), h.closing), caller), httpCallKey{}, call)
	h.streamable.ServeHTTP(neutralWriter{ResponseWriter: w, log: h.Log, call: call}, r.WithContext(ctx))
}

// neutralWriter keeps the words of handlers and decoders out of JSON-RPC errors: see neutral. mcp-go writes a JSON
// answer in one piece.
type neutralWriter struct {
	http.ResponseWriter
	log  zerolog.Logger
	call *httpCall
}

func (w neutralWriter) Write(p []byte) (int, error) {
	out := p
	if real := w.call.realAnswer(p); real != nil {
		out = real
	} else if w.Header().Get("Content-Type") == "application/json" && bytes.Contains(p, []byte(`"error"`)) {
		out = w.neutral(p)
	}
	if _, err := w.ResponseWriter.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w neutralWriter) neutral(p []byte) []byte {
	var answer struct {
		JSONRPC string                   `json:"jsonrpc"`
		ID      json.RawMessage          `json:"id"`
		Error   *mcp.JSONRPCErrorDetails `json:"error"`
	}
	if json.Unmarshal(p, &answer) != nil || answer.Error == nil {
		return p
	}
	told := neutral(w.log, mcp.JSONRPCError{Error: *answer.Error}).(mcp.JSONRPCError)
	answer.Error = &told.Error
	return mustJSON(answer)
}

func (w neutralWriter) Flush()                      { _ = http.NewResponseController(w.ResponseWriter).Flush() }
func (w neutralWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// streamContext ends with the request, with until, or when what proved the caller is no longer good.
func (h *httpHandler) streamContext(r *http.Request, p identity.Principal, until context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	expiry := time.AfterFunc(h.timeLeft(r), cancel)
	unhook := context.AfterFunc(until, cancel)
	go func() {
		tick := time.NewTicker(h.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if !h.stillGood(r, p) {
					cancel()
				}
			}
		}
	}()
	return ctx, func() { expiry.Stop(); unhook(); cancel() }
}

// lapsed makes mcp-go forget what it keeps (about 12 KB) for a session that lapsed.
func (h *httpHandler) lapsed(s *httpSession) {
	if h.Lapse != nil {
		h.Lapse(s.name)
	}
	ctx := context.WithValue(context.Background(), httpCallKey{}, &httpCall{})
	header := http.Header{mcpserver.HeaderKeySessionID: []string{s.id}}
	h.streamable.Handle(nowhere{http.Header{}}, &mcpserver.HTTPRequest{Method: http.MethodDelete, Header: header, Context: ctx})
}

// nowhere is where an answer goes that nobody asked for.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) WriteHeader(int)             {}
func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n nowhere) Flush()                      {}
func (n nowhere) CanStream() bool             { return false }

// boundSessions makes mcp-go ask our table, for the request's own principal. The guard has asked already: this is
// what holds if mcp-go and the guard ever disagree about which session or era a request belongs to.
type boundSessions struct{ h *httpHandler }

func (b boundSessions) ResolveSessionIdManager(r *http.Request) mcpserver.SessionIdManager {
	m := boundManager{table: b.h.sessions}
	if r != nil {
		m.call, _ = r.Context().Value(httpCallKey{}).(*httpCall)
	}
	return m
}

type boundManager struct {
	table *sessionTable
	call  *httpCall
}

var errNoSession = errors.New("no such session")

func (m boundManager) Generate() string {
	if m.call == nil || m.call.opened == nil {
		return ""
	}
	return m.call.opened.id
}

func (m boundManager) Validate(id string) (terminated bool, err error) {
	if m.call == nil {
		return false, errNoSession
	}
	if s, _ := m.table.find(id, m.call.principal); s == nil {
		return false, errNoSession
	}
	return false, nil
}

// Terminate only permits: deleteMCP, which has checked the owner, ends the session.
func (m boundManager) Terminate(string) (notAllowed bool, err error) { return m.call == nil, nil }

// privately gives each modern request a session id of its own, drawn at random: mcp-go files calls in flight under
// session id and JSON-RPC id, and with every modern caller's session id empty anyone could cancel another's call.
func privately(ctx context.Context, _ *http.Request) context.Context {
	call, _ := ctx.Value(httpCallKey{}).(*httpCall)
	session := mcpserver.ClientSessionFromContext(ctx)
	if call == nil || !call.modern || session == nil {
		return ctx
	}
	private := rand.Text()
	if full, ok := session.(modernSession); ok {
		return mcpServerContext(ctx, privateSession{full, private})
	}
	return mcpServerContext(ctx, privateBare{session, private})
}

// mcpServerContext replaces the session in ctx. WithContext uses no state of its receiver.
func mcpServerContext(ctx context.Context, s mcpserver.ClientSession) context.Context {
	return (*mcpserver.MCPServer)(nil).WithContext(ctx, s)
}

// modernSession is all that mcp-go's session of a modern request can do and is asked for.
type modernSession interface {
	mcpserver.SessionWithClientInfo
	mcpserver.SessionWithLogging
	mcpserver.SessionWithProtocolVersion
	mcpserver.SessionWithSubscriptionFilter
	mcpserver.SessionWithStreamableHTTPConfig
	SetProtocolVersion(string)
}

type privateSession struct {
	modernSession
	id string
}

func (s privateSession) SessionID() string { return s.id }

type privateBare struct {
	mcpserver.ClientSession
	id string
}

func (s privateBare) SessionID() string { return s.id }

// slogTo passes on what mcp-go logs, without its attributes: they hold session ids and what clients sent.
type slogTo struct{ log zerolog.Logger }

func (s slogTo) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (s slogTo) WithAttrs([]slog.Attr) slog.Handler           { return s }
func (s slogTo) WithGroup(string) slog.Handler                { return s }
func (s slogTo) Handle(_ context.Context, r slog.Record) error {
	s.log.Warn().Str("from", "mcp-go").Msg(r.Message)
	return nil
}

// silent is for net/http's own log: broken handshakes and cut connections are worth a debug line.
func silent(z zerolog.Logger) *log.Logger { return log.New(debugLines{z}, "", 0) }

type debugLines struct{ log zerolog.Logger }

func (d debugLines) Write(p []byte) (int, error) {
	d.log.Debug().Str("from", "net/http").Msg(cleanText(string(p), 500))
	return len(p), nil
}
