//go:build linux

package promises

import (
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestD6NothingLeadsPastARule: requests as no client library would send them, over a bare socket. Each is refused, or
// reaches the upstream as what was allowed and nothing else.
func TestD6NothingLeadsPastARule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	var came []string
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		came = append(came, r.Method+" "+r.RequestURI+" "+r.Host)
		mu.Unlock()
	})
	host := strings.TrimPrefix(up, "http://")
	elsewhere := upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("a request went elsewhere") })
	other := strings.TrimPrefix(elsewhere, "http://")
	w.seed(proxied("svc", up+"/v1", `allow: ["GET,POST /open/*"]`), proxied("two", up, ""))
	a := w.agent("claude")
	b, second := borrow(t, a, "svc"), borrow(t, a, "two")
	const tail = " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n"
	refused := map[string]string{ // each with the status that refuses it
		"CONNECT " + other + tail:                                        "400",
		"CONNECT /open/x" + tail:                                         "400",
		"GET " + elsewhere + "/open/x" + tail:                            "400",
		"GET " + up + "/open/x" + tail:                                   "400",
		"GET HTTP://localhost/open/x" + tail:                             "400",
		"OPTIONS *" + tail:                                               "400",
		"GET open/x" + tail:                                              "400",
		"GET @" + other + "/open/x" + tail:                               "400",
		"GET //" + other + "/open/x" + tail:                              "403",
		"GET /open//x" + tail:                                            "403",
		"GET /open/../closed" + tail:                                     "403",
		"GET /open/./x" + tail:                                           "403",
		"GET /open/%2e%2e/closed" + tail:                                 "403",
		"GET /open/%2E%2E%2Fclosed" + tail:                               "403",
		"GET /open/..%2fclosed" + tail:                                   "403",
		"GET /open/x%2f..%2f..%2fclosed" + tail:                          "403",
		"GET /open/%252e%252e%252fclosed" + tail:                         "403",
		"GET /open/..;/closed" + tail:                                    "403",
		"GET /open/x;/../closed" + tail:                                  "403",
		"GET /open/..%5cclosed" + tail:                                   "403",
		`GET /open/..\closed` + tail:                                     "403",
		`GET /open\x` + tail:                                             "403",
		"GET /open/x%00" + tail:                                          "403",
		"GET /open/x%0d%0aHost:%20evil" + tail:                           "403",
		"GET /open/x#/../../closed" + tail:                               "403",
		"GET /open/%c0%ae%c0%ae/closed" + tail:                           "403",
		"GET /open/\xc0\xae\xc0\xae/closed" + tail:                       "403",
		"GET /open/x/y" + tail:                                           "403",
		"GET /OPEN/x" + tail:                                             "403",
		"GET /closed" + tail:                                             "403",
		"DELETE /open/x" + tail:                                          "403",
		"get /open/x" + tail:                                             "403",
		"TRACE /open/x" + tail:                                           "403",
		"GET /open/x?_method=DELETE" + tail:                              "403",
		"GET /open/x?access_token={H}" + tail:                            "400",
		"GET /open/x?a=kl%68_AAAAAAAAAAAAAAAAAAAAAAAAAA" + tail:          "400",
		"GET /open/{H}" + tail:                                           "400",
		"GET /l/{H}/../closed" + tail:                                    "403",
		"GET /l/{H}//" + other + tail:                                    "403",
		"GET /l/{H}" + tail:                                              "403",
		"GET /l/" + second.handle + "/open/x" + tail:                     "400", // two handles
		head("GET /open/x", "X-Api-Key: "+second.handle):                 "400",
		head("GET /open/x", "Upgrade: websocket", "Connection: Upgrade"): "501",
		head("GET /open/x", "Origin: http://evil.example"):               "403",
		head("GET /open/x", "Origin: null"):                              "403",
		head("GET /open/x", "Sec-Fetch-Site: cross-site"):                "403",
		head("GET /open/x", "Content-Length: 0", "Content-Length: 5"):    "400",
		head("GET /open/x", "Transfer-Encoding: identity, chunked"):      "501",
		head("GET /open/x", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"):                          "501",
		head("GET /open/x", "X-Bad : v"):                                                                         "400",
		"GET /open/x HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n":   "403",
		"GET /open/x HTTP/1.1\r\nHost: 127.0.0.1.evil\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n": "403",
		"GET /open/x HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nAuthorization: Bearer {H}\r\n\r\n":             "400",
		"GET /open/x HTTP/1.1\r\nAuthorization: Bearer {H}\r\n\r\n":                                              "400",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                                                       "",
	}
	for text, status := range refused {
		got, err := wire("tcp", b.addr(), b.handle, text)
		if err != nil && status != "" || !strings.HasPrefix(got, "HTTP/1.1 "+status) {
			t.Errorf("%q: %v %.200q, want %s", text, err, got, status)
		}
		if strings.Contains(got, keyOf("svc")) || strings.Contains(got, keyOf("two")) {
			t.Errorf("%q: the key came back", text)
		}
	}
	mu.Lock()
	if len(came) > 0 {
		t.Errorf("what was refused came to the upstream: %q", came)
	}
	came = nil
	mu.Unlock()
	for text, want := range map[string]string{
		"GET /open/x" + tail:                                                      "GET /v1/open/x",
		"GET /open/%78" + tail:                                                    "GET /v1/open/x",
		"GET /open/a%20b?q=%2e%2e/..&x=//" + tail:                                 "GET /v1/open/a%20b?q=%2e%2e/..&x=//",
		"GET /l/{H}/open/x" + tail:                                                "GET /v1/open/x",
		head("GET /open/x", "X-HTTP-Method: DELETE", "X-Host: "+other):            "GET /v1/open/x",
		head("GET /open/x", "X-Forwarded-Host: "+other, "Forwarded: host="+other): "GET /v1/open/x",
		head("GET /open/x", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Connection: Upgrade, HTTP2-Settings"): "GET /v1/open/x",
		// With both, net/http goes by the chunks and passes on no length: what follows them is the next request.
		"POST /open/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /closed" + tail: "POST /v1/open/x",
	} {
		if got, err := wire("tcp", b.addr(), b.handle, text); err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q: %v %.300q", text, err, got)
		}
		mu.Lock()
		if len(came) != 1 || came[0] != want+" "+host {
			t.Errorf("%q came as %q, want %q", text, came, want)
		}
		came = nil
		mu.Unlock()
	}
	// By the socket tools call the service by its own name.
	if got, err := wire("unix", b.socket, b.handle, "GET /open/x HTTP/1.1\r\nHost: api.svc.example\r\nAuthorization: token {H}\r\nConnection: close\r\n\r\n"); err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("by the socket: %v %.300q", err, got)
	}
}

// head is a request with these headers too.
func head(line string, headers ...string) string {
	return line + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\n" + strings.Join(headers, "\r\n") + "\r\nConnection: close\r\n\r\n"
}
