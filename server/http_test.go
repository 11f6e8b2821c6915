package server

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/lease"
)

func TestB1IdentityIsTheTokensOverEveryTransport(t *testing.T) {
	w := newWeb(t)
	for kind, c := range w.clients("alice") {
		if err := c.Start(t.Context()); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		var hello mcp.InitializeRequest
		hello.Params.ProtocolVersion, hello.Params.ClientInfo = mcp.LATEST_PROTOCOL_VERSION, mcp.Implementation{Name: "bob", Version: "1"}
		if _, err := c.Initialize(t.Context(), hello); err != nil {
			t.Fatalf("%s: initialize: %v", kind, err)
		}
		var call mcp.CallToolRequest
		call.Params.Name = "whoami"
		call.Params.Arguments = map[string]any{"identity": "root", "agent": "root"}
		res, err := c.CallTool(t.Context(), call)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		got := strings.Split(res.Content[0].(mcp.TextContent).Text, "|")
		wire := map[string]string{"legacy": "http", "modern": "http", "sse": "sse"}[kind]
		if got[0] != "alice" || got[1] != "token" || got[2] != wire || got[3] != "bob" {
			t.Errorf("%s: called as %q", kind, got)
		}
		if bound := got[4] != ""; bound != (kind != "modern") {
			t.Errorf("%s: session %q", kind, got[4])
		}
		_ = c.Close()
	}
	// mcp-go's client sends its DELETE without the token, so that only the stream's end is heard of.
	eventually(t, "SSE's holder left", func() bool { return strings.Contains(strings.Join(w.happened(), "\n"), "detach ") })
}

func TestB6NoTokenNoEntry(t *testing.T) {
	w := newWeb(t)
	body, modern := callModern(1, "whoami")
	for name, header := range map[string][]string{
		"none": nil, "empty": {"Authorization: Bearer "}, "unknown": {"Authorization: Bearer nobody"},
		"basic": {"Authorization: Basic tok-alice"}, "bare": {"Authorization: tok-alice"},
		"two in one": {"Authorization: Bearer tok-alice, Bearer tok-bob"}, "huge": {"Authorization: Bearer tok-" + strings.Repeat("a", 600)},
		"jwt alg none": {"Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
	} {
		for _, at := range []struct{ method, path, body string }{{"POST", "/mcp", body}, {"GET", "/mcp", ""}, {"DELETE", "/mcp", ""},
			{"GET", "/sse", ""}, {"POST", "/message?sessionId=x", body}} {
			a := w.do(at.method, at.path, at.body, append(header, modern...)...)
			wantStatus(t, name+" "+at.method+at.path, a, 401)
			want := "Bearer"
			if header != nil {
				want = `Bearer error="invalid_token"`
			}
			if got := a.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("%s: challenged with %q", name, got)
			}
			var told struct{ Error struct{ Code, Hint string } }
			if json.Unmarshal([]byte(a.body), &told) != nil || told.Error.Code != "unauthenticated" || told.Error.Hint == "" {
				t.Errorf("%s: told %s", name, a.body)
			}
		}
	}
	if w.ran != 0 || len(w.happened()) != 0 {
		t.Errorf("something ran: %d calls, %q", w.ran, w.happened())
	}
	if w.sources[0] != "127.0.0.1" {
		t.Errorf("failures are counted for %q", w.sources[0])
	}
	wantStatus(t, "store down", w.do("POST", "/mcp", body, "Authorization: Bearer broken"), 503)
	w.revoke("tok-alice")
	wantStatus(t, "revoked", w.do("POST", "/mcp", body, as("alice", modern...)...), 401)
}

func TestHTTPBeyondLoopbackIsRefused(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:8700", "example.com:80"} {
		if l, err := listenHTTP(t.Context(), addr, false); err == nil {
			_ = l.Close()
			t.Errorf("listens on %s without TLS", addr)
		}
	}
}

func TestHTTPListensOnTheAddressesThatWereAskedFor(t *testing.T) {
	for addr, v6 := range map[string]bool{"0.0.0.0:0": false, "127.0.0.1:0": false, "[::]:0": true, "[::1]:0": true} {
		l, err := listenHTTP(t.Context(), addr, true)
		if err != nil && v6 {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		for host, own := range map[string]bool{"127.0.0.1": !v6, "::1": v6} {
			conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err == nil {
				_ = conn.Close()
			}
			if (err == nil) != own {
				t.Errorf("%s answers at %s: %v", addr, host, err == nil)
			}
		}
		if told, want := asAsked(addr, l), strings.TrimSuffix(addr, "0")+port; told != want {
			t.Errorf("%s is told as %s, want %s", addr, told, want)
		}
		_ = l.Close()
	}
}

func TestHTTPHealthAndReadiness(t *testing.T) {
	w := newWeb(t)
	if a := w.do("GET", "/healthz", ""); a.StatusCode != 200 || a.body != "ok\n" {
		t.Errorf("healthz: %d %q", a.StatusCode, a.body)
	}
	wantStatus(t, "ready", w.do("GET", "/readyz", ""), 200)
	w.revoke("readiness")
	wantStatus(t, "not ready", w.do("GET", "/readyz", ""), 503)
	wantStatus(t, "elsewhere", w.do("GET", "/debug/pprof/", ""), 404)

	s, _ := readiness(lease.Activity{Healthy: true}, lease.PolicyStatus{Problem: "policy.yaml:3: no such rule aws-prod"}, "")
	text, _ := json.Marshal(s)
	if strings.Contains(string(text), "aws-prod") || !strings.Contains(string(text), "not in force") {
		t.Errorf("readyz says %s", text)
	}
	s, ok := readiness(lease.Activity{Healthy: true, Frozen: &lease.Frozen{Reason: "laptop stolen"}}, lease.PolicyStatus{}, "")
	text, _ = json.Marshal(s)
	if !ok || strings.Contains(string(text), "laptop") || !strings.Contains(string(text), `"lending":"frozen"`) {
		t.Errorf("readyz of a frozen daemon says %s", text)
	}
}

func TestHTTPPanicsAndErrorsSayNothing(t *testing.T) {
	w := newWeb(t)
	session := w.begin("alice")
	for what, a := range map[string]answer{
		"a tool":    w.do("POST", "/mcp", callTool(2, "panic"), as("alice", session)...),
		"the guard": w.do("POST", "/mcp", callTool(2, "whoami"), "Authorization: Bearer explode"),
		"an error":  w.do("POST", "/mcp", callTool(2, "fail"), as("alice", session)...),
	} {
		if what != "an error" {
			wantStatus(t, what, a, 500)
		}
		var told struct{ Error struct{ ID, Message string } }
		_ = json.Unmarshal([]byte(a.body), &told)
		id := told.Error.ID
		if id == "" {
			id = strings.TrimPrefix(told.Error.Message, "internal error ")
		}
		if id == "" || !strings.Contains(w.logged(), id) || strings.Contains(a.body, "fake-secret") {
			t.Errorf("%s: told %s", what, a.body)
		}
	}
	if strings.Contains(w.logged(), "fake-secret-in-a-panic") {
		t.Error("the log repeats a panic's text")
	}
	wantStatus(t, "and goes on", w.do("POST", "/mcp", callTool(3, "whoami"), as("alice", session)...), 200)
}

func TestHTTPShutdownCutsStreamsAndLetsCallsFinish(t *testing.T) {
	w := newWeb(t)
	session := w.begin("alice")
	w.open("/sse", as("alice")...)
	w.open("/mcp", as("alice", session)...)
	done := make(chan answer, 1)
	go func() { done <- w.do("POST", "/mcp", callTool(2, "wait"), as("alice", session)...) }()
	<-w.waiting
	stopped := make(chan error, 1)
	go func() { stopped <- w.srv.Shutdown(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	close(w.release)
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Second):
		t.Fatal("streams hold the server up")
	}
	wantStatus(t, "the call in flight", <-done, 200)
	if got := strings.Join(w.happened(), " "); strings.Contains(got, "detach") {
		t.Errorf("a server that stops says its clients left: %s", got)
	}
	if _, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("still listening")
	}
}
