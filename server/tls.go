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

// TLSFiles are the files of the server's certificate. Each of the two looks is judged by itself: what is wrong with one
// changes nothing of the other.
type TLSFiles struct {
	Pair     func(prevStamp string) TLSRead // certificate and key, in this order
	ClientCA func(prevStamp string) TLSRead // nil: client certificates are not asked for
}

// TLSRead is one look at some files.
type TLSRead struct {
	PEM   [][]byte // one for each file; nil when Stamp is the one that was given: nothing changed
	Stamp string   // changes whenever one of the files does
	Err   error
}

// tlsLook is how often the files are looked at while connections come.
const tlsLook = time.Second

// tlsPart is files that are judged together.
type tlsPart struct {
	read  func(prevStamp string) TLSRead
	stamp string // of the files as last read, in force or not
	fault error  // what is wrong with them
}

// look reads the files again if they changed, and lets use judge what is in them. news is whether anything is different
// from what the last look found.
func (p *tlsPart) look(use func(pem [][]byte) error) (news bool) {
	r := p.read(p.stamp)
	if r.Err == nil && r.PEM == nil {
		return false
	}
	before := p.fault
	p.stamp, p.fault = r.Stamp, r.Err
	if r.Err != nil {
		p.stamp = "" // the same files may be good again, as when only their mode was wrong
	} else {
		p.fault = use(r.PEM)
	}
	return p.fault == nil || before == nil || before.Error() != p.fault.Error()
}

// tlsKeeper is the TLS that is in force. A new certificate must be whole: until it is, the old one serves on. With the
// authorities of clients it is the other way round: while their file is not good nobody comes in by certificate, because
// taking an authority away must not fail for what else is in the file.
type tlsKeeper struct {
	now func() time.Time
	log zerolog.Logger

	mu            sync.Mutex // guards what follows
	config        *tls.Config
	pair          tls.Certificate
	clients       *x509.CertPool // nil: no client certificates
	served, vouch tlsPart        // certificate and key; authorities of clients
	looked        time.Time
}

// newTLSKeeper reads the files, which have to be good at the start.
func newTLSKeeper(files TLSFiles, now func() time.Time, log zerolog.Logger) (*tlsKeeper, error) {
	k := &tlsKeeper{now: now, log: log, served: tlsPart{read: files.Pair}, vouch: tlsPart{read: files.ClientCA}}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.look()
	if err := errors.Join(k.served.fault, k.vouch.fault); err != nil {
		return nil, fmt.Errorf("setting up TLS: %w", err)
	}
	return k, nil
}

// look reads the files again if they changed. Caller holds mu.
func (k *tlsKeeper) look() {
	k.looked = k.now()
	running := k.config != nil
	news := k.lookAtPair(running)
	if k.vouch.read != nil && k.lookAtClients(running) {
		news = true
	}
	if news && len(k.pair.Certificate) > 0 {
		k.config = tlsConfig(k.pair, k.clients)
	}
}

func (k *tlsKeeper) lookAtPair(running bool) (news bool) {
	news = k.served.look(func(pem [][]byte) error {
		pair, err := tls.X509KeyPair(pem[0], pem[1])
		if err != nil {
			return fmt.Errorf("certificate and key do not fit together: %w", err)
		}
		if pair.Leaf == nil {
			return errors.New("the certificate could not be read")
		}
		k.pair = pair
		return nil
	})
	switch {
	case !news || !running:
	case k.served.fault != nil:
		k.log.Warn().Err(k.served.fault).Msg("the TLS files changed and can't be used; the certificate from before stays in force")
	default:
		k.log.Info().Time("ends", k.pair.Leaf.NotAfter).Msg("the TLS files changed and are in force")
	}
	return news
}

func (k *tlsKeeper) lookAtClients(running bool) (news bool) {
	clients := x509.NewCertPool()
	news = k.vouch.look(func(pem [][]byte) error {
		if !clients.AppendCertsFromPEM(pem[0]) {
			return errors.New("the file of client CAs holds no certificate in PEM")
		}
		return nil
	})
	if !news {
		return false
	}
	k.clients = clients // empty where there is a fault: then nobody is vouched for
	switch {
	case !running:
	case k.vouch.fault != nil:
		k.log.Warn().Err(k.vouch.fault).Msg("the file of client CAs can't be used; until it can, nobody comes in by certificate")
	default:
		k.log.Info().Msg("the file of client CAs changed and is in force")
	}
	return true
}

// tlsConfig is what the server speaks with: TLS 1.2 or later and HTTP/1.1, of which one connection is one
// call at a time, so that limits on connections bound what a client may have in flight. There are no session tickets:
// they would carry a client's certificate past a change of what it is checked against.
func tlsConfig(pair tls.Certificate, clients *x509.CertPool) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	if clients != nil {
		c.ClientCAs, c.ClientAuth = clients, tls.VerifyClientCertIfGiven
	}
	return c
}

// fresh looks at the files unless that was just done. Caller holds mu.
func (k *tlsKeeper) fresh() {
	if k.now().Sub(k.looked) >= tlsLook {
		k.look() // what is wrong is said in the log and in status
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
	said := "in force"
	switch {
	case k.served.fault != nil:
		said = "the files on disk are not in force: see the log"
	case !k.now().Before(k.pair.Leaf.NotAfter):
		said = "the certificate has expired"
	}
	if k.vouch.fault != nil {
		said += "; nobody comes in by certificate: see the log"
	}
	return said
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
