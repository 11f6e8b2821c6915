//go:build linux

package promises

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// trap listens and keeps what is sent to it.
func trap(t *testing.T) (addr string, heard *buffer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	heard = &buffer{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				for r := bufio.NewReader(conn); ; {
					line, err := r.ReadString('\n')
					_, _ = io.WriteString(heard, line)
					if err != nil || line == "\r\n" {
						_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heard
}

// TestD6TheWayOutIsTheOperatorsChoice: whom the proxy believes to be an upstream, and by whom it goes there, is in
// keylease.yaml; no variable of whoever started the daemon has a say.
func TestD6TheWayOutIsTheOperatorsChoice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good, evil := newAuthority(t, "good"), newAuthority(t, "evil")
	var protocol atomic.Value
	secured := func(by *authority) string {
		i := by.issue("one", time.Hour, x509.ExtKeyUsageServerAuth)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			protocol.Store(r.Proto)
			if by == evil {
				t.Error("a request came to somebody who is not the upstream")
			}
			echo(rw, r)
		}))
		s.TLS, s.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{i.leaf.Raw}, PrivateKey: i.key}}}, true
		s.Config.ErrorLog = stdlog.New(io.Discard, "", 0) // it would tell of the certificate that is refused
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	egress, heard := trap(t)
	hostile, caught := trap(t)
	w.write(filepath.Join(w.config(), "ca.pem"), good.pem())
	w.write(filepath.Join(w.home, "evil.pem"), evil.pem())
	w.configure("proxy: {ca: ca.pem, egress: \"http://" + egress + "\"}\n")
	serve := exec.Command(w.bin, "serve", "--http", "off")
	log := &buffer{}
	serve.Env, serve.Dir, serve.Stderr = w.env("SSL_CERT_FILE="+w.home+"/evil.pem", "SSL_CERT_DIR="+w.home, "HTTPS_PROXY=http://"+hostile, "HTTP_PROXY=http://"+hostile, "ALL_PROXY=http://"+hostile), w.home, log
	w.must(serve.Start())
	go func() { _ = serve.Wait() }()
	w.eventually("serve is up", func() error {
		if !w.answers() {
			return errors.New(log.String())
		}
		return nil
	})
	w.seed(proxied("good", secured(good), ""), proxied("evil", secured(evil), ""), proxied("plain", upstream(t, echo), ""),
		"name: public, type: api-key, value: "+keyOf("public")+", upstream: {service: openai}")
	a := w.agent("claude")
	for name, want := range map[string]int{"good": 200, "evil": 502, "plain": 200} {
		got, err := borrow(t, a, name).get("/x")
		w.must(err)
		if got.status != want {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if protocol.Load() != "HTTP/2.0" {
		t.Errorf("the upstream was spoken to in %v", protocol.Load())
	}
	if heard.String() != "" {
		t.Errorf("what is on this machine went by the egress proxy: %s", heard)
	}
	got, err := borrow(t, a, "public").get("/models")
	w.must(err)
	if got.status != 502 || !strings.HasPrefix(heard.String(), "CONNECT api.openai.com:443 HTTP/1.1\r\n") || strings.Contains(heard.String(), keyOf("public")) {
		t.Errorf("by the egress proxy: %d %s; it heard %s", got.status, got.body, heard)
	}
	if caught.String() != "" {
		t.Errorf("a proxy of the environment's was used: %s", caught)
	}
	w.write(filepath.Join(w.config(), "ca.pem"), "no certificate\n")
	w.stopDaemon()
	w.refused(2, "serve", "--http", "off")
	w.configure("proxy: {egress: \"socks://x\"}\n")
	w.refused(2, "serve", "--http", "off")
}

// TestD6OneLeasesAnswersReachNoOther: a service that is an answer late on a connection, because it once said more than
// one, gives its answers to whom they are not for. Where leases shared connections to it, one caller would read what
// another was told, masked with the wrong key.
func TestD6OneLeasesAnswersReachNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	t.Cleanup(func() { _ = l.Close() })
	var conns atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer conn.Close()
				in, late := bufio.NewReader(conn), ""
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					answer := sized("", r.URL.Path+" "+r.Header.Get("Authorization"))
					if late == "" {
						late = answer
					}
					_, _ = io.WriteString(conn, late)
					late = answer
				}
			}()
		}
	}()
	w.seed(proxied("one", "http://"+l.Addr().String(), ""), proxied("two", "http://"+l.Addr().String(), ""))
	leases := map[string]borrowed{}
	for _, name := range []string{"claude", "codex"} {
		a := w.agent(name)
		for _, credential := range []string{"one", "two"} {
			leases["/"+name+"-"+credential] = borrow(t, a, credential)
		}
	}
	const rounds = 3
	for range rounds {
		for path, b := range leases {
			got, err := b.get(path)
			w.must(err)
			if got.status != 200 || !strings.HasPrefix(got.body, path+" ") {
				told, _, _ := strings.Cut(got.body, " ")
				t.Errorf("%s was told %d, what was for %q", path, got.status, told)
			}
			if strings.Contains(got.body, keyOf("one")) || strings.Contains(got.body, keyOf("two")) {
				t.Errorf("%s was told a key", path)
			}
		}
	}
	if n := int(conns.Load()); n != len(leases) {
		t.Errorf("%d connections for %d requests by %d leases: each lease keeps its own", n, rounds*len(leases), len(leases))
	}
}
