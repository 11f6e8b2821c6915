package federation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"keylease/internal/identity"
)

func TestACertificateIsTheOneNameInItThatItsRuleMatches(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now, serial := time.Now(), int64(0)
	make := func(change func(*x509.Certificate)) *x509.Certificate {
		serial++
		shape := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
		change(shape)
		der, err := x509.CreateCertificate(rand.Reader, shape, shape, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	uris := func(all ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for _, s := range all {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	d, err := New(Config{Certificates: []Certificate{
		{SPIFFE: []string{"spiffe://example.org/*"}, Name: "{domain}/{path}"},
		{URI: []string{"dns:*", "spiffe://other.example/*"}, Name: "uri/{san}"},
		{DNS: []string{"*.agents.example"}, Name: "{san}"},
		{Email: []string{"*@example.com"}, Type: "human"},
	}}, Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct {
		what           string
		make           func(*x509.Certificate)
		name, by, fail string
	}{
		{"a SPIFFE ID", uris("spiffe://example.org/ns/a/sa/b"), "example.org/ns/a/sa/b", "cert:spiffe://example.org/ns/a/sa/b", ""},
		{"two of them", uris("spiffe://example.org/a", "spiffe://example.org/b"), "", "", whyNoSAN},
		{"a URI", uris("https://example.org/", "dns:a.agents.example"), "uri/dns:a.agents.example", "cert:uri:dns:a.agents.example", ""},
		{"a DNS name that reads like it", func(c *x509.Certificate) { c.DNSNames = []string{"a.agents.example"} }, "a.agents.example", "cert:dns:a.agents.example", ""},
		{"the one DNS name that matches", func(c *x509.Certificate) { c.DNSNames = []string{"x.example", "a.agents.example"} }, "a.agents.example", "cert:dns:a.agents.example", ""},
		{"two that match", func(c *x509.Certificate) { c.DNSNames = []string{"b.agents.example", "a.agents.example"} }, "", "", whyManySANs},
		{"one that is a pattern", func(c *x509.Certificate) { c.DNSNames = []string{"*.agents.example"} }, "", "", whyCertificate},
		{"an e-mail", func(c *x509.Certificate) { c.EmailAddresses = []string{"ann@example.com"} }, "ann@example.com", "cert:email:ann@example.com", ""},
		{"a common name", func(c *x509.Certificate) { c.Subject.CommonName = "a.agents.example" }, "", "", whyNoSAN},
		{"not for clients", func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = []string{"a.agents.example"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, "", "", whyUntrusted},
		{"expired", func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"a.agents.example"}, now.Add(-time.Second)
		}, "", "", whyUntrusted},
	} {
		cert, roots := make(c.make), x509.NewCertPool()
		roots.AddCert(cert)
		e, err := d.Certificate([]*x509.Certificate{cert}, roots)
		var no *Refused
		if errors.As(err, &no) && no.Why != c.fail || e.Name != c.name || e.By != c.by || err == nil && (e.Proof != identity.MTLS || !e.Until.Equal(cert.NotAfter)) {
			t.Errorf("%s: %v, %+v", c.what, err, e)
		}
		if e, err := d.Certificate([]*x509.Certificate{cert}, x509.NewCertPool()); err == nil || e != (Entrant{}) {
			t.Errorf("%s: another authority: %+v", c.what, e)
		}
		if e, err := d.Certificate([]*x509.Certificate{cert}, nil); err == nil || e != (Entrant{}) {
			t.Errorf("%s: no authority at all: %+v", c.what, e)
		}
	}
}

func BenchmarkCertificate(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sign := func(shape, parent *x509.Certificate) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, shape, parent, &key.PublicKey, key)
		if err != nil {
			b.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	ends := time.Now().Add(time.Hour)
	shape := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: ends, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := sign(shape, shape)
	leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: ends, DNSNames: []string{"a.agents.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca)
	d, err := New(Config{Certificates: []Certificate{{DNS: []string{"*.agents.example"}, Name: "{san}"}}}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for b.Loop() {
		if _, err := d.Certificate([]*x509.Certificate{leaf}, roots); err != nil {
			b.Fatal(err)
		}
	}
}
