//go:build linux

package promises

import (
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// shell runs a script below a shell of its own, in the home, $0 being keylease.
func (w *world) shell(script string) outcome {
	w.t.Helper()
	return w.run(exec.Command("/bin/sh", "-c", script, w.bin), "")
}

// TestB1WhoAsksIsFixedPerConnection: a token beats --as beats clientInfo; a clientInfo that changes later, or a name in
// any place of a request, is recorded at most.
func TestB1WhoAsksIsFixedPerConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	token, _ := w.token("by-token")
	for _, c := range []struct {
		spec spec
		name string
	}{
		{spec{client: "Some Client 2.0!"}, "some-client-2.0"},
		{spec{client: "codex-mcp-client"}, "codex"},
		{spec{client: "gemini-cli-mcp-client-v7"}, "gemini"},
		{spec{client: "Visual Studio Code"}, "vscode"},
		{spec{client: "\u202e../../root\u0000"}, "root"},
		{spec{client: ""}, "local"},
		{spec{client: "Modern Client", modern: true}, "modern-client"},
		{spec{client: "claude-code", flags: []string{"--as", "by-flag"}}, "by-flag"},
		{spec{client: "claude-code", env: []string{"KEYLEASE_AS=by-env"}}, "by-env"},
		{spec{client: "claude-code", flags: []string{"--as", "by-flag"}, env: []string{"KEYLEASE_AS=by-env"}}, "by-flag"},
		{spec{client: "claude-code", flags: []string{"--as", "by-flag"}, env: []string{"KEYLEASE_TOKEN=" + token}}, "by-token"},
	} {
		a := w.agentOf(c.spec)
		id := lend(t, a, "db")
		if got := w.leases()[id].Identity.Name; got != c.name {
			t.Errorf("%+v is %q, want %q", c.spec, got, c.name)
		}
		_, err := a.ask(a.id(), "initialize", args{"protocolVersion": legacy, "capabilities": args{}, "clientInfo": args{"name": "root", "version": "1"}})
		w.must(err)
		if got := call(t, a, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
			t.Errorf("%q lost its lease by calling itself root: %s", c.name, got.raw)
		}
		a.leave()
	}
	if o := w.cli("mcp", "--as", "Not A Name"); o.code != 2 {
		t.Errorf("--as with a name that is none: %s", o)
	}
}

// TestB2SessionsAuthenticateNothing: A's session id with B's token is a session that never was, for every method, and
// goes into the log; without a token it is nothing at all. A's session works on.
func TestB2SessionsAuthenticateNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	tokenA, _ := w.token("alice")
	tokenB, _ := w.token("bob")
	a := w.web(s.addr, tokenA, false)
	session, err := a.open()
	w.must(err)
	stream := w.sse(s.addr, tokenA)
	ping := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"lease_credential","arguments":{"credential":"db"}}}`
	for _, try := range []struct{ method, url, body string }{
		{"POST", a.base + "/mcp", ping}, {"GET", a.base + "/mcp", ""}, {"DELETE", a.base + "/mcp", ""}, {"POST", stream.post, ping},
	} {
		for who, want := range map[string]int{tokenB: 404, "": 401} {
			got, err := do(try.method, try.url, try.body, "Mcp-Session-Id", session, "Mcp-Protocol-Version", legacy, "Authorization", bearer(who))
			w.must(err)
			if got.status != want {
				t.Errorf("%s %s: HTTP %d, want %d: %s", try.method, try.url, got.status, want, got.body)
			}
		}
	}
	w.eventually("the log has all four tries", func() error {
		if n := strings.Count(s.log.String(), "belongs to somebody else"); n != 4 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	lend(t, a, "db")
	lend(t, stream, "db")
	if len(w.leases()) != 2 {
		t.Errorf("want alice's two leases: %v", w.leases())
	}
}

func bearer(token string) string {
	if token == "" {
		return ""
	}
	return "Bearer " + token
}

// TestB3SameIdsNeverCross: two relays and two HTTP agents use the same JSON-RPC ids at the same time while each cancels
// the ids of all: every answer is the caller's own, and every call is answered.
func TestB3SameIdsNeverCross(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("c0", ""), secretOf("c1", ""), secretOf("c2", ""), secretOf("c3", ""))
	type agentWithIDs interface {
		tryAs(id, tool string, a any) (answer, error)
	}
	var agents []agentWithIDs
	var cancel []func(id int) error
	for i := range 2 {
		a := w.agent(fmt.Sprintf("local-%d", i))
		agents = append(agents, a)
		cancel = append(cancel, func(id int) error { return a.send(cancelled(id)) })
	}
	for i := range 2 {
		token, _ := w.token(fmt.Sprintf("web-%d", i))
		c := w.web(s.addr, token, true)
		agents = append(agents, c)
		cancel = append(cancel, func(id int) error {
			_, err := do("POST", c.base+"/mcp", cancelled(id), "Authorization", "Bearer "+c.token,
				"Mcp-Protocol-Version", modern, "Mcp-Method", "notifications/cancelled")
			return err
		})
	}
	const rounds = 25
	ask := func(who, id int) error {
		name := fmt.Sprintf("c%d", who)
		got, err := agents[who].tryAs(fmt.Sprint(id), "lease_credential", args{"credential": name})
		if err == nil && got.get("value") != valueOf(name) {
			err = fmt.Errorf("got %s", got.raw)
		}
		if err != nil {
			return fmt.Errorf("agent %d, id %d: %w", who, id, err)
		}
		return nil
	}
	together(t, len(agents), func(who int) error {
		for id := range rounds {
			if err := ask(who, 1000+id); err != nil {
				return err
			}
		}
		return nil
	})
	// Now two only call, and the other two only cancel whatever those have in flight.
	var now [4]atomic.Int64
	var calling atomic.Int64
	calling.Store(2)
	together(t, 3*len(agents), func(i int) error {
		who := i % len(agents)
		switch {
		case who%2 == 1 && i < len(agents):
			defer calling.Add(-1)
			for id := range 3 * rounds {
				now[who].Store(int64(2000 + id))
				if err := ask(who, 2000+id); err != nil {
					return err
				}
			}
		case who%2 == 0:
			for calling.Load() > 0 {
				for _, victim := range []int{1, 3} {
					if err := cancel[who](int(now[victim].Load())); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

func cancelled(id int) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d,"_meta":{"io.modelcontextprotocol/protocolVersion":%q,"io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"}}}}`, id, modern)
}

// TestB4WebPagesStayOut: a foreign Host or Origin, a cross-site fetch, a form's content type, and a GET with anything in
// it are refused on every path before anything happens, with a valid token even.
func TestB4WebPagesStayOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("alice")
	stream := w.sse(s.addr, token)
	base := "http://" + s.addr
	lease := toolBody("lease_credential", args{"credential": "db"})
	for _, page := range []struct {
		name   string
		header []string
		want   int
	}{
		{"foreign host", []string{"Host", "evil.example"}, 403},
		{"rebound host", []string{"Host", "127.0.0.1.evil.example:8700"}, 403},
		{"foreign origin", []string{"Origin", "https://evil.example"}, 403},
		{"null origin", []string{"Origin", "null"}, 403},
		{"another port's page", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"cross-site fetch", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same-site fetch", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"text/plain", []string{"Content-Type", "text/plain"}, 415},
		{"a form", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		{"no content type", []string{"Content-Type", ""}, 415},
		{"two in one", []string{"Content-Type", "text/plain; application/json"}, 415},
		{"compressed", []string{"Content-Encoding", "gzip"}, 415},
	} {
		for _, url := range []string{base + "/mcp", stream.post} {
			got, err := do("POST", url, lease, append(modernCall(token, "lease_credential"), page.header...)...)
			w.must(err)
			if got.status != page.want || got.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: POST %s: HTTP %d, want %d", page.name, url, got.status, page.want)
			}
		}
		if page.want == 403 {
			for _, url := range []string{base + "/sse", base + "/mcp", base + "/healthz"} {
				got, err := do("GET", url, "", append([]string{"Authorization", "Bearer " + token}, page.header...)...)
				w.must(err)
				if got.status != 403 {
					t.Errorf("%s: GET %s: HTTP %d, want 403", page.name, url, got.status)
				}
			}
		}
	}
	for _, url := range []string{base + "/mcp?credential=db", base + "/message?sessionId=x&credential=db", base + "/lease?credential=db",
		base + "/mcp?access_token=" + token} {
		got, err := do("GET", url, "", "Authorization", "Bearer "+token)
		w.must(err)
		if got.status < 400 {
			t.Errorf("GET %s: HTTP %d", url, got.status)
		}
	}
	for _, e := range w.audit() {
		if strings.HasPrefix(e.Event, "lease.") {
			t.Errorf("it had an effect: %+v", e)
		}
	}
	got, err := do("POST", base+"/mcp", lease, append(modernCall(token, "lease_credential"), "Origin", base)...)
	w.must(err)
	if got.status != 200 || !strings.Contains(got.body, "granted") {
		t.Errorf("a call that nothing is wrong with: HTTP %d %s", got.status, got.body)
	}
}

// modernCall are the headers of a stateless tools/call.
func modernCall(token, tool string) []string {
	return []string{"Authorization", bearer(token), "Mcp-Protocol-Version", modern, "Mcp-Method", "tools/call", "Mcp-Name", tool}
}

func toolBody(tool string, a args) string {
	return jsonLine(args{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": toolCall(tool, a, spec{client: "x", modern: true})})
}

// TestB6NoTokenNoIdentity: without exactly one valid bearer token every path answers 401 and says how to get in; there
// is no default identity to fall to. The tries are in the trail, counted, and without the token.
func TestB6NoTokenNoIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	good, _ := w.token("alice")
	revoked, record := w.token("alice")
	w.ok("token", "revoke", record)
	expired, _ := w.token("alice", "--ttl", "1s")
	rotated, record := w.token("alice")
	w.ok("token", "rotate", record)
	time.Sleep(1100 * time.Millisecond)
	base := "http://" + s.addr
	for name, sent := range map[string]string{
		"none": "", "empty": "Bearer", "blank": "Bearer  ", "unknown": "Bearer kl_" + strings.Repeat("a", 59),
		"revoked": "Bearer " + revoked, "expired": "Bearer " + expired, "rotated out": "Bearer " + rotated,
		"basic": "Basic YWxpY2U6" + good, "bare": good, "two": "Bearer " + good + ", Bearer " + good, "two words": "Bearer " + good + " x",
		"alg none": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.", "a name": "Bearer alice",
		"changed": "Bearer " + good[:len(good)-1] + "A", "upper case": "Bearer " + strings.ToUpper(good), "long": "Bearer " + good + strings.Repeat("a", 600),
	} {
		for _, try := range []struct{ method, path, body string }{
			{"POST", "/mcp", toolBody("lease_credential", args{"credential": "db"})}, {"GET", "/mcp", ""}, {"DELETE", "/mcp", ""},
			{"GET", "/sse", ""}, {"POST", "/message?sessionId=x", toolBody("list_credentials", args{})},
		} {
			got, err := do(try.method, base+try.path, try.body, append(modernCall("", "lease_credential"), "Authorization", sent)...)
			w.must(err)
			if got.status != 401 || !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") || strings.Contains(got.body, good) {
				t.Errorf("%s: %s %s: HTTP %d %s", name, try.method, try.path, got.status, got.body)
			}
		}
	}
	if got, err := do("POST", base+"/mcp?token="+good, toolBody("list_credentials", args{}), modernCall("", "list_credentials")...); err != nil || got.status != 400 {
		t.Errorf("a token in the address: %v HTTP %d", err, got.status)
	}
	all := w.audit()
	if len(w.leases()) != 0 || len(find(all, "lease.created")) != 0 {
		t.Error("somebody was lent something")
	}
	reasons := map[string]bool{}
	for _, e := range find(all, "auth.failed") {
		reasons[e.Details["reason"]] = true
		if e.Details["source"] != "loopback" {
			t.Errorf("recorded without its source: %+v", e)
		}
	}
	if !reasons["unknown token"] || !reasons["revoked token"] || !reasons["expired token"] {
		t.Errorf("in the trail are only %v", reasons)
	}
	if text := w.ok("audit", "--json"); strings.Contains(text, good) || strings.Contains(text, revoked) {
		t.Error("a token is in the trail")
	}
	lend(t, w.web(s.addr, good, true), "db")
}
