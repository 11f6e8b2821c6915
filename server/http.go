package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/federation"
	"keylease/internal/identity"
	"keylease/internal/lease"
)

// httpOptions is what HTTP needs to know of the rest. Broker fills in those of the funcs that are nil.
type httpOptions struct {
	Broker *lease.Broker
	MCP    *mcpserver.MCPServer // the three tools; shared with every other transport
	Log    zerolog.Logger

	Addr           string   // where it listens; its host is one to be called by
	AllowedHosts   []string // beside that and loopback; with or without port
	AllowedOrigins []string // beside the server's own; whole, as a browser sends them: "https://host:port"

	// Foreign says whom tokens of other issuers, and certificates, stand for; nil: for nobody. Resource is what we are
	// called in their tokens, "" where there are none. TLS is nil on plain HTTP.
	Foreign  *federation.Directory
	Resource string
	TLS      *tlsKeeper

	// Authenticate turns a bearer token into its principal. It is called with "" where none was sent, so that the
	// attempt is counted; whatever it answers then, nobody is let in.
	Authenticate func(ctx context.Context, token, source string) (identity.Principal, error)
	Attach       func(context.Context, identity.Caller)    // a session is alive
	Detach       func(ctx context.Context, session string) // its holder left
	Ready        func() (status any, ok bool)              // for /readyz, which anybody may read
	Called       func()                                    // optional: somebody known made a request
	// Misused records that a caller, at source, named a session that belongs to somebody else. Optional.
	Misused func(ctx context.Context, who identity.Caller, source string)
	// AuthFailed records that somebody could not prove who they are, or that they may do this.
	AuthFailed func(context.Context, lease.AuthFailure)
	// Lapse says that a session was forgotten for being quiet, which is not a disconnect: its leases go on. Optional.
	Lapse func(session string)

	Limits Limits // zero: none

	Now       func() time.Time // optional: time.Now
	Heartbeat time.Duration    // optional, 25 s: how often a stream is written to and its token looked at again
}

func (o *httpOptions) complete() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 25 * time.Second
	}
	if o.Called == nil {
		o.Called = func() {}
	}
	b := o.Broker
	if o.AuthFailed == nil && b == nil {
		o.AuthFailed = func(context.Context, lease.AuthFailure) {}
	}
	if b == nil {
		return
	}
	if o.Authenticate == nil {
		o.Authenticate = b.Authenticate
	}
	if o.Attach == nil {
		o.Attach = b.Attach
	}
	if o.Detach == nil {
		o.Detach = b.Detach
	}
	if o.Misused == nil {
		o.Misused = b.Misused
	}
	if o.AuthFailed == nil {
		o.AuthFailed = b.AuthFailed
	}
	if o.Lapse == nil {
		o.Lapse = b.Lapse
	}
	if o.Ready == nil {
		o.Ready = func() (any, bool) { return readiness(b.Activity(), b.LookAtPolicy(), o.TLS.status()) }
	}
}

// readiness tells anybody who asks as much as a load balancer needs: why something is wrong is for the log and the
// CLI, because faults name files, rules and credentials.
func readiness(a lease.Activity, p lease.PolicyStatus, overTLS string) (any, bool) {
	s := struct {
		Ready bool   `json:"ready"`
		Store string `json:"store"` // ok, nearly full, full, read-only, failing, not answering
		// StoreSince is when that began.
		StoreSince time.Time `json:"store_since,omitzero"`
		Policy     string    `json:"policy"`
		TLS        string    `json:"tls,omitempty"`
		// A daemon that is frozen is ready: it lists, releases and obeys, and another would be as frozen.
		Lending string `json:"lending"`
		// Clock says how far the system's clock is behind the one that leases end by.
		Clock string `json:"clock"`
	}{Ready: a.Healthy, Store: "ok", Policy: "none: what a credential admits is allowed", TLS: overTLS, Lending: "open", Clock: "ok"}
	if a.Frozen != nil {
		s.Lending = "frozen"
	}
	if a.Skew >= time.Second {
		s.Clock = fmt.Sprintf("the system's clock is %s behind", a.Skew.Round(time.Second))
	}
	if !a.Healthy {
		s.Store, s.StoreSince = a.Store, a.Since.UTC().Truncate(time.Second)
	}
	switch {
	case p.Problem != "":
		s.Policy = "the file on disk is not in force: see the log or 'keylease policy check'"
	case p.Present:
		s.Policy = "in force"
	}
	return s, s.Ready
}

// httpHandler serves Streamable HTTP at /mcp, HTTP+SSE at /sse and /message, and /healthz and /readyz. Between the
// network and mcp-go it settles, in this order: is this a request that a program may make (admissible), who sends
// it (authenticate), may they have one more in flight, is it JSON that can be read in only one way (strictJSON),
// and is the session that it names their own.
type httpHandler struct {
	httpOptions
	sessions   *sessionTable
	streamable *mcpserver.StreamableHTTPServer
	streams    sync.Map // SSE: session id → *sseStream
	routes     *http.ServeMux
	closing    context.Context // ends when the server stops; streams end with it
	stop       context.CancelFunc
	bodyTime   time.Duration // how long a body may take to come
	writeTime  time.Duration // how long a client may take nothing of an answer
	bounds     *webBounds
}

func newHTTPHandler(o httpOptions) *httpHandler {
	o.complete()
	if host, _, err := net.SplitHostPort(o.Addr); err == nil && host != "" && !isLoopbackName(host) && !net.ParseIP(host).IsUnspecified() {
		o.AllowedHosts = append(slices.Clone(o.AllowedHosts), host)
	}
	h := &httpHandler{httpOptions: o, routes: http.NewServeMux(), bodyTime: 10 * time.Second, writeTime: httpWriteTime,
		bounds: newWebBounds(o.Limits, o.Now)}
	if own := h.resourceURL().Host; own != "" {
		h.AllowedHosts = append(slices.Clone(h.AllowedHosts), own)
	}
	h.closing, h.stop = context.WithCancel(context.Background())
	h.sessions = &sessionTable{now: o.Now, base: h.closing, attach: o.Attach, detach: h.detach, lapsed: h.lapsed,
		byID: map[string]*httpSession{}, parties: map[string]*party{}}
	h.MCP.Use(standIn)
	h.streamable = h.newStreamable()

	h.routes.HandleFunc("/mcp", h.senderKnown(h.serveMCP, http.MethodPost, http.MethodGet, http.MethodDelete))
	h.routes.HandleFunc("/sse", h.senderKnown(h.serveSSE, http.MethodGet))
	h.routes.HandleFunc("/message", h.senderKnown(h.serveMessage, http.MethodPost))
	h.routes.HandleFunc("/healthz", h.getOnly(h.serveHealth))
	h.routes.HandleFunc("/readyz", h.getOnly(h.serveReady))
	h.routeMetadata()
	h.routes.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.turnAway(w, r, notFound("there is nothing here", "MCP is served at /mcp, or at /sse for older clients."))
	})
	return h
}

// newHTTPServer puts limits on time and size around h. No WriteTimeout: streams are written to for hours; they set
// deadlines of their own. Shutdown cuts the streams and waits for calls in flight.
func newHTTPServer(h *httpHandler) *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: silent(h.Log), ConnContext: h.bounds.opened, ConnState: h.bounds.changed}
	s.RegisterOnShutdown(h.Close)
	return s
}

// listenHTTP listens on addr. Without TLS only loopback will do: tokens and secrets would travel in the clear.
func listenHTTP(ctx context.Context, addr string, overTLS bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("reading the HTTP address %q: %w", addr, err)
	}
	if !overTLS && !isLoopbackName(host) {
		return nil, fmt.Errorf("the HTTP address %q is not a loopback one: beyond loopback keylease needs TLS (tls.cert and tls.key)", addr)
	}
	l, err := new(net.ListenConfig).Listen(ctx, family(host), addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return l, nil
}

// family is the network to listen on for host. On "tcp" the unspecified address of one family would be that of both.
func family(host string) string {
	switch ip, err := netip.ParseAddr(host); {
	case err != nil: // a name, or nothing
		return "tcp"
	case ip.Is4():
		return "tcp4"
	default:
		return "tcp6"
	}
}

// asAsked is where l listens, in the words in which that was asked for: a port of 0 became another, a name stays one.
func asAsked(addr string, l net.Listener) string {
	host, _, err := net.SplitHostPort(addr)
	at, is := l.Addr().(*net.TCPAddr)
	if err != nil || !is {
		return l.Addr().String()
	}
	return net.JoinHostPort(host, strconv.Itoa(at.Port))
}

// Close ends every stream. Calls in flight go on; http.Server.Shutdown waits for them.
func (h *httpHandler) Close() { h.stop() }

func (h *httpHandler) ServeHTTP(inner http.ResponseWriter, r *http.Request) {
	w := &watchedWriter{ResponseWriter: inner, longest: h.writeTime}
	defer h.recovered(w, r)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	f := h.admissible(r)
	if f == nil {
		f = h.limitReading(w, r)
	}
	if f != nil {
		h.turnAway(w, r, f)
		return
	}
	h.routes.ServeHTTP(w, r)
}

// senderKnown lets next see only requests of these methods whose sender is known.
func (h *httpHandler) senderKnown(next func(http.ResponseWriter, *http.Request, identity.Principal), methods ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(methods, r.Method) {
			h.turnAway(w, r, methodNotAllowed(strings.Join(methods, ", ")))
			return
		}
		r, p, f := h.authenticate(r)
		if f != nil {
			h.turnAway(w, r, f)
			return
		}
		done, f := h.inTurn(r, p)
		if f != nil {
			f.refuse(w, r)
			return
		}
		defer done()
		h.Called()
		next(w, r, p)
	}
}

// getOnly lets next see GET and HEAD.
func (h *httpHandler) getOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.turnAway(w, r, methodNotAllowed("GET, HEAD"))
			return
		}
		if !h.unhurried(r) {
			rateLimited("too many requests came from this address", time.Second).refuse(w, r)
			return
		}
		next(w, r)
	}
}

func (h *httpHandler) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n")
}

func (h *httpHandler) serveReady(w http.ResponseWriter, _ *http.Request) {
	status, ok := h.Ready()
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(status)
}

// httpMessage is a JSON-RPC message as far as it is read before mcp-go sees it: enough to tell its era and session.
type httpMessage struct {
	envelope
	body   []byte
	modern bool   // it says itself that it needs no handshake
	tool   string // tools/call: what is called
	client claim  // of a message that says
}

// readMessage reads the body as the one thing that it can mean, and gives it back to r for mcp-go. What it refuses
// it answers, and returns nil.
func readMessage(w http.ResponseWriter, r *http.Request) *httpMessage {
	body, f := readBody(w, r)
	if f != nil {
		f.write(w)
		return nil
	}
	e, bad := parseEnvelope(body)
	if bad != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(bad.line(e.ID))
		return nil
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	m := &httpMessage{envelope: e, body: body}
	m.readParams()
	return m
}

// readParams looks through the params once. What is not of the type that it should be is as if it were not there: mcp-go,
// which reads it next, refuses it.
func (m *httpMessage) readParams() {
	var params struct {
		Name any `json:"name"`
		Meta struct {
			Version any `json:"io.modelcontextprotocol/protocolVersion"`
		} `json:"_meta"`
	}
	_ = json.Unmarshal(m.Params, &params) // what can be read is
	version, _ := params.Meta.Version.(string)
	m.modern = mcp.IsModernProtocol(version)
	if m.Method == string(mcp.MethodToolsCall) {
		m.tool, _ = params.Name.(string)
	}
	if m.modern || m.Method == string(mcp.MethodInitialize) {
		m.client.Name, m.client.Version = claimedClient(&m.envelope)
	}
}

// detach tells the broker that a session's holder left, unless it is we who leave: then the next start knows.
func (h *httpHandler) detach(session string) {
	if h.closing.Err() == nil {
		h.Detach(context.WithoutCancel(h.closing), session)
	}
}

// misused records that p named somebody else's session; what p is told is what a session that never was is told.
func (h *httpHandler) misused(r *http.Request, p identity.Principal, transport string) {
	h.Log.Warn().Str("identity", p.Name).Str("by", p.By).Str("source", network(r.RemoteAddr)).Str("transport", transport).
		Msg("a caller named an MCP session that belongs to somebody else; it was told there is none")
	if h.Misused != nil {
		h.Misused(r.Context(), identity.Caller{Principal: p, Transport: transport}, network(r.RemoteAddr))
	}
}
