//go:build linux

package promises

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// upstream is a service on this machine, for as long as the test runs.
func upstream(t testing.TB, serve http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(serve)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// proxied is a credential that is used through the proxy.
func proxied(name, url, more string) string {
	if more == "" {
		more = `allow: ["* /**"]`
	}
	if !strings.Contains(more, "header:") {
		more = `header: "Authorization: Bearer {value}", ` + more
	}
	return "name: " + name + ", type: api-key, value: " + keyOf(name) + `, upstream: {url: "` + url + `", ` + more + "}"
}

func keyOf(name string) string { return "sk-fake-0123456789abcdef-" + name }

// borrowed is a lease by proxy, as the agent sees it.
type borrowed struct {
	id, base, socket, handle string
}

func borrow(t testing.TB, c caller, name string, more ...string) borrowed {
	t.Helper()
	in := args{"credential": name, "purpose": "test"}
	for i := 0; i+1 < len(more); i += 2 {
		in[more[i]] = more[i+1]
	}
	a := call(t, c, "lease_credential", in)
	if a.refused || a.get("delivery") != "proxy" {
		t.Fatalf("lease of %s: %s", name, a.raw)
	}
	if strings.Contains(a.raw, keyOf(name)) {
		t.Fatal("the lease tells the key")
	}
	return borrowed{a.lease(), a.get("use", "base_url"), a.get("use", "socket"), a.get("use", "api_key")}
}

// get uses the lease for one request. Headers come in pairs.
func (b borrowed) get(path string, headers ...string) (response, error) {
	return do("GET", b.base+path, "", append([]string{"Authorization", "Bearer " + b.handle}, headers...)...)
}

func (b borrowed) addr() string { return strings.TrimPrefix(b.base, "http://") }

// wire sends bytes as they are and returns all that comes back until the connection closes. {H} stands for the handle.
func wire(network, addr, handle, text string) (string, error) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, strings.ReplaceAll(text, "{H}", handle)); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	if len(got) > 0 {
		err = nil // a connection that is cut tells so by an error
	}
	return string(got), err
}

// echo says back all that came, and what of it was the key.
func echo(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(rw, "%s %s host=%s\n", r.Method, r.RequestURI, r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			_, _ = fmt.Fprintf(rw, "%s: %s\n", name, v)
		}
	}
	_, _ = fmt.Fprintf(rw, "trailer: %v\nbody: %s\n", r.Trailer, body)
}

// TestD6AHandleStandsForTheKey: wherever a client puts the handle the upstream gets the key, in its own header, and the
// handle never; and nothing that the client says of connections, methods, tenants or itself goes with it.
func TestD6AHandleStandsForTheKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Acme-Key") != "key "+keyOf("svc") {
			rw.WriteHeader(401)
		}
		echo(rw, r)
	})
	w.seed(proxied("svc", up+"/base", `header: "X-Acme-Key: key {value}", allow: ["* /**"]`))
	token, _ := w.token("alice")
	b := borrow(t, w.agent("claude"), "svc")
	basic := func(user, password string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for name, one := range map[string][2]string{
		"bearer":         {"Authorization: Bearer {H}"},
		"token":          {"authorization: token {H}"},
		"basic password": {basic("anyone", b.handle)},
		"basic username": {basic(b.handle, "")},
		"x-api-key":      {"x-api-key: {H}"},
		"api-key":        {"api-key: {H}"},
		"gitlab":         {"PRIVATE-TOKEN: {H}"},
		"its own":        {"X-Acme-Key: key {H}"},
		"path":           {"X-Nothing: here", "/l/{H}"},
		"twice":          {"Authorization: Bearer {H}\r\nX-Api-Key: {H}", "/l/{H}"},
	} {
		for network, addr := range map[string]string{"tcp": b.addr(), "unix": b.socket} {
			got, err := wire(network, addr, b.handle, "POST "+one[1]+"/v1/things?q=%20x HTTP/1.1\r\nHost: localhost\r\nConnection: close, X-Hop\r\nX-Hop: hop\r\n"+one[0]+"\r\n"+
				"X-Mine: kept\r\nCookie: a=b\r\nRange: bytes=0-3\r\nAccept-Encoding: gzip, br\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Host: evil\r\nX-HTTP-Method-Override: DELETE\r\n"+
				"X_HTTP_Method_Override: DELETE\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\nReferer: http://x/l/{H}/\r\nUser-Agent: curl {H}\r\nOpenAI-Organization: org\r\nX-Token: "+token+"\r\n"+
				"Trailer: X-Late\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Late: trailer\r\n\r\n")
			if err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.Contains(got, "POST /base/v1/things?q=%20x host="+strings.TrimPrefix(up, "http://")) ||
				!strings.Contains(got, "X-Acme-Key: key [secret]") || !strings.Contains(got, "X-Mine: kept") || !strings.Contains(got, "body: body") {
				t.Errorf("%s over %s: %v %s", name, network, err, got)
			}
			for _, gone := range []string{b.handle, keyOf("svc"), token, "Authorization", "Cookie", "Range", "gzip", "1.2.3.4", "evil", "DELETE", "admin", "hop", "org", "late", "Late"} {
				if _, after, _ := strings.Cut(got, "\r\n\r\n"); strings.Contains(after, gone) {
					t.Errorf("%s over %s: %q came to the upstream:\n%s", name, network, gone, after)
				}
			}
		}
	}
	w.eventually("uses are in the trail", func() error {
		trail := w.ok("audit", "--json", "--event", "lease.used")
		if strings.Count(trail, `"path": "/v1/things"`)+strings.Count(trail, `"path":"/v1/things"`) != 20 {
			return errors.New(trail)
		}
		if strings.Contains(trail, b.handle) || strings.Contains(trail, "q=") {
			t.Error("the trail holds a handle or a query")
		}
		return nil
	})
}

// TestD6OneNeutralAnswer: no handle, one that never was, a dead one and another credential's look all the same.
func TestD6OneNeutralAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(proxied("svc", upstream(t, echo), `allow: ["GET /yes/*"]`))
	a := w.agent("claude")
	b := borrow(t, a, "svc")
	call(t, a, "release_lease", args{"lease_id": b.id})
	same := ""
	for _, handle := range []string{"", b.handle, "klh_AAAAAAAAAAAAAAAAAAAAAAAAAA", "klh_", b.id, keyOf("svc")} {
		for _, path := range []string{"/yes/x", "/no", "/yes/%2e%2e"} {
			got, err := wire("tcp", b.addr(), handle, "GET "+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n")
			w.must(err)
			head, body, _ := strings.Cut(got, "\r\n\r\n")
			var without []string
			for line := range strings.SplitSeq(head, "\r\n") {
				if !strings.HasPrefix(line, "Date:") {
					without = append(without, line)
				}
			}
			if got = strings.Join(without, "\n") + body; same == "" {
				same = got
			}
			if got != same || !strings.HasPrefix(got, "HTTP/1.1 403 ") {
				t.Errorf("%q for %s: %s, and before: %s", handle, path, got, same)
			}
		}
	}
	for path, challenged := range map[string]bool{"/o/r/info/refs?service=git-upload-pack": true, "/o/r": false} { // git says what it knows only when asked
		got, err := do("GET", b.base+path, "")
		w.must(err)
		if (got.status == 401 && got.header.Get("WWW-Authenticate") != "") != challenged {
			t.Errorf("%s without a handle: %d", path, got.status)
		}
	}
}

// TestD6WhatIsNotAllowedIsToldAndRecorded: the holder of a live lease hears what it is for; who asks too often, when to come again.
func TestD6WhatIsNotAllowedIsToldAndRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(proxied("svc", upstream(t, echo), `allow: ["GET /yes/*"], rate: 3/h`))
	b := borrow(t, w.agent("claude"), "svc")
	got, err := b.get("/no")
	w.must(err)
	if got.status != 403 || !strings.Contains(got.body, "GET /yes/*") || !strings.Contains(got.body, `"code":"not_allowed"`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got, err = b.get("/yes/x?access_token=x"); err != nil || got.status != 403 || !strings.Contains(got.body, "query") {
		t.Errorf("a key in the query: %v %d %s", err, got.status, got.body)
	}
	if got, err = b.get("/yes/x"); err != nil || got.status != 200 {
		t.Errorf("%v %d %s", err, got.status, got.body)
	}
	if got, err = b.get("/yes/x"); err != nil || got.status != 429 || got.header.Get("Retry-After") == "" {
		t.Errorf("the fourth: %v %d %s", err, got.status, got.body)
	}
	w.eventually("refusals are in the trail", func() error {
		if trail := w.ok("audit", "--json", "--event", "lease.used"); strings.Count(trail, `"403"`) != 2 {
			return errors.New(trail)
		}
		return nil
	})
}

// TestD6RedirectsAreHandedBack: they are not followed; one within the upstream leads back through the proxy.
func TestD6RedirectsAreHandedBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	elsewhere := upstream(t, func(rw http.ResponseWriter, r *http.Request) { t.Error("a redirect was followed") })
	var up string
	up = upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		to := map[string]string{"/base/away": elsewhere + "/x?key=" + keyOf("svc"), "/base/same": up + "/base/there?a=b", "/base/out": up + "/other", "/base/rel": "there"}[r.URL.Path]
		rw.Header().Set("Location", to)
		rw.WriteHeader(307)
	})
	w.seed(proxied("svc", up+"/base", ""))
	b := borrow(t, w.agent("claude"), "svc")
	raw := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for path, want := range map[string]string{"/away": elsewhere + "/x?key=[secret]", "/same": "/l/" + b.handle + "/there?a=b", "/out": up + "/other", "/rel": "there"} {
		got, err := doOver(raw, "GET", b.base+"/l/"+b.handle+path, "")
		w.must(err)
		if got.status != 307 || got.header.Get("Location") != want {
			t.Errorf("%s: %d %q, want %q", path, got.status, got.header.Get("Location"), want)
		}
	}
}

// far is an upstream that answers with bytes of the test's choice, whatever HTTP thinks of them.
func far(t *testing.T, answer func(path string, conn net.Conn, key string)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
				answer(r.URL.Path, conn, key)
			}()
		}
	}()
	return (&url.URL{Scheme: "http", Host: l.Addr().String()}).String()
}

// TestGitWorksWithAHandle: git sends what it knows only when it is asked, and then gets the key's answer.
func TestGitWorksWithAHandle(t *testing.T) {
	t.Parallel()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git here")
	}
	w := newWorld(t)
	line := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != keyOf("hub") {
			rw.WriteHeader(401)
			return
		}
		rw.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		const commit = "0123456789abcdef0123456789abcdef01234567"
		_, _ = io.WriteString(rw, line("# service=git-upload-pack\n")+"0000"+line(commit+" refs/heads/main\x00agent=fake\n")+"0000")
	})
	w.seed("name: hub, type: api-key, value: " + keyOf("hub") + ", upstream: {service: github, url: \"" + up + "\"}")
	a := w.agent("claude")
	b := borrow(t, a, "hub")
	ls := func() outcome {
		cmd := exec.Command(git, "-c", "url.http://x-access-token:"+b.handle+"@"+b.addr()+"/.insteadOf=https://github.com/", "ls-remote", "https://github.com/acme/app")
		cmd.Env = w.env("GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1")
		return w.run(cmd, "")
	}
	if o := ls(); o.code != 0 || !strings.Contains(o.out, "refs/heads/main") {
		t.Errorf("%s", o)
	}
	call(t, a, "release_lease", args{"lease_id": b.id})
	if o := ls(); o.code == 0 || !strings.Contains(o.err, "403") {
		t.Errorf("after the release: %s", o)
	}
}
