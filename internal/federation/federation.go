// Package federation says who a token of somebody else's issuer, or a client certificate, stands for. Its rule: only
// what was verified counts, only the configuration's own patterns are expanded, and what nothing in the configuration
// maps to a name is nobody. There is no default identity.
package federation

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"keylease/internal/identity"
)

// Entrant is who a proof stands for, and what and how long it is good for.
type Entrant struct {
	identity.Principal
	Scopes identity.Scopes
	Until  time.Time // the proof is worth nothing at or after it; a Directory always sets it
}

// Refused is why a proof stands for nobody.
type Refused struct {
	Why    string // one of a closed list that holds nothing of the proof: good for the trail
	Detail string // for the debug log; may quote claims that were verified, never the token

	// Whose proof it was, for the trail; "" where that was not verified.
	Issuer, Subject string // of a token
	SAN             string // the names in a certificate, with their kinds
}

func (r *Refused) Error() string {
	if r.Detail == "" {
		return r.Why
	}
	return r.Why + ": " + r.Detail
}

func refused(why string) error { return &Refused{Why: why} }

// ErrUnavailable: the issuer's keys can't be had right now, so nothing can be said of its tokens.
var ErrUnavailable = errors.New("the issuer of this token can't be asked for its keys")

// FetchPause is the least time between two attempts to fetch an issuer's keys, and so how long a caller should wait
// after ErrUnavailable.
const FetchPause = 10 * time.Second

// Options are what a Directory needs beside its configuration. All are optional.
type Options struct {
	Now func() time.Time
	// ReadFile reads an issuer's caFile; it is called by New and before each fetch of keys.
	ReadFile func(path string) ([]byte, error)
	// Trouble is told when an issuer's keys can't be fetched, at most once per FetchPause and issuer.
	Trouble func(issuer string, err error)
}

// Directory knows the issuers and certificates of one configuration. All its methods may be called at once.
type Directory struct {
	now          func() time.Time
	issuers      map[string]*issuer
	askable      []string // issuers, in the order of the configuration, that can be asked for scopes
	certificates []certificateRule
	stop         context.CancelFunc
	fetching     sync.WaitGroup
}

// New makes a Directory of a configuration that Check is content with and whose caFiles hold certificates. Nothing is
// fetched before a token comes, so an issuer that is down does not keep the daemon from starting. Close must follow.
func New(c Config, o Options) (*Directory, error) {
	if err := c.firstFault(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Trouble == nil {
		o.Trouble = func(string, error) {}
	}
	for _, shape := range c.Issuers {
		if _, err := (source{issuer: shape.Issuer, caFile: shape.CAFile, readFile: o.ReadFile}).roots(); err != nil {
			return nil, err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &Directory{now: o.Now, issuers: map[string]*issuer{}, stop: stop}
	for _, shape := range c.Issuers {
		i := newIssuer(shape, c.Resource)
		i.keys = &keySet{issuer: shape.Issuer, now: o.Now, base: ctx, flights: &d.fetching,
			fetch:   source{issuer: shape.Issuer, caFile: shape.CAFile, readFile: o.ReadFile}.fetch,
			trouble: func(err error) { o.Trouble(shape.Issuer, err) }}
		d.issuers[shape.Issuer] = i
		if len(shape.Scopes) == 0 {
			d.askable = append(d.askable, shape.Issuer)
		}
	}
	for _, shape := range c.Certificates {
		d.certificates = append(d.certificates, newCertificateRule(shape))
	}
	return d, nil
}

// Close ends what is being fetched and waits for it.
func (d *Directory) Close() {
	d.stop()
	d.fetching.Wait()
}

// AcceptsTokens reports whether there is any issuer.
func (d *Directory) AcceptsTokens() bool { return d != nil && len(d.issuers) > 0 }

// AuthorizationServers returns the issuers that an OAuth client can ask for a token with our scopes. Those whose tokens
// are given scopes by the configuration, as a CI system's are, can't be asked.
func (d *Directory) AuthorizationServers() []string { return d.askable }

// secureURL reports whether what is fetched from u can't be changed on the way: https, or a loopback address.
func secureURL(u *url.URL) bool {
	switch {
	case u.Scheme == "https":
		return u.Host != ""
	case u.Scheme == "http":
		return isLoopback(u.Hostname())
	}
	return false
}

// stayingSecure lets a fetch be sent elsewhere twice, never to where it could be changed on the way.
func stayingSecure(r *http.Request, via []*http.Request) error {
	if len(via) > 2 || !secureURL(r.URL) {
		return errors.New("the issuer redirects to an address that is not https, or too often")
	}
	return nil
}
