package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
)

// web is the HTTP side on a real port, with the far side faked: tokens "tok-NAME", and tools that tell who called.
type web struct {
	*httpHandler
	t    *testing.T
	url  string
	addr string
	srv  *http.Server

	mu      sync.Mutex
	log     bytes.Buffer
	events  []string // "attach SESSION", "detach SESSION", "misuse NAME"
	sources []string
	revoked map[string]bool
	clock   time.Duration
	ran     int           // calls of the tool whoami
	waiting chan string   // callers inside the tool wait
	cancels chan string   // callers whose wait was cancelled
	release chan struct{} // ends every wait
}

func newWeb(t *testing.T, change ...func(*httpOptions)) *web {
	w := &web{t: t, revoked: map[string]bool{}, waiting: make(chan string, 200), cancels: make(chan string, 200), release: make(chan struct{})}
	o := httpOptions{MCP: w.tools(), Log: zerolog.New(zerolog.SyncWriter(w)), Authenticate: w.authenticateFake,
		Attach:  func(_ context.Context, c identity.Caller) { w.note("attach " + c.Session) },
		Detach:  func(_ context.Context, s string) { w.note("detach " + s) },
		Misused: func(_ context.Context, c identity.Caller, _ string) { w.note("misuse " + c.Name) },
		Lapse:   func(s string) { w.note("lapse " + s) },
		Ready: func() (any, bool) {
			return map[string]bool{"ready": !w.isRevoked("readiness")}, !w.isRevoked("readiness")
		},
		Now: func() time.Time { return time.Now().Add(w.later()) }}
	for _, c := range change {
		c(&o)
	}
	w.httpHandler = newHTTPHandler(o)
	l, err := listenHTTP(t.Context(), "127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	w.srv, w.addr, w.url = newHTTPServer(w.httpHandler), l.Addr().String(), "http://"+l.Addr().String()
	go func() { _ = w.srv.Serve(l) }()
	t.Cleanup(func() { _ = w.srv.Close(); w.Close() })
	return w
}

func (w *web) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *web) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

func (w *web) note(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.events); n == 0 || w.events[n-1] != event {
		w.events = append(w.events, event)
	}
}

func (w *web) happened() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.events...)
}

func (w *web) later() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *web) revoke(token string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked[token] = true
}

func (w *web) isRevoked(token string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[token]
}

func (w *web) authenticateFake(_ context.Context, token, source string) (identity.Principal, error) {
	w.mu.Lock()
	w.sources = append(w.sources, source)
	w.mu.Unlock()
	name, ok := strings.CutPrefix(token, "tok-")
	switch {
	case token == "explode":
		panic("fake-secret-in-a-panic")
	case token == "broken":
		return identity.Principal{}, &lease.Refusal{Code: lease.Unavailable, Message: "no store"}
	case !ok || w.isRevoked(token):
		return identity.Principal{}, fmt.Errorf("%w: unknown", lease.ErrUnauthenticated)
	}
	return identity.Principal{Type: identity.Agent, Name: name, Proof: identity.Token, By: "token:tk_" + name}, nil
}

func (w *web) tools() *mcpserver.MCPServer {
	s := mcpserver.NewMCPServer("test", "0", mcpserver.WithToolCapabilities(false))
	s.AddTool(mcp.NewTool("whoami"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		w.mu.Lock()
		w.ran++
		w.mu.Unlock()
		c, ok := identity.From(ctx)
		if !ok {
			return mcp.NewToolResultText("nobody"), nil
		}
		return mcp.NewToolResultText(fmt.Sprintf("%s|%s|%s|%s|%s", c.Name, c.Proof, c.Transport, c.ClientName, c.Session)), nil
	})
	s.AddTool(mcp.NewTool("wait"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		c, _ := identity.From(ctx)
		w.waiting <- c.Name
		select {
		case <-ctx.Done():
			w.cancels <- c.Name
		case <-w.release:
		}
		return mcp.NewToolResultText(c.Name), nil
	})
	s.AddTool(mcp.NewTool("big"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText(strings.Repeat("x", 8<<20)), nil
	})
	s.AddTool(mcp.NewTool("panic"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		panic("fake-secret-in-a-panic")
	})
	s.AddTool(mcp.NewTool("fail"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return nil, fmt.Errorf("fake-secret-in-an-error")
	})
	return s
}

// answer is a response that was read whole.
type answer struct {
	*http.Response
	body string
}

// do sends one request and reads the whole answer, which must not be a stream; headers are "Name: value", and "Host: …" sets the host.
func (w *web) do(method, path, body string, headers ...string) answer {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	res, err := http.DefaultTransport.RoundTrip(w.request(method, path, body, headers...).WithContext(ctx))
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	for name := range res.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			w.t.Errorf("%s %s: answered with %s", method, path, name)
		}
	}
	return answer{res, string(b)}
}

func (w *web) request(method, path, body string, headers ...string) *http.Request {
	w.t.Helper()
	var from io.Reader
	if body != "" {
		from = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, from)
	if err != nil {
		w.t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	return r
}

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw\u202e","version":"1"}}}`

func callTool(id int, tool string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{}}}`, id, tool)
}

func callModern(id int, tool string) (body string, headers []string) {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{},"_meta":{`+
			`"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},`+
			`"io.modelcontextprotocol/clientInfo":{"name":"modern","version":"2"}}}}`, id, tool),
		[]string{"MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", "Mcp-Name: " + tool}
}

func as(name string, more ...string) []string {
	return append([]string{"Authorization: Bearer tok-" + name}, more...)
}

// begin opens a handshake session over Streamable HTTP and returns its header.
func (w *web) begin(name string) string {
	w.t.Helper()
	a := w.do("POST", "/mcp", initialize, as(name)...)
	id := a.Header.Get("Mcp-Session-Id")
	if a.StatusCode != 200 || id == "" {
		w.t.Fatalf("initialize: %d %s", a.StatusCode, a.body)
	}
	return "Mcp-Session-Id: " + id
}

// stream is an open event stream.
type stream struct {
	*http.Response
	lines *bufio.Scanner
	end   context.CancelFunc
}

func (w *web) open(path string, headers ...string) *stream {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	w.t.Cleanup(cancel)
	res, err := http.DefaultTransport.RoundTrip(w.request("GET", path, "", headers...).WithContext(ctx))
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode != 200 {
		w.t.Fatalf("GET %s: %d", path, res.StatusCode)
	}
	if res.Header.Get("Access-Control-Allow-Origin") != "" {
		w.t.Error("a stream lets web pages in")
	}
	return &stream{res, bufio.NewScanner(res.Body), cancel}
}

// next returns the data of the next event.
func (s *stream) next(t *testing.T) string {
	t.Helper()
	for s.lines.Scan() {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			return data
		}
	}
	t.Fatalf("the stream ended: %v", s.lines.Err())
	return ""
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("did not happen: %s", what)
}

func wantStatus(t *testing.T, what string, a answer, status int) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("%s: got %d, want %d: %s", what, a.StatusCode, status, a.body)
	}
}

// clients are mcp-go's own, one per transport and era.
func (w *web) clients(name string) map[string]*client.Client {
	h := map[string]string{"Authorization": "Bearer tok-" + name, "X-Identity": "root"}
	streamable := func() transport.Interface {
		tr, err := transport.NewStreamableHTTP(w.url+"/mcp", transport.WithHTTPHeaders(h))
		if err != nil {
			w.t.Fatal(err)
		}
		return tr
	}
	events, err := transport.NewSSE(w.url+"/sse", transport.WithHeaders(h))
	if err != nil {
		w.t.Fatal(err)
	}
	return map[string]*client.Client{
		//lint:ignore SA1019 the handshake that it stands for is what is tested
		"legacy": client.NewClient(streamable(), client.WithLegacyProtocolOnly()),
		"modern": client.NewClient(streamable()),
		"sse":    client.NewClient(events),
	}
}
