package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"keylease/internal/use"
)

var (
	errAddress = errors.New("the address is not one that the upstream may have")
	errRoots   = errors.New("no certificate authorities")
)

// upstreams says how all of them are reached. No variable of the environment has a say in it.
type upstreams struct {
	egress *url.URL
	roots  func() (*x509.CertPool, error)
}

func newUpstreams(extra []byte, egress *url.URL) *upstreams {
	return &upstreams{egress: egress, roots: sync.OnceValues(func() (*x509.CertPool, error) { return authorities(extra) })}
}

// ways are the connections of one lease to its upstream. No two leases share any: what a service says beyond its answer
// is read as the answer to the next request on that connection, which would be somebody else's.
type ways struct {
	*upstreams

	mu  sync.Mutex // guards all
	all map[way]*http.Transport
}

// way is what decides about a connection.
type way struct {
	scheme, host string
	private      bool // the admin wrote that its address need not be public
}

// send sends one request to the upstream that it was made for. Redirects are handed back.
func (w *ways) send(r *http.Request, plan *use.Plan) (*http.Response, error) {
	t, err := w.to(r.URL, plan)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(r)
}

func (w *ways) to(to *url.URL, plan *use.Plan) (*http.Transport, error) {
	key := way{to.Scheme, to.Host, plan.Private()}
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.all[key]; t != nil {
		return t, nil
	}
	t, err := w.transport(to, plan)
	if err != nil {
		return nil, err
	}
	if w.all == nil {
		w.all = map[way]*http.Transport{}
	}
	w.all[key] = t
	return t, nil
}

func (w *ways) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.all {
		t.CloseIdleConnections()
	}
}

func (u *upstreams) transport(to *url.URL, plan *use.Plan) (*http.Transport, error) {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: leaseRest, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout:  10 * time.Minute, // models think
		MaxResponseHeaderBytes: 256 << 10, ForceAttemptHTTP2: true, WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}} // one whose network is gone would swallow requests for minutes
	if to.Scheme == "https" {
		roots, err := u.roots()
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: to.Hostname(), MinVersion: tls.VersionTLS12}
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if u.egress != nil && !plan.Private() {
		t.Proxy = http.ProxyURL(u.egress) // which resolves the name; its own address is the admin's word
	} else {
		dialer.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error { return allowed(plan, address) }
	}
	t.DialContext = dialer.DialContext
	return t, nil
}

// allowed is asked with the very address that is about to be connected to.
func allowed(plan *use.Plan, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return errAddress
	}
	if err := plan.CheckAddr(at.Addr()); err != nil {
		return fmt.Errorf("%w: %w", errAddress, err)
	}
	return nil
}

// bundles are where systems keep their authorities. SSL_CERT_FILE and SSL_CERT_DIR, which Go would ask, are whoever's
// started us.
var bundles = [...]string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem"}

func authorities(extra []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	if runtime.GOOS == "darwin" { // which asks the system, and no variable
		if system, err := x509.SystemCertPool(); err == nil {
			pool, found = system, true
		}
	}
	for _, file := range bundles {
		if found {
			break
		}
		if pem, err := os.ReadFile(file); err == nil {
			found = pool.AppendCertsFromPEM(pem)
		}
	}
	if len(extra) > 0 && pool.AppendCertsFromPEM(extra) {
		found = true
	}
	if !found {
		return nil, errRoots
	}
	return pool, nil
}
