//go:build linux

package promises

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority issues certificates for a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	shape := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	a.cert = a.signed(shape, shape, key)
	return a
}

func (a *authority) signed(shape, parent *x509.Certificate, of *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, shape, parent, &of.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) pem() string { return pemOf("CERTIFICATE", a.cert.Raw) }

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issued is a certificate with its key.
type issued struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate for 127.0.0.1 or for one of these URIs that is good for so long.
func (a *authority) issue(name string, good time.Duration, usage x509.ExtKeyUsage, uris ...string) issued {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	shape := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(good), ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			a.t.Fatal(err)
		}
		shape.URIs = append(shape.URIs, u)
	}
	if usage == x509.ExtKeyUsageServerAuth {
		shape.IPAddresses, shape.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"keys.example.com"}
	}
	return issued{a.signed(shape, a.cert, key), key}
}

func (i issued) certPEM() string { return pemOf("CERTIFICATE", i.leaf.Raw) }

func (i issued) keyPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// client trusts a and shows this certificate, if any. It keeps its connection.
func (a *authority) client(show ...issued) *http.Client {
	c := &tls.Config{RootCAs: x509.NewCertPool()}
	c.RootCAs.AddCert(a.cert)
	for _, i := range show { // whatever the server asks for
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{i.leaf.Raw}, PrivateKey: i.key}, nil
		}
	}
	transport := &http.Transport{TLSClientConfig: c, MaxIdleConnsPerHost: 1}
	a.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// secure puts a server certificate there and returns its authority.
func (w *world) secure(more string) *authority {
	w.t.Helper()
	ca := newAuthority(w.t, "test servers")
	w.serverPair(ca.issue("one", time.Hour, x509.ExtKeyUsageServerAuth))
	w.configure("tls: {cert: tls/server.pem, key: tls/server.key" + more)
	return ca
}

func (w *world) tlsFile(name string) string { return filepath.Join(w.config(), "tls", name) }

func (w *world) serverPair(i issued) {
	w.t.Helper()
	w.write(w.tlsFile("server.key"), i.keyPEM(w.t))
	w.write(w.tlsFile("server.pem"), i.certPEM())
}

// seen is the common name of the certificate that a new connection is shown.
func (w *world) seen(s *served, ca *authority) string {
	w.t.Helper()
	client := ca.client()
	defer client.CloseIdleConnections()
	got, err := client.Get("https://" + s.addr + "/healthz")
	w.must(err)
	_ = got.Body.Close()
	if got.ProtoMajor != 1 || got.TLS.Version < tls.VersionTLS12 {
		w.t.Errorf("%s over TLS %x", got.Proto, got.TLS.Version)
	}
	return got.TLS.PeerCertificates[0].Subject.CommonName
}

// TestB5BeyondLoopbackOnlyWithTLS: it does not start where tokens would travel in the clear, or where nothing says by
// which names it may be called; with TLS and a name it does, and still lets nobody in without a proof.
func TestB5BeyondLoopbackOnlyWithTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0", "keys.example.com:0"} {
		if o := w.refused(2, "serve", "--http", addr); !strings.Contains(o.err, "does not start beyond loopback without TLS") {
			t.Errorf("%s: %s", addr, o)
		}
	}
	ca := w.secure("}\n")
	if o := w.refused(2, "serve", "--http", "0.0.0.0:0"); !strings.Contains(o.err, "nothing says by which names it may be called") {
		t.Errorf("without a name: %s", o)
	}
	w.must(os.Chmod(w.tlsFile("server.key"), 0o644))
	if o := w.refused(1, "serve"); !strings.Contains(o.err, "server.key is open to others (mode 0644)") {
		t.Errorf("a key that all may read: %s", o)
	}
	w.must(os.Chmod(w.tlsFile("server.key"), 0o600))
	w.configure("tls: {cert: tls/server.pem, key: tls/server.key}\nallowedHosts: [keys.example.com]\n")
	s := w.serve("--http", "0.0.0.0:0")
	base := "https://" + s.addr
	_, port, _ := strings.Cut(s.addr, ":")
	if said := s.log.String(); !strings.Contains(said, "on 0.0.0.0:"+port+", called as https://keys.example.com:"+port+"/mcp") || strings.Contains(said, "[::]") {
		t.Errorf("it says: %s", said)
	}
	if trail := w.ok("audit", "--event", "server.started", "--json"); !strings.Contains(trail, `"0.0.0.0:`+port+`"`) {
		t.Errorf("the trail says: %s", trail)
	}
	if conn, err := net.Dial("tcp", "[::1]:"+port); err == nil {
		_ = conn.Close()
		t.Error("0.0.0.0 answers over IPv6")
	}
	for _, c := range []struct {
		host   string
		status int
	}{{"keys.example.com", 401}, {"127.0.0.1", 401}, {"0.0.0.0", 403}, {"evil.example", 403}} {
		got, err := doOver(ca.client(), "POST", base+"/mcp", toolBody("list_credentials", args{}), "Host", c.host)
		w.must(err)
		if got.status != c.status {
			t.Errorf("called as %s: HTTP %d %s", c.host, got.status, got.body)
		}
	}
	if got, err := doOver(ca.client(), "GET", base+"/readyz", ""); err != nil || got.status != 200 || !strings.Contains(got.body, `"tls":"in force"`) {
		t.Errorf("/readyz: %v %s", err, got.body)
	}
	if got, err := do("GET", "http://"+s.addr+"/healthz", ""); err != nil || got.status != 400 {
		t.Errorf("in the clear: %v HTTP %d", err, got.status)
	}
}

// TestTLSFilesAreReadAgain: a renewed certificate is shown to the next connection, without a restart; one that is
// broken changes nothing but what the log and /readyz say.
func TestTLSFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.secure("}\n")
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("alice")
	held := ca.client()
	agent := w.web(s.addr, token, true)
	agent.base, agent.over = "https://"+s.addr, held
	id := lend(t, agent, "db")
	if name := w.seen(s, ca); name != "one" {
		t.Fatalf("shown %q", name)
	}
	ready := func() string {
		got, err := doOver(held, "GET", "https://"+s.addr+"/readyz", "")
		w.must(err)
		return got.body
	}

	w.write(w.tlsFile("server.pem"), ca.issue("half", time.Hour, x509.ExtKeyUsageServerAuth).certPEM())
	w.eventually("/readyz tells of a pair that does not fit", func() error { return unless(strings.Contains(ready(), "not in force"), ready()) })
	if name := w.seen(s, ca); name != "one" {
		t.Errorf("with a broken pair on disk: shown %q", name)
	}
	w.must(os.Remove(w.tlsFile("server.key")))
	time.Sleep(1100 * time.Millisecond)
	if name := w.seen(s, ca); name != "one" || !strings.Contains(ready(), "not in force") {
		t.Errorf("without a key on disk: shown %q; %s", name, ready())
	}
	if !strings.Contains(s.log.String(), "the TLS files changed and can't be used") || strings.Contains(s.log.String(), "PRIVATE KEY") {
		t.Errorf("the log says: %s", s.log)
	}
	w.serverPair(ca.issue("two", time.Hour, x509.ExtKeyUsageServerAuth))
	w.eventually("the new certificate is shown", func() error { name := w.seen(s, ca); return unless(name == "two", name) })
	if !strings.Contains(ready(), `"tls":"in force"`) {
		t.Error(ready())
	}
	if got := call(t, agent, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
		t.Errorf("a connection from before: %s", got.raw)
	}
	s.stop()

	// As a container platform swaps what it renews: everything behind one symbolic link.
	for _, name := range []string{"three", "four"} {
		pair := ca.issue(name, time.Hour, x509.ExtKeyUsageServerAuth)
		w.write(filepath.Join(w.config(), name, "server.pem"), pair.certPEM())
		w.write(filepath.Join(w.config(), name, "server.key"), pair.keyPEM(t))
	}
	link := func(to string) {
		w.must(os.Symlink(to, w.tlsFile("..new")))
		w.must(os.Rename(w.tlsFile("..new"), filepath.Join(w.config(), "now")))
	}
	link("three")
	w.configure("tls: {cert: now/server.pem, key: now/server.key}\n")
	s = w.serve()
	if name := w.seen(s, ca); name != "three" {
		t.Errorf("over a link: shown %q", name)
	}
	link("four")
	w.eventually("the link's new target is shown", func() error { name := w.seen(s, ca); return unless(name == "four", name) })
}

func unless(ok bool, what string) error {
	if ok {
		return nil
	}
	return errors.New(what)
}

// TestClientCertificates: a certificate that a rule maps is who it says, for as long as it is good and its authority
// is one of ours, request by request; every other is nobody. A token decides where there is one.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	w, agents, strangers := newWorld(t), newAuthority(t, "test agents"), newAuthority(t, "test strangers")
	ca := w.secure(`, clientCA: tls/clients.pem}
certificates:
  - {spiffe: ["spiffe://example.org/agents/*"], name: "{path}"}
`)
	w.write(w.tlsFile("clients.pem"), agents.pem())
	w.policy(foreignPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	const builder = "spiffe://example.org/agents/builder"
	as := func(show ...issued) *web {
		c := w.web(s.addr, "", true)
		c.base, c.over = "https://"+s.addr, ca.client(show...)
		return c
	}
	client := func(good time.Duration, uris ...string) issued {
		return agents.issue("x", good, x509.ExtKeyUsageClientAuth, uris...)
	}
	first := as(client(time.Hour, builder))
	id := lend(t, first, "db")
	if l := w.leases()[id]; l.Identity.Name != "agents/builder" || l.Identity.Proof != "mtls" || l.Identity.By != "cert:"+builder {
		t.Errorf("held by %+v", l.Identity)
	}
	if got := call(t, as(client(time.Hour, builder)), "lease_credential", args{"lease_id": id}); got.code() != "" {
		t.Errorf("renewed with the next certificate: %s", got.raw)
	}
	if got := call(t, as(client(time.Hour, "spiffe://example.org/agents/other")), "release_lease", args{"lease_id": id}); got.code() != "not_available" {
		t.Errorf("another's certificate: %s", got.raw)
	}

	status := func(c *web, headers ...string) int {
		got, err := doOver(c.over, "POST", c.base+"/mcp", toolBody("lease_credential", args{"credential": "db"}),
			append([]string{"Mcp-Protocol-Version", modern, "Mcp-Method", "tools/call", "Mcp-Name", "lease_credential"}, headers...)...)
		if err != nil {
			return 0 // no handshake
		}
		return got.status
	}
	for what, try := range map[string]struct {
		with issued
		want int
	}{
		"not mapped":        {client(time.Hour, "spiffe://example.org/other"), 401},
		"no name":           {client(time.Hour), 401},
		"two SPIFFE IDs":    {client(time.Hour, builder, builder+"2"), 401},
		"another domain":    {client(time.Hour, "spiffe://evil.example/agents/builder"), 401},
		"a name for no one": {client(time.Hour, "spiffe://example.org/agents/A%2f..%2f*"), 401},
		"expired":           {client(-time.Minute, builder), 0},
		"a server's":        {agents.issue("x", time.Hour, x509.ExtKeyUsageServerAuth, builder), 0},
		"another authority": {strangers.issue("x", time.Hour, x509.ExtKeyUsageClientAuth, builder), 0},
	} {
		if got := status(as(try.with)); got != try.want {
			t.Errorf("%s: HTTP %d, want %d", what, got, try.want)
		}
	}
	named := map[string]string{}
	for _, e := range find(w.audit(), "auth.failed") {
		named[e.Details["san"]] = e.Details["reason"]
	}
	if named["uri:spiffe://example.org/other"] != "client certificate that no identity matches" || len(named["uri:spiffe://example.org/agents/A%2f..%2f*"]) == 0 {
		t.Errorf("the trail names %v", named)
	}
	if got := status(as()); got != 401 {
		t.Errorf("neither token nor certificate: HTTP %d", got)
	}
	if got := status(first, "Authorization", "Bearer kl_wrong"); got != 401 {
		t.Errorf("a bad token over a good certificate: HTTP %d", got)
	}
	token, _ := w.token("carol")
	if got := status(first, "Authorization", "Bearer "+token); got != 200 {
		t.Errorf("a good token over a certificate: HTTP %d", got)
	}
	if denied(w.audit(), "db")[0].Identity.Name != "carol" {
		t.Error("the token did not decide who asks")
	}

	short := as(client(1500*time.Millisecond, builder)) // X.509 counts in whole seconds
	lend(t, short, "db")
	w.eventually("a certificate that expired on an open connection", func() error { return unless(status(short) == 401, "still let in") })
	w.write(w.tlsFile("clients.pem"), strangers.pem())
	w.eventually("an authority was taken away", func() error { return unless(status(first) == 401, "still let in") })
	for what, c := range map[string]*web{"over the open connection": first, "over a new one": as(client(time.Hour, builder))} {
		if got := status(c); got == 200 {
			t.Errorf("an authority that was taken away is believed %s", what)
		}
	}

	// Certificate and authorities are judged each by itself.
	w.write(w.tlsFile("clients.pem"), agents.pem())
	w.eventually("the authority is back", func() error { return unless(status(first) == 200, "kept out") })
	w.write(w.tlsFile("server.pem"), ca.issue("half", time.Hour, x509.ExtKeyUsageServerAuth).certPEM())
	w.write(w.tlsFile("clients.pem"), "# no authority any more\n")
	w.eventually("there is no authority, and a certificate that does not fit", func() error { return unless(status(first) == 401, "still let in") })
	if got, err := doOver(ca.client(), "GET", first.base+"/readyz", ""); err != nil || !strings.Contains(got.body, "not in force") || !strings.Contains(got.body, "nobody comes in by certificate") {
		t.Errorf("/readyz: %v %s", err, got.body)
	}
	if !strings.Contains(s.log.String(), "nobody comes in by certificate") {
		t.Errorf("the log says: %s", s.log)
	}
	w.write(w.tlsFile("clients.pem"), agents.pem())
	w.eventually("the authority is back, the certificate is not", func() error { return unless(status(first) == 200, "kept out") })
	w.must(os.Remove(w.tlsFile("clients.pem")))
	w.eventually("the file of authorities is gone", func() error { return unless(status(first) == 401, "still let in") })
}
