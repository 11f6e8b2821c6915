package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// TLSRead is one look at the files of the server's certificate.
type TLSRead struct {
	Cert, Key []byte // PEM; nil when Stamp is the one that was given: nothing changed
	ClientCA  []byte // PEM; nil: client certificates are not asked for
	Stamp     string // changes whenever one of the files does
	Err       error
}

// tlsLook is how often the files are looked at while connections come.
const tlsLook = time.Second

// tlsKeeper is the TLS that is in force. What replaces it must be whole: until it is, the old certificate serves on.
type tlsKeeper struct {
	read func(prevStamp string) TLSRead
	now  func() time.Time
	log  zerolog.Logger

	mu      sync.Mutex // guards what follows
	config  *tls.Config
	clients *x509.CertPool // nil: no client certificates
	ends    time.Time      // the leaf's notAfter
	stamp   string         // of the files as last read, in force or not
	problem string         // why those are not in force
	looked  time.Time
}

// newTLSKeeper reads the files, which have to be good at the start.
func newTLSKeeper(read func(prevStamp string) TLSRead, now func() time.Time, log zerolog.Logger) (*tlsKeeper, error) {
	k := &tlsKeeper{read: read, now: now, log: log}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.look(); err != nil {
		return nil, fmt.Errorf("setting up TLS: %w", err)
	}
	return k, nil
}

// look reads the files again if they changed. Caller holds mu.
func (k *tlsKeeper) look() error {
	k.looked = k.now()
	r := k.read(k.stamp)
	if r.Err == nil && r.Cert == nil {
		return nil
	}
	var config *tls.Config
	err := r.Err
	if err == nil {
		k.stamp = r.Stamp
		config, err = tlsConfig(r)
	}
	if err != nil {
		if k.problem != err.Error() && k.config != nil {
			k.log.Warn().Err(err).Msg("the TLS files changed and can't be used; the certificate from before stays in force")
		}
		k.problem = err.Error()
		return err
	}
	if k.config != nil {
		k.log.Info().Time("ends", config.Certificates[0].Leaf.NotAfter).Msg("the TLS files changed and are in force")
	}
	k.config, k.clients, k.ends, k.problem = config, config.ClientCAs, config.Certificates[0].Leaf.NotAfter, ""
	return nil
}

// tlsConfig makes of files what the server speaks with: TLS 1.2 or later and HTTP/1.1, of which one connection is one
// call at a time, so that limits on connections bound what a client may have in flight. There are no session tickets:
// they would carry a client's certificate past a change of what it is checked against.
func tlsConfig(r TLSRead) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(r.Cert, r.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key do not fit together: %w", err)
	}
	if pair.Leaf == nil {
		return nil, errors.New("the certificate could not be read")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	if r.ClientCA != nil {
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
		if !c.ClientCAs.AppendCertsFromPEM(r.ClientCA) {
			return nil, errors.New("the file of client CAs holds no certificate in PEM")
		}
	}
	return c, nil
}

// fresh looks at the files unless that was just done. Caller holds mu.
func (k *tlsKeeper) fresh() {
	if k.now().Sub(k.looked) >= tlsLook {
		_ = k.look() // said in the log and in status
	}
}

// clientCAs are the authorities of now.
func (k *tlsKeeper) clientCAs() *x509.CertPool {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fresh()
	return k.clients
}

// status is what /readyz says; "" without TLS.
func (k *tlsKeeper) status() string {
	if k == nil {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fresh()
	switch {
	case k.problem != "":
		return "the files on disk are not in force: see the log"
	case !k.now().Before(k.ends):
		return "the certificate has expired"
	}
	return "in force"
}

// over makes TLS of what l accepts. It has to be the outermost: net/http looks for a *tls.Conn.
func (k *tlsKeeper) over(l net.Listener) net.Listener {
	if k == nil {
		return l
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.fresh()
			return k.config, nil
		}})
}
