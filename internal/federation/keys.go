package federation

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
)

const (
	freshKeys   = 5 * time.Minute // then they are fetched again, and serve on only where that fails
	staleKeys   = time.Hour       // then they are not believed any more
	fetchTime   = 5 * time.Second
	maxDocument = 256 << 10 // bytes of a discovery document or key set
	maxKeys     = 100
	smallestRSA = 2048 // bits
)

// keySet is an issuer's keys as last fetched. go-oidc's own is not used: it fetches for every token whose signature
// does not verify, so that anybody could make us hammer the issuer, and it believes old keys for ever.
type keySet struct {
	issuer  string
	fetch   func(context.Context) ([]jose.JSONWebKey, error)
	now     func() time.Time
	base    context.Context // ends with the Directory
	flights *sync.WaitGroup
	trouble func(error)

	mu      sync.Mutex // guards what follows
	keys    []jose.JSONWebKey
	fetched time.Time     // when keys were; zero: never
	tried   time.Time     // when that was last begun
	failed  bool          // the last attempt
	flight  chan struct{} // closed when the attempt under way is over; nil: none is
}

// current returns keys that may be believed, fetching them first where there are none or the issuer was not asked for
// freshKeys: who comes then waits, fetchTime at most, because a key that the issuer took away must not serve once more.
// Old keys serve, for up to staleKeys, only while the issuer can't be asked.
func (k *keySet) current(ctx context.Context) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	age := k.now().Sub(k.fetched)
	usable := !k.fetched.IsZero() && age < staleKeys
	if usable && age < freshKeys {
		defer k.mu.Unlock()
		return k.keys, nil
	}
	landed := k.begin()
	keys := k.keys
	k.mu.Unlock()
	latest, err := k.await(ctx, landed)
	if usable && errors.Is(err, ErrUnavailable) {
		return keys, nil
	}
	return latest, err
}

// again is for a token whose key is not among the current ones: the issuer may have a new one. It fetches at most once
// per FetchPause; in between it returns what there is.
func (k *keySet) again(ctx context.Context) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	landed := k.begin()
	k.mu.Unlock()
	return k.await(ctx, landed)
}

func (k *keySet) await(ctx context.Context, landed <-chan struct{}) ([]jose.JSONWebKey, error) {
	if landed != nil {
		select {
		case <-landed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed || k.fetched.IsZero() || k.now().Sub(k.fetched) >= staleKeys {
		return nil, ErrUnavailable
	}
	return k.keys, nil
}

// begin starts an attempt, or returns the one under way; nil where it is too soon for another. It outlives the request
// that asked for it, because others wait for it too. Caller holds mu.
func (k *keySet) begin() <-chan struct{} {
	now := k.now()
	if k.flight != nil {
		return k.flight
	}
	if !k.tried.IsZero() && now.Sub(k.tried) < FetchPause || k.base.Err() != nil {
		return nil
	}
	landed := make(chan struct{})
	k.tried, k.flight = now, landed
	k.flights.Go(func() {
		ctx, cancel := context.WithTimeout(k.base, fetchTime)
		defer cancel()
		keys, err := k.fetch(ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.failed = err != nil; err == nil {
			k.keys, k.fetched = keys, now
		} else if k.base.Err() == nil {
			k.trouble(err)
		}
		k.flight = nil
		close(landed)
	})
	return landed
}

// signatureCheck is one token's, so that its error is told apart: go-oidc makes text of it.
type signatureCheck struct {
	keys       *keySet
	algorithms []string
	err        error
}

// VerifySignature returns the payload of a token that one of the issuer's keys signed.
func (s *signatureCheck) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	payload, err := s.verify(ctx, raw)
	s.err = err
	return payload, err
}

func (s *signatureCheck) verify(ctx context.Context, raw string) ([]byte, error) {
	var algorithms []jose.SignatureAlgorithm
	for _, a := range s.algorithms {
		algorithms = append(algorithms, jose.SignatureAlgorithm(a))
	}
	jws, err := jose.ParseSigned(raw, algorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, refused(whyMalformed)
	}
	keys, err := s.keys.current(ctx)
	if err != nil {
		return nil, err
	}
	payload, err := signedBy(keys, jws)
	if errors.Is(err, errNoKey) {
		if keys, err = s.keys.again(ctx); err != nil {
			return nil, err
		}
		payload, err = signedBy(keys, jws)
	}
	switch {
	case errors.Is(err, errNoKey):
		return nil, refused(whyUnknownKey)
	case err != nil:
		return nil, refused(whySignature)
	}
	return payload, nil
}

var errNoKey = errors.New("no such key")

// signedBy verifies with the key that the token names, or with each where it names none. errNoKey: another key may do.
func signedBy(keys []jose.JSONWebKey, jws *jose.JSONWebSignature) ([]byte, error) {
	head := jws.Signatures[0].Header
	named := false
	for i := range keys {
		k := &keys[i]
		if head.KeyID != "" && k.KeyID != head.KeyID || k.Algorithm != "" && k.Algorithm != head.Algorithm {
			continue
		}
		if payload, err := jws.Verify(k); err == nil {
			return payload, nil
		}
		named = named || head.KeyID != ""
	}
	if named {
		return nil, errors.New("the signature is not this key's")
	}
	return nil, errNoKey
}

// source is where an issuer's keys are.
type source struct {
	issuer, caFile string
	readFile       func(string) ([]byte, error)
}

// fetch asks the issuer's discovery document where its keys are, and gets them. It sends nothing that anybody gave us,
// uses no proxy, and leaves no connection open.
func (s source) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	client := &http.Client{CheckRedirect: stayingSecure, Transport: bounded{&http.Transport{
		Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext:     (&net.Dialer{Timeout: fetchTime}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), s.issuer)
	if err != nil {
		return nil, fmt.Errorf("reading the discovery document of %s: %w", s.issuer, err)
	}
	var where struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&where); err != nil {
		return nil, fmt.Errorf("reading the discovery document of %s: %w", s.issuer, err)
	}
	u, err := url.Parse(where.Keys)
	if err != nil || !secureURL(u) {
		return nil, fmt.Errorf("the discovery document of %s names no https address for its keys", s.issuer)
	}
	keys, err := get(ctx, client, u.String())
	if err != nil {
		return nil, fmt.Errorf("reading the keys of %s: %w", s.issuer, err)
	}
	return keys, nil
}

func (s source) roots() (*x509.CertPool, error) {
	if s.caFile == "" {
		return nil, nil // the system's
	}
	pem, err := s.readFile(s.caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the caFile of %s: %w", s.issuer, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the caFile of %s, %s, holds no certificate in PEM", s.issuer, s.caFile)
	}
	return pool, nil
}

func get(ctx context.Context, client *http.Client, address string) ([]jose.JSONWebKey, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers HTTP %d", answer.StatusCode)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	return readKeys(body)
}

// readKeys keeps the keys that tokens can be verified with. Others (for encryption, symmetric, of a kind that is not
// known, too small) are left out one by one: a set may hold keys that are not meant for us.
func readKeys(body []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil || set.Keys == nil {
		return nil, errors.New("it is not a key set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it holds more than %d keys", maxKeys)
	}
	keys := []jose.JSONWebKey{}
	for _, text := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(text, &k) == nil && usable(k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key that tokens could be verified with")
	}
	return keys, nil
}

func usable(k jose.JSONWebKey) bool {
	if !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" || k.Algorithm != "" && !slices.Contains(Algorithms, k.Algorithm) {
		return false
	}
	if r, ok := k.Key.(*rsa.PublicKey); ok {
		return r.N.BitLen() >= smallestRSA
	}
	return true
}

// bounded lets no answer be longer than maxDocument: go-oidc reads to the end.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, maxDocument)
	}
	return answer, err
}
