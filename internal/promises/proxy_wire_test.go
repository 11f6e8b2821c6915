//go:build linux

package promises

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAnAnswerDoesNotWaitForTheBody: an upstream that answers before it has all of a body is heard at once, and what is
// left of the body is not taken for the next request.
func TestAnAnswerDoesNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	came := make(chan string, 10)
	up := far(t, func(path string, conn net.Conn, _ string) {
		came <- path
		_, _ = io.WriteString(conn, map[string]string{
			"/refuses": "HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno\n",
			"/streams": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno\n\r\n",
		}[path])
		_, _ = io.Copy(io.Discard, conn)
	})
	w.seed(proxied("svc", up, ""), proxied("whole", upstream(t, echo), ""))
	a := w.agent("claude")
	b := borrow(t, a, "svc")
	for path, want := range map[string]int{"/refuses": 401, "/streams": 200} {
		conn, err := net.Dial("tcp", b.addr())
		w.must(err)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 600\r\n\r\nabc", path, b.handle)
		w.must(err)
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, got); err != nil || res.StatusCode != want || string(got) != "no\n" || !res.Close {
			t.Errorf("%s: %d %q %v, closes: %v", path, res.StatusCode, got, err, res.Close)
		}
		_, _ = fmt.Fprintf(conn, "GET /smuggled HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", b.handle)
		if path == "/streams" {
			continue
		}
		if rest, _ := io.ReadAll(r); len(rest) > 0 {
			t.Errorf("what was left of a body had an answer: %.300q", rest)
		}
	}
	conn, err := net.Dial("tcp", b.addr())
	w.must(err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	handle, r, body := borrow(t, a, "whole").handle, bufio.NewReader(conn), strings.Repeat("x", 100<<10)
	for i := range 20 { // an answer to the whole of a request leaves the connection open
		_, err := fmt.Fprintf(conn, "POST /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", handle, len(body), body)
		w.must(err)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 200 || res.Close {
			t.Fatalf("%d: %v %+v", i, err, res)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatalf("%d: broken off after %d bytes: %v", i, n, err)
		}
	}
	close(came)
	for path := range came {
		if path == "/smuggled" {
			t.Error("what was left of a body was sent as a request")
		}
	}
}

// TestD6AnUpgradeIsNotAskedOfTheUpstream: Java's HttpClient asks every plain server for HTTP/2. That stays with us; an
// upstream that speaks HTTP/2 would have no such request.
func TestD6AnUpgradeIsNotAskedOfTheUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	far := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, r.Proto+"\n")
		echo(rw, r)
	}))
	far.EnableHTTP2 = true
	far.StartTLS()
	t.Cleanup(far.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	w.must(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: far.Certificate().Raw}), 0o600))
	w.configure("proxy: {ca: " + ca + "}\n")
	w.seed(proxied("plain", upstream(t, echo), ""), proxied("tls", far.URL, ""))
	a := w.agent("claude")
	for name, proto := range map[string]string{"plain": "GET ", "tls": "HTTP/2.0"} {
		b := borrow(t, a, name)
		got, err := wire("tcp", b.addr(), b.handle, head("GET /x", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Connection: Upgrade, HTTP2-Settings"))
		_, body, _ := strings.Cut(got, "\r\n\r\n")
		if err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.HasPrefix(body, proto) || !strings.Contains(body, "[secret]") {
			t.Errorf("%s: %v %s", name, err, got)
		}
		for _, gone := range []string{"Upgrade", "h2c", "Connection", "Settings"} {
			if strings.Contains(body, gone) {
				t.Errorf("%s: %q came to the upstream: %s", name, gone, body)
			}
		}
	}
}

// TestWhatAnAnswerLeadsToIsReachedThroughUs: redirects that say only a path, and the next page of a list.
func TestWhatAnAnswerLeadsToIsReachedThroughUs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var up string
	up = upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Location", r.URL.Query().Get("to"))
		rw.Header().Set("Link", "<"+up+`/base/list?page=2>; rel="next", </base/list?page=9>; rel="last", <https://other.example/a,b>; rel="x"`)
		rw.WriteHeader(302)
	})
	w.seed(proxied("svc", up+"/base", ""))
	b := borrow(t, w.agent("claude"), "svc")
	in := "/l/" + b.handle
	raw := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for to, want := range map[string]string{"/base/x%20y?a=b%23c": in + "/x%20y?a=b%23c", "/base": in + "/", "/other": up + "/other", "x?y": "x?y", up + "/base/x": in + "/x", strings.TrimPrefix(up, "http:") + "/base/x": in + "/x",
		"//other.example/base": "//other.example/base"} {
		got, err := doOver(raw, "GET", b.base+in+"/x?to="+strings.NewReplacer("%", "%25", "?", "%3F").Replace(to), "")
		w.must(err)
		if at := got.header.Get("Location"); at != want {
			t.Errorf("%s: %q, want %q", to, at, want)
		}
		if link, want := got.header.Get("Link"), "<"+b.base+in+`/list?page=2>; rel="next", <`+b.base+in+`/list?page=9>; rel="last", <https://other.example/a,b>; rel="x"`; link != want {
			t.Errorf("%q, want %q", link, want)
		}
	}
	if got, err := wire("unix", b.socket, b.handle, head("GET /x")); err != nil || !strings.Contains(got, "<"+up+"/base/list?page=2>") {
		t.Errorf("by the socket: %v %s", err, got)
	}
}

// TestB9NothingOfOursGoesOutInAURL: not behind escapes that make no sense either.
func TestB9NothingOfOursGoesOutInAURL(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) { t.Errorf("%s came", r.RequestURI) })
	w.seed(proxied("svc", up, ""))
	token, _ := w.token("alice")
	b := borrow(t, w.agent("claude"), "svc")
	for _, path := range []string{"/x?a=%zz&b=" + strings.Replace(b.handle, "_", "%5F", 1), "/x?b=" + token, "/x?a=%&b=%" + fmt.Sprintf("%02x", token[0]) + token[1:], "/" + token} {
		got, err := wire("tcp", b.addr(), b.handle, head("GET "+path))
		if err != nil || !strings.HasPrefix(got, "HTTP/1.1 400 ") || strings.Contains(got, b.handle) || strings.Contains(got, token) {
			t.Errorf("%.20s: %v %s", path, err, got)
		}
	}
}
