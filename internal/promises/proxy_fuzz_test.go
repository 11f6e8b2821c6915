//go:build linux

package promises

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"
)

// pieces are what paths are made of by somebody who wants one to be read in two ways.
var pieces = [...]string{"/", "/", "/open", "/open/", "open", "closed", "/closed", "x", "..", ".", "/../", "/./", "//", "%2e", "%2E%2e", "%252e", "%2f", "%2F", "%252f", "%5c", "\\",
	";", ";x=1", "%3b", "%00", "%", "%zz", "%c0%ae", "\xc0\xae", "é", "%u002e", "?", "#", "%23", "%3f", "@", ":", "http://127.0.0.1:1", "*", "%20", "+", "~", "%7e", "l", "/l/{H}"}

// TestD6PathsMadeAtRandom: whatever comes out at the upstream is one of the allowed requests, however often a server
// that is not as strict decodes it; and what is refused does not come out.
func TestD6PathsMadeAtRandom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(w.policyFile(), strings.Replace(openPolicy, "leaseRate: 0", "leaseRate: 0, useRate: 0", 1))
	var mu sync.Mutex
	var came []string
	up := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		came = append(came, r.RequestURI)
		mu.Unlock()
	})
	w.seed(proxied("svc", up, `allow: ["GET /open/*"]`))
	b := borrow(t, w.agent("claude"), "svc")
	random := rand.New(rand.NewPCG(11, 23))
	passed := 0
	for range 1500 {
		line := ""
		if random.IntN(2) == 0 {
			line = "/open/"
		}
		for range 1 + random.IntN(6) {
			line += pieces[random.IntN(len(pieces))]
		}
		got, err := wire("tcp", b.addr(), b.handle, "GET "+line+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n")
		if err != nil || strings.Contains(got, keyOf("svc")) {
			t.Fatalf("%q: %v %.200q", line, err, got)
		}
		mu.Lock()
		for _, uri := range came {
			passed++
			if why := strays(uri); why != "" {
				t.Errorf("%q came as %q: %s", line, uri, why)
			}
		}
		if ok := strings.HasPrefix(got, "HTTP/1.1 200 "); ok != (len(came) == 1) {
			t.Errorf("%q: %d requests came, and the answer was %.60q", line, len(came), got)
		}
		came = nil
		mu.Unlock()
	}
	if passed < 50 {
		t.Errorf("only %d of these paths passed: that tries nothing", passed)
	}
}

// strays says why a request is not GET /open/*, read as strictly or as loosely as servers do; "" when it is.
func strays(uri string) string {
	p, _, _ := strings.Cut(uri, "?")
	for range 3 {
		for _, loose := range []string{p, strings.ReplaceAll(p, `\`, "/"), strings.Split(p, ";")[0]} {
			clean := path.Clean(loose)
			if rest, ok := strings.CutPrefix(clean, "/open/"); !ok || strings.Contains(rest, "/") {
				return "it can be read as " + clean
			}
		}
		decoded, err := url.PathUnescape(p)
		if err != nil {
			return "it can't be decoded"
		}
		p = decoded
	}
	return ""
}
