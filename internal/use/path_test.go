package use_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"keylease/internal/use"
)

func plan(t testing.TB, u use.Upstream) *use.Plan {
	t.Helper()
	p, err := u.Plan()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// anything lets every request of a fake service through that can be passed on at all.
func anything(t testing.TB) *use.Plan {
	return plan(t, use.Upstream{URL: "https://api.example.com/base", Header: "X-Key: {value}", Allow: []string{"* /**"}})
}

// D6: what readers of paths have been found to disagree on.
var tricks = []string{
	"", "*", "v1/x", "//evil.example/v1", "http://evil.example/v1", "https:/evil.example", "/v1//x", "/v1/\\evil", `\\evil.example\x`,
	"/v1/../admin", "/v1/..", "/..", "/.", "/v1/./x", "/v1/...", "/v1/%2e%2e/admin", "/v1/.%2e/admin", "/v1/%2E./admin", "/v1/%2e", "/v1/x%2ey",
	"/v1/..%2fadmin", "/v1%2fadmin", "/v1%2Fadmin", "/v1/..%5cadmin", "/v1/%5c", "/v1/..;/admin", "/v1;x=1/admin", "/v1/%3b", "/v1/%3B/..",
	"/v1/%252e%252e/admin", "/v1/%25", "/v1/%252f", "/v1/%", "/v1/%2", "/v1/%zz", "/v1/%u002e", "/v1/%00", "/v1/x%00.json", "/v1/%0d%0aHost:x", "/v1/%0a", "/v1/%7f", "/v1/%09",
	"/v1/x y", "/v1/\x00", "/v1/\r\n", "/v1/é", "/v1/x?y", "/v1/x#y", "/v1/%3fx", "/v1/%23x", "/v1/%c0%ae%c0%ae/admin", "/v1/%e0%80%ae", "/v1/%c0%af", "/v1/%ff",
	"/v1/%ef%bc%8e%ef%bc%8e/x", "/v1/%ef%bc%8fadmin", "/v1/%e2%81%84x", "/v1/%e2%80%a5/x", "/v1/%e2%80%ae", "/v1/[x]", "/v1/{x}", "/v1/<x>", `/v1/"x"`, "/v1/x|y", "/v1/^", "/v1/`", "/v1/%2f/", "/v1/%2f",
	"/" + strings.Repeat("a", use.MaxPath),
	strings.Repeat("/a", use.MaxSegments+1),
}

func TestD6PathsThatCouldMeanTwoThingsAreRefused(t *testing.T) {
	p := anything(t)
	for _, path := range tricks {
		got, err := p.Route("GET", path)
		var r *use.Refused
		if !errors.As(err, &r) || r.Kind != use.Malformed || r.Hint == "" || r.Reason == "" {
			t.Errorf("%q: %v %v", path, got.Path, err)
		}
		if r != nil && len(path) > 12 && strings.Contains(r.Reason+r.Hint, path) {
			t.Errorf("%q is repeated: %v", path, r)
		}
	}
	for _, method := range []string{"", "get", "CONNECT", "TRACE", "TRACK", "PROPFIND", "GET ", "GET\n", "DEBUG"} {
		if _, err := p.Route(method, "/v1/x"); err == nil {
			t.Errorf("%q is passed on", method)
		}
	}
}

func TestWhatIsMatchedIsWhatIsSent(t *testing.T) {
	p := anything(t)
	for path, want := range map[string]string{
		"/":                            "/",
		"/v1/x":                        "/v1/x",
		"/v1/x/":                       "/v1/x/",
		"/v1/%78%2dy%7e":               "/v1/x-y~",
		"/v1/a%c3%a9":                  "/v1/a%C3%A9",
		"/v1/ft:gpt-4o:a@b,c":          "/v1/ft:gpt-4o:a@b,c",
		"/v1/a%20b%3a":                 "/v1/a%20b%3A",
		"/repos/o/r/compare/a...b":     "/repos/o/r/compare/a...b",
		"/v1/.well-known/a..b/.git":    "/v1/.well-known/a..b/.git",
		"/v1/!$&'()*+,=":               "/v1/!$&'()*+,=",
		"/v1/%E6%97%A5%E6%9C%AC/x.txt": "/v1/%E6%97%A5%E6%9C%AC/x.txt",
	} {
		got, err := p.Route("GET", path)
		if err != nil || got.Path != want {
			t.Errorf("%q: %q %v", path, got.Path, err)
			continue
		}
		if s := got.URL.String(); s != "https://api.example.com/base"+want || got.URL.RequestURI() != "/base"+want {
			t.Errorf("%q is sent as %q", path, s)
		}
	}
}

func TestQueriesCarryNoKeyAndNoOtherMethod(t *testing.T) {
	for _, raw := range []string{"", "a=b&c=d", "page=2&per_page=100", "q=access_token", "key=cache-1", "service=git-upload-pack", "after=%3D%3D", "filter[token_type]=x", "a=b;c=d"} {
		if err := use.CheckQuery(raw); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	}
	for _, raw := range []string{"_method=DELETE", ".method=DELETE", "[method=DELETE", "_method%00x=DELETE", "%20_method%5B%5D=DELETE", "access.token=x", "a=b#c", "a=b&_METHOD=put", "%5fmethod=DELETE", "a;_method=DELETE", "access_token=klp_fake", "ACCESS_TOKEN=x", "access%5Ftoken=x", "private_token=x", "api_key=x", "api_key[]=x",
		"token=x", "sudo=root", "x-http-method-override=PUT", "a=\r\nb", "a=é", "a b", "%zz=1", "+token=x", strings.Repeat("a", 40<<10)} {
		err := use.CheckQuery(raw)
		if err == nil || strings.Contains(err.Error(), "klp_fake") {
			t.Errorf("%.40q: %v", raw, err)
		}
	}
}

// What Route takes is a canonical path, which names the same thing however often it is read again, and which no reader
// that decodes once or twice takes out of the part of the service that a rule allows.
func FuzzRoute(f *testing.F) {
	for _, path := range tricks {
		f.Add("GET", path)
	}
	for _, path := range []string{"/v1/%78%2dy%7e", "/allowed/a%c3%a9", "/allowed/x/", "/allowed/a%20b", "/allowed/@a%2fb", "/@a%2fb", "/@a%2F..%2Fb", "/api/v4/projects/a%2fb%2Fc/issues"} {
		f.Add("POST", path)
	}
	every := anything(f)
	some := plan(f, use.Upstream{URL: "https://api.example.com", Header: "X-Key: {value}", Allow: []string{"* /allowed/**", "GET /one/*/end"}})
	slashes := []*use.Plan{plan(f, use.Upstream{Service: "npm", Allow: []string{"* /**"}}), plan(f, use.Upstream{Service: "gitlab", Allow: []string{"* /**"}})}
	f.Fuzz(func(t *testing.T, method, path string) {
		for i, p := range append([]*use.Plan{every, some}, slashes...) {
			got, err := p.Route(method, path)
			if err != nil {
				var r *use.Refused
				if !errors.As(err, &r) || r.Reason == "" || r.Hint == "" {
					t.Fatalf("%q: %v", path, err)
				}
				continue
			}
			again, err := p.Route(got.Method, got.Path)
			if err != nil || again.Path != got.Path || again.URL.String() != got.URL.String() {
				t.Fatalf("%q is %q at first and %q then: %v", path, got.Path, again.Path, err)
			}
			checkTarget(t, got, i == 1, i > 1)
		}
	})
}

func checkTarget(t *testing.T, got use.Target, some, slashes bool) {
	host := map[string]bool{"api.example.com": true, "registry.npmjs.org": true, "gitlab.com": true}
	sent := got.URL.String()
	u, err := url.Parse(sent)
	if err != nil || !host[u.Host] || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.HasSuffix(u.EscapedPath(), got.Path) {
		t.Fatalf("%q is sent as %q: %v", got.Path, sent, err)
	}
	lower := strings.ToLower(got.Path)
	for _, bad := range []string{"//", "\\", ";", "?", "#", "%2e", "%5c", "%25", "%00", "%3b", "%3f", "%23", "\x00", " "} {
		if strings.Contains(lower, bad) {
			t.Fatalf("%q holds %q", got.Path, bad)
		}
	}
	if !slashes && strings.Contains(lower, "%2f") {
		t.Fatalf("%q holds an encoded slash", got.Path)
	}
	once, err := url.PathUnescape(got.Path)
	if err != nil {
		t.Fatalf("%q: %v", got.Path, err)
	}
	for _, read := range []string{got.Path, once, unescaped(once)} {
		clean := resolved(read)
		if clean != strings.TrimSuffix(read, "/") || strings.Contains(read, "//") {
			t.Fatalf("%q is read as %q, which leads to %q", got.Path, read, clean)
		}
		if some && !strings.HasPrefix(clean, "/allowed") && !strings.HasPrefix(clean, "/one/") {
			t.Fatalf("%q leaves what is allowed: %q", got.Path, clean)
		}
	}
}

func unescaped(s string) string {
	if t, err := url.PathUnescape(s); err == nil {
		return t
	}
	return s
}

// resolved is what a careless server makes of a path.
func resolved(path string) string {
	var out []string
	for s := range strings.FieldsFuncSeq(strings.ReplaceAll(path, "\\", "/"), func(r rune) bool { return r == '/' }) {
		switch s, _, _ = strings.Cut(s, ";"); s {
		case ".", "":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, s)
		}
	}
	if out == nil {
		return ""
	}
	return "/" + strings.Join(out, "/")
}
