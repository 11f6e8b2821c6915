//go:build linux

package promises

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"keylease/internal/issuertest"
)

const resource = "http://127.0.0.1:8700/mcp"

type claims = issuertest.Claims

// trusting configures these issuers; each line of identities is one.
func (w *world) trusting(identities string, issuers ...string) {
	yaml := "resource: " + resource + "\nissuers:\n"
	for _, i := range issuers {
		yaml += "  - issuer: " + i + "\n    identities:\n" + identities
	}
	w.configure(yaml)
}

const robots = `      - {match: {sub: ["robot-*"]}, name: "ci/{sub}"}
      - {match: {email: ["*@example.com"]}, type: human}
`

const foreignPolicy = `version: 1
rules:
  - {name: robots, identities: ["ci/*"], proof: oidc, credentials: [db]}
  - {name: all with a certificate, identities: ["*"], proof: mtls, credentials: [db]}
`

// TestB6TokensOfOtherIssuers: a JWT that is not exactly right stands for nobody on any path, whatever is wrong with it;
// the trail says what was, and the caller is not told. (B9) The issuers are sent nothing of it.
func TestB6TokensOfOtherIssuers(t *testing.T) {
	t.Parallel()
	w, idp, stranger := newWorld(t), issuertest.New(t), issuertest.New(t)
	gone := issuertest.Nowhere(t)
	w.policy(foreignPolicy)
	w.trusting(robots, idp.URL, gone)
	s := w.serve()
	w.seed(secretOf("db", ""))
	base, now := "http://"+s.addr, time.Now()
	good := func(more claims) claims { return idp.Good(resource, now, more) }
	signing := idp.Key()
	public := signing.Public()
	pem, err := public.MarshalJSON()
	w.must(err)
	first := idp.Token(good(nil))
	lend(t, w.web(s.addr, first, true), "db")
	idp.Rotate()

	bad := []struct{ token, reason string }{
		{stranger.Token(stranger.Good(resource, now, nil)), "token of an unknown issuer"},
		{first, ""}, // its key was taken away: known only once the keys are fetched again, so it comes after what follows
		{issuertest.Sign(t, stranger.Key(), "RS256", "JWT", good(nil)), "token signed with a key that the issuer does not have"},
		{issuertest.Sign(t, jose.JSONWebKey{Key: stranger.Key().Key, KeyID: signing.KeyID}, "RS256", "JWT", good(nil)), "token with a signature that does not verify"},
		{issuertest.Sign(t, jose.JSONWebKey{Key: pem, KeyID: signing.KeyID}, "HS256", "JWT", good(nil)), "token signed with an algorithm that is not allowed"},
		{issuertest.Unsigned(t, claims{"alg": "none"}, good(nil)), "token signed with an algorithm that is not allowed"},
		{idp.Token(good(claims{"aud": "https://other.example/mcp"})), "token for another audience"},
		{idp.Token(good(claims{"exp": now.Unix() - 1})), "expired token"},
		{idp.Token(good(claims{"exp": nil})), "token without expiry"},
		{idp.Token(good(claims{"nbf": now.Add(time.Hour).Unix()})), "token that is not valid yet"},
		{idp.Token(good(claims{"sub": nil})), "token without a usable subject"},
		{issuertest.Sign(t, signing, "RS256", "JWT", good(claims{"sub": "nobody"})), "token that no identity matches"},
		{issuertest.Sign(t, signing, "RS256", "JWT", good(claims{"sub": "robot-*"})), "token whose claims make no identity name"},
		{issuertest.Sign(t, signing, "RS256", "JWT", good(claims{"sub": "x", "email": "ann@example.com"})), "token that no identity matches"},
		{"..", "malformed token"},
		{"a.b.c", "malformed token"},
	}
	for _, b := range append(bad[:1:1], bad[2:]...) {
		for _, try := range []struct{ method, path, body string }{
			{"POST", "/mcp", toolBody("lease_credential", args{"credential": "db"})}, {"GET", "/mcp", ""}, {"DELETE", "/mcp", ""},
			{"GET", "/sse", ""}, {"POST", "/message?sessionId=x", toolBody("list_credentials", args{})},
		} {
			got, err := do(try.method, base+try.path, try.body, modernCall(b.token, "lease_credential")...)
			w.must(err)
			if got.status != 401 || strings.Contains(got.body, "audience") || !strings.Contains(got.header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Errorf("%s: %s %s: HTTP %d %s", b.reason, try.method, try.path, got.status, got.body)
			}
		}
	}
	at := "tokens of an issuer that is not there"
	got, err := do("POST", base+"/mcp", toolBody("lease_credential", args{"credential": "db"}),
		modernCall(idp.Token(good(claims{"iss": gone})), "lease_credential")...)
	w.must(err)
	if got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, `"unavailable"`) {
		t.Errorf("%s: HTTP %d %s", at, got.status, got.body)
	}

	all, reasons := w.audit(), map[string]bool{}
	for _, e := range find(all, "auth.failed") {
		reasons[e.Details["reason"]] = true
		verified := strings.HasPrefix(e.Details["reason"], "token that no identity") || strings.HasPrefix(e.Details["reason"], "token whose claims")
		if (e.Details["issuer"] == idp.URL) != verified || (e.Details["subject"] != "") != verified {
			t.Errorf("the trail has %v", e.Details)
		}
	}
	for _, b := range bad {
		if b.reason != "" && !reasons[b.reason] {
			t.Errorf("the trail does not say %q; it says %v", b.reason, reasons)
		}
	}
	if n := len(find(all, "lease.created")); n != 1 {
		t.Errorf("%d leases, of which one is right", n)
	}
	for _, q := range idp.Requests() {
		if q.Method != http.MethodGet || q.Header.Get("Authorization") != "" || q.Header.Get("Cookie") != "" || q.URL.RawQuery != "" || q.ContentLength > 0 {
			t.Errorf("B9: the issuer was sent %s %s %v", q.Method, q.URL, q.Header)
		}
	}
	if n := len(idp.Requests()); n > 4 {
		t.Errorf("%d requests to the issuer: bad tokens make us hammer it", n)
	}
	if text := w.ok("audit", "--json") + s.log.String(); strings.Contains(text, first) || strings.Contains(text, first[strings.LastIndex(first, "."):]) {
		t.Error("the trail or the log holds a token")
	}
}

// TestATokenOfAnIssuerIsItsSubject: who proves the same subject again is the same principal, in the same session and
// with the same leases; whoever has the same name by other means is not.
func TestATokenOfAnIssuerIsItsSubject(t *testing.T) {
	t.Parallel()
	w, idp := newWorld(t), issuertest.New(t)
	w.policy(foreignPolicy + `  - {name: tokens, identities: ["ci/*"], proof: token, credentials: [db]}` + "\n")
	w.trusting(`      - {match: {sub: ["robot-*"]}, name: "ci/robot"}`+"\n", idp.URL)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token := func(more claims) string { return idp.Token(idp.Good(resource, time.Now(), more)) }

	first, again := w.web(s.addr, token(nil), false), w.web(s.addr, token(nil), false)
	id := lend(t, first, "db")
	again.session = first.session // a client that renewed its token goes on where it was
	if got := call(t, again, "lease_credential", args{"lease_id": id, "ttl": "20m"}); got.code() != "" {
		t.Errorf("renewing with the next token: %s", got.raw)
	}
	l := w.leases()[id]
	if l.Identity.Name != "ci/robot" || l.Identity.Proof != "oidc" || l.Identity.By != "oidc:"+idp.URL+"#robot-1" {
		t.Errorf("held by %+v", l.Identity)
	}
	own, _ := w.token("ci/robot")
	for who, other := range map[string]*web{
		"another subject of the same name": w.web(s.addr, token(claims{"sub": "robot-2"}), true),
		"a token of ours of the same name": w.web(s.addr, own, true),
	} {
		if got := call(t, other, "release_lease", args{"lease_id": id}); got.code() != "not_available" {
			t.Errorf("%s: %s", who, got.raw)
		}
		if got := call(t, other, "list_credentials", args{}); strings.Contains(got.raw, id) {
			t.Errorf("%s sees the lease", who)
		}
		other.session, other.spec.modern = first.session, false
		headers, err := other.headers("list_credentials")
		w.must(err)
		got, _, err := other.rpc("1", "tools/call", toolCall("list_credentials", args{}, other.spec), headers...)
		w.must(err)
		if got.status != http.StatusNotFound {
			t.Errorf("%s uses the session: HTTP %d", who, got.status)
		}
	}
	if got := call(t, again, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
		t.Errorf("releasing with the next token: %s", got.raw)
	}
	stranger := w.web(s.addr, token(claims{"sub": "robot-3"}), true)
	w.policy("version: 1\nrules: []\n")
	if got := call(t, stranger, "lease_credential", args{"credential": "db"}); got.code() != "not_available" {
		t.Errorf("without a rule: %s", got.raw)
	}
}

// TestScopesBoundWhatATokenIsGoodFor: policy would allow it, the token was not made for it.
func TestScopesBoundWhatATokenIsGoodFor(t *testing.T) {
	t.Parallel()
	w, idp := newWorld(t), issuertest.New(t)
	w.policy(foreignPolicy)
	w.trusting(robots, idp.URL)
	s := w.serve()
	w.seed(secretOf("db", ""))
	with := func(scope string) string { return idp.Token(idp.Good(resource, time.Now(), claims{"scope": scope})) }
	id := lend(t, w.web(s.addr, with("keylease:lease"), true), "db")
	for _, c := range []struct {
		scope, tool string
		arguments   args
		status      int
	}{
		{"keylease:lease", "list_credentials", args{}, 403},
		{"keylease:list", "lease_credential", args{"credential": "db"}, 403},
		{"keylease:list", "lease_credential", args{"lease_id": id}, 403},
		{"openid keylease:*", "lease_credential", args{"credential": "db"}, 403},
		{"openid", "list_credentials", args{}, 403},
		{"openid keylease:list", "list_credentials", args{}, 200},
		{"openid", "release_lease", args{"lease_id": id}, 200},
	} {
		token := with(c.scope)
		got, err := do("POST", "http://"+s.addr+"/mcp", toolBody(c.tool, c.arguments), modernCall(token, c.tool)...)
		w.must(err)
		if got.status != c.status {
			t.Errorf("%s with %q: HTTP %d %s", c.tool, c.scope, got.status, got.body)
		}
		if sent := got.header.Get("WWW-Authenticate"); c.status == 403 && (!strings.Contains(sent, `error="insufficient_scope", scope="keylease:l`) ||
			!strings.Contains(sent, `resource_metadata="http://127.0.0.1:8700/.well-known/oauth-protected-resource/mcp"`)) {
			t.Errorf("%s with %q: challenged with %q", c.tool, c.scope, sent)
		}
		if c.status == 403 {
			legacy := w.web(s.addr, token, false)
			if _, err := legacy.try(c.tool, c.arguments); err == nil || !strings.Contains(err.Error(), "HTTP 403") {
				t.Errorf("%s with %q in a session: %v", c.tool, c.scope, err)
			}
			stream := w.sse(s.addr, token)
			if _, err := stream.try(c.tool, c.arguments); err == nil || !strings.Contains(err.Error(), "HTTP 403") {
				t.Errorf("%s with %q over SSE: %v", c.tool, c.scope, err)
			}
			stream.close()
		}
	}
	if n := len(find(w.audit(), "lease.created")); n != 1 {
		t.Errorf("%d leases", n)
	}
}

// TestWhereToAskForATokenIsToldToAnybody: RFC 9728, and only where there are issuers.
func TestWhereToAskForATokenIsToldToAnybody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	const well = "/.well-known/oauth-protected-resource"
	if got, err := do("GET", "http://"+s.addr+well, ""); err != nil || got.status != 404 {
		t.Errorf("without issuers: %v HTTP %d", err, got.status)
	}
	s.stop()
	w.configure("resource: " + resource + "\nissuers:\n  - issuer: https://ci.example.com\n    scopes: [\"keylease:lease\"]\n    identities:\n" + robots +
		"  - issuer: https://idp.example.com\n    identities:\n" + robots)
	s = w.serve()
	for _, path := range []string{well, well + "/mcp"} {
		got, err := do("GET", "http://"+s.addr+path, "")
		w.must(err)
		var told struct {
			Resource string   `json:"resource"`
			Servers  []string `json:"authorization_servers"`
			Scopes   []string `json:"scopes_supported"`
			Methods  []string `json:"bearer_methods_supported"`
		}
		w.must(json.Unmarshal([]byte(got.body), &told))
		if fmt.Sprint(told) != "{"+resource+" [https://idp.example.com] [keylease:lease keylease:list] [header]}" {
			t.Errorf("%s: %s", path, got.body)
		}
		for _, wrong := range []struct {
			method string
			header []string
			status int
		}{{"POST", nil, 405}, {"GET", []string{"Host", "evil.example"}, 403}, {"GET", []string{"Origin", "https://evil.example"}, 403}} {
			if got, err := do(wrong.method, "http://"+s.addr+path, "", wrong.header...); err != nil || got.status != wrong.status {
				t.Errorf("%s %v: %v HTTP %d", wrong.method, wrong.header, err, got.status)
			}
		}
	}
	got, err := do("POST", "http://"+s.addr+"/mcp", "{}", "Content-Type", "application/json")
	want := `Bearer scope="keylease:lease keylease:list", resource_metadata="http://127.0.0.1:8700` + well + `/mcp"`
	if err != nil || got.status != 401 || got.header.Get("WWW-Authenticate") != want {
		t.Errorf("%v HTTP %d, challenged with %q", err, got.status, got.header.Get("WWW-Authenticate"))
	}
}
