package server

import (
	"strings"
	"testing"
	"time"

	"keylease/internal/federation"
	"keylease/internal/issuertest"
)

// newForeignWeb is a web that lets in, as "ci/robot-1", whom the issuer sends.
func newForeignWeb(t *testing.T, change ...func(*httpOptions)) (*web, *issuertest.Issuer) {
	t.Helper()
	idp := issuertest.New(t)
	d, err := federation.New(federation.Config{Resource: "http://127.0.0.1/mcp", Issuers: []federation.Issuer{{Issuer: idp.URL,
		Identities: []federation.Mapping{{Match: map[string][]string{"sub": {"robot-*"}}, Name: "ci/{sub}"}}}}}, federation.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return newWeb(t, append(change, func(o *httpOptions) { o.Foreign, o.Resource = d, "http://127.0.0.1/mcp" })...), idp
}

func TestAStreamEndsWithTheTokenThatOpenedIt(t *testing.T) {
	w, idp := newForeignWeb(t) // its heartbeat is far away
	token := func(life time.Duration) string {
		return "Authorization: Bearer " + idp.Token(idp.Good("http://127.0.0.1/mcp", time.Now(), issuertest.Claims{"exp": time.Now().Add(life).Unix()}))
	}
	begun := w.do("POST", "/mcp", initialize, token(time.Hour))
	session := "Mcp-Session-Id: " + begun.Header.Get("Mcp-Session-Id")
	wantStatus(t, "initialize", begun, 200)
	short, long := token(2500*time.Millisecond), token(time.Hour) // exp counts in whole seconds
	streams := map[string]*stream{"/sse": w.open("/sse", short), "/mcp": w.open("/mcp", short, session)}
	lasting := w.open("/sse", long)
	lasting.next(t)
	begin := time.Now()
	for path, s := range streams {
		for s.lines.Scan() {
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the stream of %s ended after %s", path, took)
		}
	}
	wantStatus(t, "the session, with the next token", w.do("POST", "/mcp", callTool(2, "whoami"), long, session), 200)
	select {
	case <-lasting.ended():
		t.Error("a stream ended whose token is good")
	case <-time.After(100 * time.Millisecond):
	}
}

func (s *stream) ended() <-chan struct{} {
	over := make(chan struct{})
	go func() {
		for s.lines.Scan() {
		}
		close(over)
	}()
	return over
}

func TestAForeignTokenIsWhoItSaysOverEveryTransport(t *testing.T) {
	w, idp := newForeignWeb(t)
	body, modern := callModern(1, "whoami")
	token := idp.Token(idp.Good("http://127.0.0.1/mcp", time.Now(), nil))
	a := w.do("POST", "/mcp", body, append(modern, "Authorization: Bearer "+token)...)
	if a.StatusCode != 200 || !strings.Contains(a.body, "ci/robot-1|oidc|http") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	// What is ours goes on as before.
	wantStatus(t, "our own token", w.do("POST", "/mcp", body, append(modern, as("alice")...)...), 200)
	wantStatus(t, "two tokens", w.do("POST", "/mcp", body, append(modern, "Authorization: Bearer "+token+", Bearer "+token)...), 401)
	wantStatus(t, "a token that is too long", w.do("POST", "/mcp", body, append(modern, "Authorization: Bearer "+token+strings.Repeat("a", federation.MaxToken))...), 401)
}
