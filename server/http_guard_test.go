package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestB4WebPagesStayOut(t *testing.T) {
	w := newWeb(t, func(o *httpOptions) {
		o.AllowedHosts, o.AllowedOrigins = []string{"keys.example"}, []string{"https://ide.example"}
	})
	body, modern := callModern(1, "whoami")
	ok := as("alice", modern...)
	for _, c := range []struct {
		what   string
		header string
		status int
	}{
		{"a program", "X-Nothing: 1", 200},
		{"localhost", "Host: localhost:8700", 200},
		{"another loopback address", "Host: 127.0.0.2", 200},
		{"IPv6 loopback", "Host: [::1]:8700", 200},
		{"a configured host", "Host: KEYS.example:8700", 200},
		{"foreign host", "Host: evil.example", 403},
		{"a host that looks near", "Host: localhost.evil.example", 403},
		{"the unspecified address", "Host: 0.0.0.0", 403},
		{"own origin", "Origin: " + w.url, 200},
		{"listed origin", "Origin: https://ide.example", 200},
		{"foreign origin", "Origin: https://evil.example", 403},
		{"another port here", "Origin: http://127.0.0.1:1", 403},
		{"no origin", "Origin: null", 403},
		{"a file", "Origin: file://" + w.addr, 403},
		{"cross-site", "Sec-Fetch-Site: cross-site", 403},
		{"same-site", "Sec-Fetch-Site: same-site", 403},
		{"an unknown site", "Sec-Fetch-Site: x", 403},
		{"typed in", "Sec-Fetch-Site: none", 200},
		{"text/plain", "Content-Type: text/plain", 415},
		{"a form", "Content-Type: application/x-www-form-urlencoded", 415},
		{"no type", "Content-Type: ", 415},
		{"json with charset", "Content-Type: application/json; charset=UTF-8", 200},
		{"another charset", "Content-Type: application/json; charset=utf-16", 415},
		{"gzip", "Content-Encoding: gzip", 415},
	} {
		before := w.ran
		wantStatus(t, c.what, w.do("POST", "/mcp", body, append(ok, c.header)...), c.status)
		if ran := w.ran > before; ran != (c.status == 200) {
			t.Errorf("%s: ran: %v", c.what, ran)
		}
		if strings.HasPrefix(c.header, "Content-") || c.status == 200 {
			continue
		}
		wantStatus(t, c.what+" at /sse", w.do("GET", "/sse", "", as("alice", c.header)...), c.status)
		wantStatus(t, c.what+" at /healthz", w.do("GET", "/healthz", "", c.header), c.status)
	}
	for _, query := range []string{"?token=x", "?access_token=tok-alice", "?Access_Token=x", "?a=1&token"} {
		wantStatus(t, query, w.do("POST", "/mcp"+query, body, ok...), 400)
	}
	if strings.Contains(w.logged(), "tok-alice") {
		t.Error("a token is in the log")
	}
}

func TestB4NothingHappensByGET(t *testing.T) {
	w := newWeb(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/message?sessionId=x", 405}, {"POST", "/sse", 405}, {"PUT", "/mcp", 405}, {"HEAD", "/mcp", 405},
		{"OPTIONS", "/mcp", 405}, {"OPTIONS", "/sse", 405}, {"GET", "/mcp", 400}, {"POST", "/healthz", 405},
	} {
		body := ""
		if c.method == "POST" {
			body = callTool(1, "whoami")
		}
		wantStatus(t, c.method+c.path, w.do(c.method, c.path, body, as("alice")...), c.status)
	}
	if w.ran != 0 || len(w.happened()) != 0 {
		t.Errorf("something happened: %d %q", w.ran, w.happened())
	}
}

func TestC1AmbiguousJSONIsNotRun(t *testing.T) {
	w := newWeb(t)
	session := w.begin("alice")
	good := callTool(2, "whoami")
	for what, body := range map[string]string{
		"a member twice":  strings.Replace(good, `"id":2`, `"id":2,"id":3`, 1),
		"another case":    strings.Replace(good, `"method"`, `"Method"`, 1),
		"a kelvin sign":   strings.Replace(good, `"arguments":{}`, `"arguments":{"k":1,"\u212a":2}`, 1),
		"a long s":        strings.Replace(good, `"params"`, `"param\u017f"`, 1),
		"a NUL":           strings.Replace(good, `"id":2`, `"id":2,"id\u0000":3`, 1),
		"depth":           strings.Replace(good, `"arguments":{}`, `"arguments":{"a":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`}`, 1),
		"a batch":         "[" + good + "]",
		"two messages":    good + good,
		"not JSON at all": "fake-secret-canary",
	} {
		a := w.do("POST", "/mcp", body, as("alice", session)...)
		wantStatus(t, what, a, 400)
		if !strings.Contains(a.body, `"jsonrpc":"2.0"`) || strings.Contains(a.body, "canary") {
			t.Errorf("%s: told %s", what, a.body)
		}
	}
	if w.ran != 0 {
		t.Errorf("%d of them ran", w.ran)
	}
	wantStatus(t, "the plain one", w.do("POST", "/mcp", good, as("alice", session)...), 200)
}

func TestC2BodiesAreBounded(t *testing.T) {
	w := newWeb(t)
	w.bodyTime = 50 * time.Millisecond
	big := `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"` + strings.Repeat("a", 64<<10) + `"}}`
	a := w.do("POST", "/mcp", big, as("alice")...)
	wantStatus(t, "declared too large", a, 413)
	if !a.Close {
		t.Error("the connection goes on after a body that was not read")
	}
	chunked := w.request("POST", "/mcp", "", as("alice")...)
	chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(big)), -1
	res, err := http.DefaultTransport.RoundTrip(chunked)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("chunked: %d", res.StatusCode)
	}
	for what, head := range map[string]string{
		"a known sender":    "Authorization: Bearer tok-alice\r\n",
		"an unknown sender": "", // its body is never wanted, and must not hold the connection
	} {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%sContent-Length: 100\r\n\r\n{", head)
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("a slow body from %s holds its connection: %v", what, err)
		} else if res.StatusCode != 408 && res.StatusCode != 401 {
			t.Errorf("a slow body from %s: %d", what, res.StatusCode)
		}
		_ = conn.Close()
	}
}
