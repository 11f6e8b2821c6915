package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/identity"
)

// HTTP+SSE, the transport of 2024-11-05: GET /sse is a stream whose first event names where to POST messages;
// their answers come back on the stream. mcp-go's own server for it is not used: it lets every web page in
// (Access-Control-Allow-Origin: *), starts a goroutine per message without bound, puts the text of panics on the
// wire and can't be told whose stream it is. Its MCPServer does all that is MCP.

const (
	sseQueue = 16 // answers waiting for a slow reader; then calls wait, and they are limited
)

// sseStream is one open stream and the MCP session that lives as long as it.
type sseStream struct {
	*session
	of      *httpSession
	answers chan []byte
}

func (h *httpHandler) serveSSE(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	of, f := h.sessions.open(p, "sse", claim{})
	if f != nil {
		f.write(w)
		return
	}
	s := &sseStream{session: newSession(), of: of, answers: make(chan []byte, sseQueue)}
	s.session.id = of.name
	of.openStream(r.Context())
	defer of.closeStream()
	defer of.finish() // whatever ends the stream ends the calls that would answer on it
	ctx, end := h.streamContext(r, p, of.ctx)
	defer end()

	h.streams.Store(of.id, s)
	defer h.streams.Delete(of.id)
	if err := h.MCP.RegisterSession(ctx, s); err != nil {
		h.Log.Error().Err(err).Msg("registering an SSE session failed")
		return
	}
	defer h.MCP.UnregisterSession(context.WithoutCancel(ctx), s.SessionID())

	w.Header().Set("Content-Type", "text/event-stream")
	s.pump(ctx, w, h.Heartbeat)
}

// pump writes what there is to tell until ctx ends or the reader is gone.
func (s *sseStream) pump(ctx context.Context, w http.ResponseWriter, heartbeat time.Duration) {
	control := http.NewResponseController(w)
	send := func(format string, args ...any) bool {
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && control.Flush() == nil
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for ok := send("event: endpoint\ndata: /message?sessionId=%s\n\n", s.of.id); ok; {
		select {
		case answer := <-s.answers:
			ok = send("event: message\ndata: %s\n\n", answer)
		case n := <-s.notifications:
			if text, err := json.Marshal(n); err == nil {
				ok = send("event: message\ndata: %s\n\n", text)
			}
		case <-tick.C:
			ok = send(": still here\n\n") // a comment: clients skip it, dead connections fail on it
		case <-ctx.Done():
			return
		}
	}
}

func (h *httpHandler) serveMessage(w http.ResponseWriter, r *http.Request, p identity.Principal) {
	done, f := h.call(r, p)
	if f != nil {
		f.refuse(w, r)
		return
	}
	s, f := h.streamOf(r, p)
	if f != nil {
		done()
		f.refuse(w, r)
		return
	}
	m := readMessage(w, r)
	if m == nil {
		done()
		return
	}
	if f := h.outOfScope(r, p, m); f != nil {
		done()
		f.write(w)
		return
	}
	if m.Method == string(mcp.MethodInitialize) {
		s.of.introduce(m.client)
	}
	caller, alive := s.of.enter(r.Context())
	if !alive {
		done()
		noSession().write(w)
		return
	}
	caller = sender(r, caller)
	// The call hangs on the stream that will carry its answer, not on this POST, which is answered at once.
	ctx := identity.With(h.MCP.WithContext(s.of.ctx, s), caller)
	finish := func() {
		defer done()
		defer s.of.leave()
		h.answer(ctx, s, m)
	}
	w.WriteHeader(http.StatusAccepted)
	if m.Method == string(mcp.MethodInitialize) || !m.isRequest() {
		finish() // in the order sent: what follows builds on these
		return
	}
	go finish()
}

// streamOf finds the stream that r names among p's own.
func (h *httpHandler) streamOf(r *http.Request, p identity.Principal) (*sseStream, *fault) {
	id := r.URL.Query().Get("sessionId")
	if id == "" {
		return nil, badRequest(400, "this request needs the sessionId that /sse gave", "Open /sse first and post to the address it names.")
	}
	if _, foreign := h.sessions.find(id, p); foreign {
		h.misused(r, p, "sse")
		return nil, noSession()
	}
	v, ok := h.streams.Load(id)
	if !ok || v.(*sseStream).of.principal != p {
		return nil, noSession()
	}
	return v.(*sseStream), nil
}

// answer runs one message and puts its answer on the stream.
func (h *httpHandler) answer(ctx context.Context, s *sseStream, m *httpMessage) {
	if m.isAnswer() {
		return // we ask nothing over SSE, so there is nothing that this could answer
	}
	reply := h.handle(ctx, m)
	if reply == nil {
		return
	}
	select {
	case s.answers <- reply:
	case <-ctx.Done():
	}
}

func (h *httpHandler) handle(ctx context.Context, m *httpMessage) (reply []byte) {
	defer func() {
		if v := recover(); v != nil {
			reply = (&rpcError{mcp.INTERNAL_ERROR, "internal error " + h.logPanic(v, "SSE "+m.Method)}).line(m.ID)
		}
	}()
	if m.modern && m.isRequest() {
		// In plain words and with no code of the modern era: a client of both eras takes this for an older server
		// and falls back to the handshake.
		return (&rpcError{mcp.INVALID_REQUEST, "SSE serves protocol revisions up to 2025-11-25: begin with initialize, or use /mcp"}).line(m.ID)
	}
	answer := neutral(h.Log, h.MCP.HandleMessage(ctx, m.body))
	if answer == nil {
		return nil
	}
	return mustJSON(answer)
}
