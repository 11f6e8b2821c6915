// Package issuertest is an OpenID Connect issuer for tests: a discovery document, a key set, and tokens signed by
// whatever key and with whatever claims a test wants. It is no part of the program.
package issuertest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Claims are a token's.
type Claims map[string]any

// Issuer listens on loopback until its test ends.
type Issuer struct {
	URL string
	t   testing.TB
	srv *httptest.Server

	mu   sync.Mutex // guards what follows
	keys []jose.JSONWebKey
	seen []*http.Request
	down bool
	lie  string // what discovery calls the issuer instead

	other map[string]http.HandlerFunc // instead of what follows, by path
}

// New starts an issuer with one RS256 key.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t}
	return i.start(httptest.NewServer(i))
}

// NewOverTLS starts one at an https address, and returns the authority of its certificate in PEM.
func NewOverTLS(t testing.TB) (*Issuer, []byte) {
	t.Helper()
	i := &Issuer{t: t}
	srv := httptest.NewUnstartedServer(i)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // a client that does not trust it is meant to be there
	srv.StartTLS()
	i.start(srv)
	return i, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.srv.Certificate().Raw})
}

func (i *Issuer) start(srv *httptest.Server) *Issuer {
	i.srv, i.URL = srv, srv.URL
	t := i.t
	t.Cleanup(i.srv.Close)
	i.Rotate()
	return i
}

// Answer makes the issuer answer a path in another way.
func (i *Issuer) Answer(path string, with http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.other = map[string]http.HandlerFunc{path: with}
}

// Rotate makes a new signing key and takes the old ones out of the key set.
func (i *Issuer) Rotate() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []jose.JSONWebKey{{Key: key, KeyID: rand.Text(), Algorithm: "RS256", Use: "sig"}}
}

// Down makes the issuer answer 500, or again as it should.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Misname makes its discovery document speak for another issuer.
func (i *Issuer) Misname(as string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lie = as
}

// Requests are those that the issuer got so far.
func (i *Issuer) Requests() []*http.Request {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]*http.Request(nil), i.seen...)
}

// Key is the signing key of now.
func (i *Issuer) Key() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[0]
}

func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = append(i.seen, r)
	name := i.URL
	if i.lie != "" {
		name = i.lie
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case i.other[r.URL.Path] != nil:
		i.other[r.URL.Path](w, r)
	case i.down:
		w.WriteHeader(http.StatusInternalServerError)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": name, "jwks_uri": i.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"}})
	case r.URL.Path == "/keys":
		set := jose.JSONWebKeySet{}
		for _, k := range i.keys {
			set.Keys = append(set.Keys, k.Public())
		}
		_ = json.NewEncoder(w).Encode(set)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// Good are claims that an audience accepts for the next ten minutes from at on; more is added, and a nil in it takes
// a claim away.
func (i *Issuer) Good(audience string, at time.Time, more Claims) Claims {
	c := Claims{"iss": i.URL, "aud": audience, "sub": "robot-1", "iat": at.Unix(), "exp": at.Add(10 * time.Minute).Unix(),
		"scope": "keylease:lease keylease:list", "jti": rand.Text()}
	maps.Copy(c, more)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// Token signs claims with the key of now.
func (i *Issuer) Token(c Claims) string { return Sign(i.t, i.Key(), "RS256", "at+jwt", c) }

// Sign signs claims with any key, algorithm and typ ("": none).
func Sign(t testing.TB, key jose.JSONWebKey, algorithm jose.SignatureAlgorithm, typ jose.ContentType, c Claims) string {
	t.Helper()
	o := &jose.SignerOptions{}
	if typ != "" {
		o = o.WithType(typ)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(marshal(t, c))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Unsigned is a token with this header, these claims and no signature.
func Unsigned(t testing.TB, header, c Claims) string {
	t.Helper()
	part := func(c Claims) string { return base64.RawURLEncoding.EncodeToString(marshal(t, c)) }
	return fmt.Sprintf("%s.%s.", part(header), part(c))
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Nowhere is the address of an issuer that is not there.
func Nowhere(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}
