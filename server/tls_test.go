package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// tlsDisk is the files of a tlsKeeper and its clock.
type tlsDisk struct {
	t         *testing.T
	clock     time.Time
	pair, cas TLSRead
	version   int
}

func (d *tlsDisk) looker(now *TLSRead) func(string) TLSRead {
	return func(prev string) TLSRead {
		if now.Err == nil && now.Stamp == prev {
			return TLSRead{Stamp: prev}
		}
		return *now
	}
}

func (d *tlsDisk) put(at *TLSRead, files ...[]byte) {
	d.version++
	*at = TLSRead{PEM: files, Stamp: strconv.Itoa(d.version)}
}

// selfSigned is a certificate that is its own authority, and both in PEM.
func selfSigned(t *testing.T, serial int64) (c *x509.Certificate, cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	shape := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, shape, shape, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return c, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})
}

// Certificate and authorities are judged each by itself: what is wrong with one does not hold back what is new in the
// other. A certificate that can't be used leaves the one before; authorities that can't, nobody.
func TestB6AnAuthorityThatIsTakenAwayIsGoneWhateverElseIsWrong(t *testing.T) {
	one, onePEM, oneKey := selfSigned(t, 1)
	two, twoPEM, twoKey := selfSigned(t, 2)
	d := &tlsDisk{t: t, clock: time.Now()}
	fresh := func() *tlsKeeper {
		d.put(&d.pair, onePEM, oneKey)
		d.put(&d.cas, onePEM)
		k, err := newTLSKeeper(TLSFiles{d.looker(&d.pair), d.looker(&d.cas)}, func() time.Time { return d.clock }, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	believes := func(k *tlsKeeper, c *x509.Certificate) bool {
		_, err := c.Verify(x509.VerifyOptions{Roots: k.clientCAs()})
		return err == nil
	}
	none, gone := []byte("# the one authority was compromised\n"), errors.New("no such file")
	for what, c := range map[string]struct {
		change   func()
		one, two bool   // who is believed
		shown    int64  // serial of our own certificate
		said     string // in /readyz
	}{
		"nothing":              {func() {}, true, false, 1, "in force"},
		"an empty file of CAs": {func() { d.put(&d.cas, none) }, false, false, 1, "nobody comes in by certificate"},
		"no file of CAs":       {func() { d.cas = TLSRead{Err: gone} }, false, false, 1, "nobody comes in by certificate"},
		"another CA":           {func() { d.put(&d.cas, twoPEM) }, false, true, 1, "in force"},
		"another CA and a pair that does not fit": {func() { d.put(&d.cas, twoPEM); d.put(&d.pair, twoPEM, oneKey) }, false, true, 1, "not in force"},
		"another CA and no key":                   {func() { d.put(&d.cas, twoPEM); d.pair = TLSRead{Err: gone} }, false, true, 1, "not in force"},
		"no CA and another pair":                  {func() { d.cas = TLSRead{Err: gone}; d.put(&d.pair, twoPEM, twoKey) }, false, false, 2, "nobody comes in by certificate"},
	} {
		k := fresh()
		was := d.cas
		c.change()
		d.clock = d.clock.Add(tlsLook)
		if believes(k, one) != c.one || believes(k, two) != c.two || !strings.Contains(k.status(), c.said) {
			t.Errorf("%s: believes one %v, two %v; says %q", what, believes(k, one), believes(k, two), k.status())
		}
		if k.config.ClientCAs != k.clients || k.config.Certificates[0].Leaf.SerialNumber.Int64() != c.shown {
			t.Errorf("%s: new connections get another certificate or other authorities", what)
		}
		d.cas = was // with the stamp from before
		d.put(&d.pair, onePEM, oneKey)
		d.clock = d.clock.Add(tlsLook)
		if !believes(k, one) || k.status() != "in force" || k.config.ClientCAs != k.clients {
			t.Errorf("%s, then mended: %q", what, k.status())
		}
	}
	for what, files := range map[string]TLSFiles{
		"no CA":   {d.looker(&d.pair), d.looker(&TLSRead{PEM: [][]byte{none}, Stamp: "x"})},
		"no pair": {d.looker(&TLSRead{Err: gone}), d.looker(&d.cas)},
	} {
		if _, err := newTLSKeeper(files, time.Now, zerolog.Nop()); err == nil {
			t.Errorf("it starts with %s", what)
		}
	}
}
