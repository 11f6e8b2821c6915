package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keylease/internal/identity"
)

func TestB2ASessionIsItsOwnersAlone(t *testing.T) {
	w := newWeb(t)
	session := w.begin("alice")
	events := w.open("/sse", as("alice")...)
	post := events.next(t)
	id := strings.TrimPrefix(post, "/message?sessionId=")
	if len(id) < 26 || len(session) < len("Mcp-Session-Id: ")+26 {
		t.Fatalf("ids of less than 128 bits: %q, %q", id, session)
	}
	for what, a := range map[string]answer{
		"POST":          w.do("POST", "/mcp", callTool(2, "whoami"), as("bob", session)...),
		"GET":           w.do("GET", "/mcp", "", as("bob", session)...),
		"DELETE":        w.do("DELETE", "/mcp", "", as("bob", session)...),
		"POST /message": w.do("POST", post, callTool(2, "whoami"), as("bob")...),
		"unknown":       w.do("POST", "/mcp", callTool(2, "whoami"), as("bob", "Mcp-Session-Id: "+strings.Repeat("A", 26))...),
		"SSE's at /mcp": w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", "Mcp-Session-Id: "+id)...),
	} {
		wantStatus(t, what, a, 404)
		if a.body != w.do("POST", "/mcp", callTool(2, "whoami"), as("bob", "Mcp-Session-Id: x")...).body {
			t.Errorf("%s: a session of somebody else is told apart from none: %s", what, a.body)
		}
	}
	if !slices.Contains(w.happened(), "misuse bob") || !strings.Contains(w.logged(), `"transport":"http"`) || !strings.Contains(w.logged(), `"transport":"sse"`) {
		t.Errorf("not recorded: %q %s", w.happened(), w.logged())
	}
	if w.ran != 0 {
		t.Errorf("%d calls of B ran in A's session", w.ran)
	}
	wantStatus(t, "a session id alone", w.do("POST", "/mcp", callTool(2, "whoami"), session), 401)
	wantStatus(t, "its owner", w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", session)...), 200)
	wantStatus(t, "its owner over SSE", w.do("POST", post, callTool(2, "whoami"), as("alice")...), 202)
	if got := events.next(t); !strings.Contains(got, "alice|token|sse") {
		t.Errorf("SSE answered %s", got)
	}
	if strings.Contains(w.logged()+strings.Join(w.happened(), " "), id) {
		t.Error("the id that opens a session is what the record calls it")
	}
}

// What the guard in front settles holds in mcp-go too, should the two ever read a request differently.
func TestB2TheSessionManagerIsBoundToThePrincipal(t *testing.T) {
	w := newWeb(t)
	a, _ := w.authenticateFake(t.Context(), "tok-alice", "")
	b, _ := w.authenticateFake(t.Context(), "tok-bob", "")
	s, _ := w.sessions.open(a, "http", claim{})
	if _, err := (boundManager{w.sessions, &httpCall{principal: a}}).Validate(s.id); err != nil {
		t.Error(err)
	}
	for what, m := range map[string]boundManager{"another": {w.sessions, &httpCall{principal: b}}, "nobody": {table: w.sessions}} {
		if _, err := m.Validate(s.id); err == nil {
			t.Errorf("%s may use it", what)
		}
	}
}

func TestB3EqualIDsNeverCross(t *testing.T) {
	w := newWeb(t)
	body, modern := callModern(7, "wait")
	cancelModern := strings.Replace(strings.Replace(body, `"tools/call"`, `"notifications/cancelled"`, 1), `"id":7,`, "", 1)
	cancelModern = strings.Replace(cancelModern, `"arguments":{}`, `"requestId":7`, 1)
	cancelLegacy := `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`

	answers := map[string]chan answer{}
	ask := func(what, path, body string, headers ...string) {
		c := make(chan answer, 1)
		answers[what] = c
		go func() { c <- w.do("POST", path, body, headers...) }()
		<-w.waiting
	}
	alice, bob := w.begin("alice"), w.begin("bob")
	events, others := w.open("/sse", as("alice")...), w.open("/sse", as("bob")...)
	post, otherPost := events.next(t), others.next(t)
	ask("alice modern", "/mcp", body, as("alice", modern...)...)
	ask("bob modern", "/mcp", body, as("bob", modern...)...)
	ask("alice legacy", "/mcp", callTool(7, "wait"), as("alice", alice)...)
	ask("bob legacy", "/mcp", callTool(7, "wait"), as("bob", bob)...)
	ask("alice sse", post, callTool(7, "wait"), as("alice")...)
	ask("bob sse", otherPost, callTool(7, "wait"), as("bob")...)

	for _, who := range []string{"carol", "bob"} {
		w.do("POST", "/mcp", cancelModern, as(who, "MCP-Protocol-Version: 2026-07-28", "Mcp-Method: notifications/cancelled")...)
		w.do("POST", "/mcp", cancelLegacy, as(who, w.begin(who))...)
	}
	select {
	case who := <-w.cancels:
		t.Fatalf("%s's call was cancelled by somebody else", who)
	case <-time.After(50 * time.Millisecond):
	}
	wantStatus(t, "cancelling one's own", w.do("POST", otherPost, cancelLegacy, as("bob")...), 202)
	if who := <-w.cancels; who != "bob" {
		t.Errorf("bob's cancel hit %s", who)
	}
	close(w.release)
	for what, c := range answers {
		who, wire, _ := strings.Cut(what, " ")
		a := <-c
		if wire == "sse" {
			wantStatus(t, what, a, 202)
		} else if !strings.Contains(a.body, `"text":"`+who+`"`) || !strings.Contains(a.body, `"id":7`) {
			t.Errorf("%s was answered %s", what, a.body)
		}
	}
	if got := events.next(t); !strings.Contains(got, `"text":"alice"`) {
		t.Errorf("alice's stream got %s", got)
	}
	if got := others.next(t); !strings.Contains(got, `"text":"bob"`) {
		t.Errorf("bob's stream got %s", got)
	}
}

func TestTheBrokerHearsWhoComesAndGoes(t *testing.T) {
	w := newWeb(t)
	last := func(word string) string {
		all := w.happened()
		if len(all) == 0 || !strings.HasPrefix(all[len(all)-1], word+" ses_") {
			return ""
		}
		return strings.TrimPrefix(all[len(all)-1], word+" ")
	}
	session := w.begin("alice")
	name := last("attach")
	if name == "" {
		t.Fatalf("initialize does not attach: %q", w.happened())
	}
	if strings.Contains(session, name) {
		t.Error("the broker is told the session's id")
	}
	stream := w.open("/mcp", as("alice", session)...)
	stream.end()
	eventually(t, "detach at the end of the stream", func() bool { return last("detach") == name })
	w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", session)...)
	if last("attach") != name {
		t.Errorf("the next request does not attach again: %q", w.happened())
	}

	// A call in flight when its stream closes comes first.
	stream = w.open("/mcp", as("alice", session)...)
	done := make(chan answer, 1)
	go func() { done <- w.do("POST", "/mcp", callTool(3, "wait"), as("alice", session)...) }()
	<-w.waiting
	stream.end()
	time.Sleep(30 * time.Millisecond)
	if last("detach") != "" {
		t.Error("detached before the call in flight had ended")
	}
	close(w.release)
	<-done
	eventually(t, "detach after the call", func() bool { return last("detach") == name })

	stream = w.open("/mcp", as("alice", session)...)
	wantStatus(t, "DELETE", w.do("DELETE", "/mcp", "", as("alice", session)...), 200)
	eventually(t, "detach at DELETE", func() bool { return last("detach") == name })
	for stream.lines.Scan() { // ends, because DELETE cuts the session's streams
	}
	wantStatus(t, "after DELETE", w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", session)...), 404)

	events := w.open("/sse", as("alice")...)
	post := events.next(t)
	name = last("attach")
	events.end()
	eventually(t, "detach at the end of SSE", func() bool { return name != "" && last("detach") == name })
	wantStatus(t, "after SSE", w.do("POST", post, callTool(2, "whoami"), as("alice")...), 404)
}

func TestQuietSessionsLapseWithoutADisconnect(t *testing.T) {
	w := newWeb(t)
	quiet := w.begin("alice")
	listening := w.begin("alice")
	w.open("/mcp", as("alice", listening)...)
	w.mu.Lock()
	w.clock += httpSessionIdle + time.Minute
	w.mu.Unlock()
	w.begin("bob")
	wantStatus(t, "a quiet session", w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", quiet)...), 404)
	wantStatus(t, "one with a stream", w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", listening)...), 200)
	all := strings.Join(w.happened(), " ")
	if strings.Contains(all, "detach") || strings.Count(all, "lapse ") != 1 {
		t.Errorf("the broker heard %s", all)
	}
}

func TestC7SessionsAndCallsAreCapped(t *testing.T) {
	w := newWeb(t)
	p, _ := w.authenticateFake(t.Context(), "tok-alice", "")
	first := w.begin("alice")
	for range maxPartySession {
		if _, f := w.sessions.open(p, "http", claim{}); f != nil {
			t.Fatal(f.Message)
		}
	}
	wantStatus(t, "the session that made room", w.do("POST", "/mcp", callTool(2, "whoami"), as("alice", first)...), 404)
	if n := len(w.sessions.byID); n != maxPartySession {
		t.Errorf("%d sessions", n)
	}
	for _, s := range w.sessions.byID { // all in use: none makes room
		s.enter(t.Context())
	}
	a := w.do("POST", "/mcp", initialize, as("alice")...)
	wantStatus(t, "one session too many", a, 429)
	if a.Header.Get("Retry-After") == "" || !strings.Contains(a.body, `"rate_limited"`) {
		t.Errorf("told %s", a.body)
	}
	w.begin("bob") // others are not held up

	body, modern := callModern(1, "wait")
	var calls sync.WaitGroup
	defer calls.Wait()
	for i := range maxPartyCalls {
		calls.Go(func() {
			w.do("POST", "/mcp", strings.Replace(body, `"id":1`, fmt.Sprintf(`"id":%d`, i+1), 1), as("carol", modern...)...)
		})
		<-w.waiting
	}
	wantStatus(t, "one call too many", w.do("POST", "/mcp", body, as("carol", modern...)...), 429)
	who, headers := callModern(1, "whoami")
	wantStatus(t, "others", w.do("POST", "/mcp", who, as("bob", headers...)...), 200)
	close(w.release)
	eventually(t, "room again", func() bool { return w.do("POST", "/mcp", who, as("carol", headers...)...).StatusCode == 200 })
}

func TestC3ChurningSessionsDoesNotResetTheRate(t *testing.T) {
	w := newWeb(t, func(o *httpOptions) { now := time.Now(); o.Now = func() time.Time { return now } })
	p, _ := w.authenticateFake(t.Context(), "tok-alice", "")
	for range sessionOpenBurst {
		s, f := w.sessions.open(p, "http", claim{})
		if f != nil {
			t.Fatal(f.Message)
		}
		s.finish()
	}
	if _, f := w.sessions.open(p, "http", claim{}); f == nil || f.status != 429 {
		t.Error("sessions can be churned without end")
	}
}

func TestAStreamEndsWithItsToken(t *testing.T) {
	w := newWeb(t, func(o *httpOptions) { o.Heartbeat = 10 * time.Millisecond })
	session := w.begin("alice")
	streams := []*stream{w.open("/sse", as("alice")...), w.open("/mcp", as("alice", session)...)}
	w.revoke("tok-alice")
	for _, s := range streams {
		for s.lines.Scan() {
		}
	}
	eventually(t, "both sessions' holders left", func() bool {
		return len(slices.DeleteFunc(w.happened(), func(e string) bool { return !strings.HasPrefix(e, "detach") })) == 2
	})
}

func TestSSETurnsModernClientsToTheHandshake(t *testing.T) {
	w := newWeb(t)
	events := w.open("/sse", as("alice")...)
	post := events.next(t)
	body, _ := callModern(5, "whoami")
	wantStatus(t, "modern over SSE", w.do("POST", post, body, as("alice")...), 202)
	if got := events.next(t); !strings.Contains(got, `"id":5`) || !strings.Contains(got, `-32600`) {
		t.Errorf("answered %s", got)
	}
	w.do("POST", post, callTool(6, "panic"), as("alice")...)
	if got := events.next(t); strings.Contains(got, "fake-secret") || !strings.Contains(got, `"id":6`) || !strings.Contains(got, "-32603") {
		t.Errorf("a panic over SSE tells %s", got)
	}
	w.do("POST", post, initialize, as("alice")...)
	if got := events.next(t); !strings.Contains(got, `"protocolVersion":"2025-06-18"`) {
		t.Errorf("initialize over SSE: %s", got)
	}
	w.do("POST", post, callTool(8, "whoami"), as("alice")...)
	if got := events.next(t); !strings.Contains(got, "alice|token|sse|raw|ses_") {
		t.Errorf("whoami over SSE: %s", got)
	}
	if w.ran != 1 {
		t.Errorf("%d calls ran", w.ran)
	}
}

func TestManySubjectsDoNotFillTheMemory(t *testing.T) {
	now := time.Now()
	table := &sessionTable{now: func() time.Time { return now }, base: t.Context(), byID: map[string]*httpSession{}, parties: map[string]*party{}}
	busy := identity.Principal{Type: identity.Agent, Name: "busy", Proof: identity.OIDC, By: "oidc:https://idp.example#busy"}
	done, f := table.call(busy)
	if f != nil {
		t.Fatal(f)
	}
	for i := range 3 * manyParties {
		end, f := table.call(identity.Principal{Type: identity.Agent, Name: fmt.Sprintf("ci-%d", i), Proof: identity.OIDC, By: fmt.Sprintf("oidc:https://idp.example#%d", i)})
		if f != nil {
			t.Fatal(f)
		}
		end()
	}
	if n := len(table.parties); n > manyParties+1 || table.parties[busy.RateKey()] == nil || len(table.parties[busy.RateKey()].calls) != 1 {
		t.Errorf("%d principals are remembered, the busy one as %+v", n, table.parties[busy.RateKey()])
	}
	done()
}

// Ten principals that hold all sessions there can be, each with a stream that is never quiet, keep nobody out: who has
// the most loses the oldest. Whose few are quiet keeps them.
func TestSessionsInUseMakeRoomForThoseWhoHaveFew(t *testing.T) {
	w := newWeb(t)
	who := func(i int) identity.Principal {
		p, _ := w.authenticateFake(t.Context(), fmt.Sprintf("tok-%d", i), "")
		return p
	}
	quiet, f := w.sessions.open(who(-1), "http", claim{})
	if f != nil {
		t.Fatal(f.Message)
	}
	for i := range maxHTTPSessions - 1 {
		s, f := w.sessions.open(who(i%10), "sse", claim{})
		if f != nil || !s.openStream(t.Context()) {
			t.Fatal(i, f)
		}
	}
	for range 5 {
		if _, f := w.sessions.open(who(-2), "http", claim{}); f != nil {
			t.Fatalf("%d %s", f.status, f.Message)
		}
	}
	if got, _ := w.sessions.find(quiet.id, who(-1)); got == nil {
		t.Error("who has one session that is quiet lost it to those who have a hundred")
	}
	if n := len(w.sessions.byID); n != maxHTTPSessions {
		t.Errorf("%d sessions", n)
	}
	if !slices.ContainsFunc(w.happened(), func(e string) bool { return strings.HasPrefix(e, "lapse ") }) {
		t.Error("the broker did not hear that sessions lapsed")
	}
}
