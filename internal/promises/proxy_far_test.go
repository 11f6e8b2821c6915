//go:build linux

package promises

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// spelled are the usual ways to write a key.
func spelled(key string) []string {
	return []string{key, base64.StdEncoding.EncodeToString([]byte(key))[:len(key)], base64.RawURLEncoding.EncodeToString([]byte("u:" + key))[4:40],
		hex.EncodeToString([]byte(key)), url.QueryEscape("+" + key)[3:], strings.ToLower(key), key[:len(key)-1]}
}

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
	return b.String()
}

func zlibbed(s string) string {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
	return b.String()
}

func flated(s string) string {
	var b bytes.Buffer
	z, _ := flate.NewWriter(&b, 5)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
	return b.String()
}

func sized(head, body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(strings.ReplaceAll(body, "{K}", keyOf("svc")))) + body
}

// TestD6WhatComesBackIsMasked: an upstream that says the key in any place where HTTP has room for it, and ones that break
// off, lie about encodings or say nothing. {K} is the key. What the client gets never holds it, nor does the log.
func TestD6WhatComesBackIsMasked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("log: {level: debug}\n")
	key := keyOf("svc")
	long := strings.Repeat("0123456789", 5000)
	cases := map[string]struct {
		say  string
		want []string // beginning of the status line, then what the rest holds
	}{
		"body":            {sized("", "the key is {K}."), []string{"200", "the key is [secret].", "Content-Length: 20"}},
		"base64":          {sized("", "b64 "+base64.StdEncoding.EncodeToString([]byte("user:"+key))), []string{"200", "b64 ", "[secret]"}},
		"long body":       {sized("", long+"{K}"+long), []string{"200", "[secret]"}},
		"header":          {sized("X-Echo: {K}\r\nX-Two: a\r\nX-Two: Bearer {K}\r\n", "x"), []string{"200", "X-Echo: [secret]", "X-Two: Bearer [secret]"}},
		"header's name":   {sized("X-{K}: v\r\n", "x"), []string{"200"}},
		"reason":          {"HTTP/1.1 200 {K}\r\nContent-Length: 2\r\n\r\nok", []string{"200 OK", "ok"}},
		"odd status":      {"HTTP/1.1 777 {K}\r\nContent-Length: 2\r\n\r\nok", []string{"502"}},
		"no status":       {"{K} {K} {K}\r\n\r\n", []string{"502"}},
		"no HTTP":         {"{K}\r\n\r\n", []string{"502"}},
		"bad header":      {"HTTP/1.1 200 OK\r\n{K}\r\n\r\nx", []string{"502"}},
		"bad length":      {"HTTP/1.1 200 OK\r\nContent-Length: {K}\r\n\r\nx", []string{"502"}},
		"bad encoding":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: {K}\r\n\r\nx", []string{"502"}},
		"early hints":     {"HTTP/1.1 103 Early Hints\r\nLink: <{K}>\r\n\r\n" + sized("", "x"), []string{"200", "x"}},
		"trailer":         {"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: {K}\r\n\r\n", []string{"200", "ok", "X-Sum: [secret]"}},
		"hidden trailer":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: {K}\r\n\r\n", []string{"200", "ok"}},
		"cookie":          {sized("Set-Cookie: k={K}\r\nSet-Cookie: a=b\r\n", "x"), []string{"200"}},
		"gzip":            {sized("Content-Encoding: gzip\r\n", gzipped("the key is "+key+".")), []string{"200", "the key is [secret]."}},
		"gzip twice":      {sized("Content-Encoding: gzip, x-gzip\r\n", gzipped(gzipped("the key is "+key+"."))), []string{"200", "the key is [secret]."}},
		"deflate":         {sized("Content-Encoding: deflate\r\n", zlibbed("the key is "+key+".")), []string{"200", "the key is [secret]."}},
		"raw deflate":     {sized("Content-Encoding: deflate\r\n", flated("the key is "+key+".")), []string{"200", "the key is [secret]."}},
		"empty gzip":      {sized("Content-Encoding: gzip\r\n", ""), []string{"200"}},
		"not gzip":        {sized("Content-Encoding: gzip\r\n", "{K}{K}{K}"), []string{"200"}},
		"brotli":          {sized("Content-Encoding: br\r\n", "{K}"), []string{"502", "encoding"}},
		"a part":          {"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/90\r\nContent-Length: 3\r\n\r\nabc", []string{"502", "part"}},
		"another":         {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{K}", []string{"502"}},
		"short body":      {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{K}", []string{"502", "closed the connection"}},
		"short long body": {"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + long + "{K}", []string{"200"}},
		"short chunks":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{K}", []string{"200"}},
		"nothing":         {"", []string{"502", "closed the connection"}},
		"bare close":      {"HTTP/1.0 200 OK\r\n\r\nthe key is {K}", []string{"200", "the key is ", "[secret]"}},
		"no content":      {"HTTP/1.1 204 {K}\r\nX-Echo: {K}\r\nContent-Length: 5\r\n\r\n{K}", []string{"204", "X-Echo: [secret]"}},
		"not modified":    {"HTTP/1.1 304 {K}\r\nEtag: {K}\r\nContent-Length: 40\r\n\r\n{K}", []string{"304", "Etag: [secret]"}},
		"two lengths":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nok{K}", []string{"502"}},
		"length, chunks":  {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{K}", []string{"200", "ok"}},
		"odd trailers":    {"HTTP/1.1 200 OK\r\nTrailer: Set-Cookie, X-{K}, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: a=b\r\nX-{K}: x\r\nX-Sum: {K}\r\n\r\n", []string{"200", "ok", "X-Sum: [secret]"}},
		"trailer, length": {"HTTP/1.1 200 OK\r\nTrailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n", []string{"502"}},
		"hops":            {"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop, Content-Type\r\nKeep-Alive: {K}\r\nProxy-Authenticate: {K}\r\nX-Hop: {K}\r\nContent-Length: 2\r\n\r\nok", []string{"200", "ok"}},
		"long stream":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n" + "zz\r\n{K}", []string{"200"}},
		"unasked":         {sized("", "ok") + "{W} {W}\r\n\r\n", []string{"200", "ok"}},
	}
	var speaking atomic.Int32
	up := far(t, func(path string, conn net.Conn, k string) {
		speaking.Add(1)
		defer speaking.Add(-1)
		name, _ := url.PathUnescape(strings.TrimPrefix(path, "/"))
		if k != key {
			t.Errorf("%s came without the key", name)
		}
		for i, part := range strings.Split(strings.ReplaceAll(cases[name].say, "{W}", k), "{K}") {
			if i > 0 { // in pieces, as a network does
				for half := range strings.SplitSeq(k[:9]+" "+k[9:], " ") {
					_, _ = io.WriteString(conn, half)
					time.Sleep(2 * time.Millisecond)
				}
			}
			_, _ = io.WriteString(conn, part)
		}
		time.Sleep(5 * time.Millisecond)
	})
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	for name, c := range cases {
		for speaking.Load() > 0 { // what it still says would be the answer to this request, where the connection is used again
			time.Sleep(time.Millisecond)
		}
		got, err := wire("tcp", b.addr(), b.handle, "GET /"+url.PathEscape(name)+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.HasPrefix(got, "HTTP/1.1 "+c.want[0]) {
			t.Errorf("%s: %.300q", name, got)
		}
		for _, want := range c.want[1:] {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %.500q", name, want, got)
			}
		}
		whole := strings.HasSuffix(got, "0\r\n\r\n")
		if cut := strings.HasPrefix(name, "short l") || name == "short chunks" || name == "not gzip" || name == "long stream"; cut && whole {
			t.Errorf("%s: half an answer passes for a whole one: %.300q", name, got[max(0, len(got)-300):])
		}
		for _, form := range spelled(key) {
			if strings.Contains(got, form) || strings.Contains(strings.ToLower(got), strings.ToLower(key)) {
				t.Errorf("%s: the key came back: %.2000q", name, got)
			}
		}
		for _, gone := range []string{"Set-Cookie", "Early Hints", "103 ", "X-Hop", "Keep-Alive", "Proxy-Authenticate"} {
			if strings.Contains(got, gone) {
				t.Errorf("%s: %q came back", name, gone)
			}
		}
	}
	w.killDaemon() // so that all of its log is there
	log, err := os.ReadFile(filepath.Join(w.data(), "daemon.log"))
	w.must(err)
	for _, hidden := range append(spelled(key), b.handle) {
		if strings.Contains(string(log), hidden) {
			t.Errorf("the log holds a key or a handle: %.2000s", log)
		}
	}
}

// TestD6UpstreamsThatFail: each has its answer, which holds no address and no key.
func TestD6UpstreamsThatFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	down, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	port := down.Addr().(*net.TCPAddr).Port
	_ = down.Close()
	plain := upstream(t, echo)
	w.seed(proxied("down", fmt.Sprintf("http://127.0.0.1:%d", port), ""), proxied("tls", strings.Replace(plain, "http:", "https:", 1), ""),
		proxied("inner", strings.Replace(plain, "127.0.0.1", "localhost.localdomain", 1), ""), proxied("nowhere", "https://nowhere.invalid", ""))
	a := w.agent("claude")
	for name, want := range map[string]string{"down": "refused the connection", "tls": "does not speak TLS", "nowhere": "could not be resolved"} {
		got, err := borrow(t, a, name).get("/x?secret=query")
		w.must(err)
		if got.status != 502 || !strings.Contains(got.body, want) {
			if name == "nowhere" && got.status >= 502 { // a machine without any resolver says it in another way
				continue
			}
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		for _, gone := range []string{"127.0.0.1", "nowhere", "query", keyOf(name)} {
			if strings.Contains(got.body, gone) {
				t.Errorf("%s: the answer holds %q: %s", name, gone, got.body)
			}
		}
	}
}

// TestD6ABombIsUnpackedAPieceAtATime: an answer that is a thousand times larger unpacked fills no memory, and ends when
// its reader leaves.
func TestD6ABombIsUnpackedAPieceAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bomb := gzipped(strings.Repeat("\x00", 64<<20))
	up := far(t, func(_ string, conn net.Conn, _ string) {
		_, _ = io.WriteString(conn, sized("Content-Encoding: gzip\r\n", bomb))
	})
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	got, err := b.get("/x")
	w.must(err)
	if len(got.body) != 64<<20 {
		t.Errorf("%d bytes", len(got.body))
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.holder()))
	w.must(err)
	_, high, _ := strings.Cut(string(status), "VmHWM:")
	var kb int
	_, _ = fmt.Sscan(high, &kb)
	if kb == 0 || kb > 100<<10 {
		t.Errorf("the daemon took %d KiB", kb)
	}
}

// TestD6StreamsPassAtOnce: an event is with the client before the next is made, masked where the key is in it.
func TestD6StreamsPassAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	next := make(chan string)
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/x-ndjson") // which nobody takes for a stream by its name
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		for {
			select {
			case text, more := <-next:
				if !more {
					return
				}
				_, _ = io.WriteString(rw, text)
				rw.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	ctx, cancel := timeout()
	defer cancel()
	r, err := request(ctx, "GET", b.base+"/x", "", "Authorization", "Bearer "+b.handle)
	w.must(err)
	res, err := http.DefaultClient.Do(r) // before the first event
	w.must(err)
	defer res.Body.Close()
	key := keyOf("svc")
	buf := make([]byte, 100)
	for _, step := range []struct{ sends, want string }{{"data: one\n\n", "data: one\n\n"}, {"data: " + key + "\n\n", "data: [secret]\n\n"}, {"data: " + key[:12], "data: "}, {key[12:] + "\n\n", "[secret]\n\n"}} {
		next <- step.sends
		got := ""
		for len(got) < len(step.want) {
			n, err := res.Body.Read(buf)
			if got += string(buf[:n]); err != nil {
				t.Fatalf("%q: %v", got, err)
			}
		}
		if got != step.want {
			t.Fatalf("%q, want %q", got, step.want)
		}
	}
	close(next)
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("the end: %q %v", rest, err)
	}
}
