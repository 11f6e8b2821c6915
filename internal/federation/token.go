package federation

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"keylease/internal/identity"
)

const (
	// MaxToken is the longest token that is looked at, in bytes.
	MaxToken = 8 << 10
	// leeway is how far an issuer's clock may be ahead of ours. A token that has ended has ended.
	leeway = 60 * time.Second
	// maxSubject is what OpenID Connect allows for sub.
	maxSubject = 255
)

// Why a token stands for nobody: what the trail says.
const (
	whyMalformed  = "malformed token"
	whyIssuer     = "token of an unknown issuer"
	whyAlgorithm  = "token signed with an algorithm that is not allowed"
	whyKind       = "token of a kind that is not accepted"
	whyAudience   = "token for another audience"
	whyExpired    = "expired token"
	whyNoExpiry   = "token without expiry"
	whyNotYet     = "token that is not valid yet"
	whyBound      = "token bound to a key that is not checked"
	whySubject    = "token without a usable subject"
	whySignature  = "token with a signature that does not verify"
	whyUnknownKey = "token signed with a key that the issuer does not have"
	whyNobody     = "token that no identity matches"
	whyName       = "token whose claims make no identity name"
)

// issuer is an Issuer understood.
type issuer struct {
	Issuer
	keys       *keySet
	granted    identity.Scopes // 0: as the token says
	identities []mapping
}

func newIssuer(shape Issuer, resource string) *issuer {
	i := &issuer{Issuer: shape, granted: identity.ScopesOf(shape.Scopes...)}
	if i.Audience == "" {
		i.Audience = resource
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = defaultAlgorithms
	}
	for _, m := range shape.Identities {
		i.identities = append(i.identities, newMapping(m))
	}
	return i
}

// IsJWT reports whether a bearer token has the form of a signed JWT: three parts. One of keylease's own has one.
func IsJWT(raw string) bool { return strings.Count(raw, ".") == 2 }

// Bearer returns whom a JWT stands for. The error is a *Refused, ErrUnavailable, or that of ctx.
func (d *Directory) Bearer(ctx context.Context, raw string) (Entrant, error) {
	// What is read before the signature was verified chooses whose keys to ask, and the words of a refusal. It is
	// believed only when go-oidc has said the same of what was signed.
	head, said, err := peek(raw)
	if err != nil {
		return Entrant{}, err
	}
	i := d.issuers[said.text("iss")]
	if i == nil {
		return Entrant{}, refused(whyIssuer)
	}
	now := d.now()
	if why := i.unfit(head, said, now); why != "" {
		return Entrant{}, refused(why)
	}
	c, err := i.verified(ctx, raw, now)
	if err != nil {
		return Entrant{}, err
	}
	if why := i.unfit(head, c, now); why != "" {
		return Entrant{}, refused(why)
	}
	return i.entrant(c)
}

type header struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
}

func peek(raw string) (h header, c claims, err error) {
	parts := strings.Split(raw, ".")
	if len(raw) > MaxToken || len(parts) != 3 {
		return h, nil, refused(whyMalformed)
	}
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || json.Unmarshal(head, &h) != nil {
		return h, nil, refused(whyMalformed)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return h, nil, refused(whyMalformed)
	}
	if c, err = readClaims(payload); err != nil {
		return h, nil, refused(whyMalformed)
	}
	return h, c, nil
}

// unfit says why a token is of no use to us, whoever signed it; "" when it may be.
func (i *issuer) unfit(h header, c claims, now time.Time) string {
	switch strings.TrimPrefix(strings.ToLower(h.Type), "application/") {
	case "", "jwt", "at+jwt":
	default: // a logout token or a proof of possession must not pass for a token that gives access
		return whyKind
	}
	expires, there, ok := c.moment("exp")
	switch {
	case !slices.Contains(i.Algorithms, h.Algorithm):
		return whyAlgorithm
	case c.text("iss") != i.Issuer.Issuer:
		return whyIssuer
	case !slices.Contains(c.audience(), i.Audience):
		return whyAudience
	case !there:
		return whyNoExpiry
	case !ok || !now.Before(expires):
		return whyExpired
	}
	for _, name := range []string{"nbf", "iat"} {
		if from, there, ok := c.moment(name); !ok || there && now.Add(leeway).Before(from) {
			return whyNotYet
		}
	}
	if _, bound := c["cnf"]; bound {
		return whyBound
	}
	if !goodSubject(c.text("sub")) {
		return whySubject
	}
	return ""
}

// goodSubject: it becomes part of what owns leases, so it is taken as it is or not at all.
func goodSubject(s string) bool {
	return s != "" && len(s) <= maxSubject && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// verified returns the claims of a token whose signature, issuer, audience and expiry hold.
func (i *issuer) verified(ctx context.Context, raw string, now time.Time) (claims, error) {
	signature := &signatureCheck{keys: i.keys, algorithms: i.Algorithms}
	verifier := oidc.NewVerifier(i.Issuer.Issuer, signature, &oidc.Config{ClientID: i.Audience,
		SupportedSigningAlgs: i.Algorithms, Now: func() time.Time { return now }})
	token, err := verifier.Verify(ctx, raw)
	switch {
	case signature.err != nil:
		return nil, signature.err
	case err != nil:
		return nil, refused(whyMalformed)
	}
	var payload json.RawMessage
	if err := token.Claims(&payload); err != nil {
		return nil, refused(whyMalformed)
	}
	c, err := readClaims(payload)
	if err != nil {
		return nil, refused(whyMalformed)
	}
	return c, nil
}

// entrant finds the first identity that c matches.
func (i *issuer) entrant(c claims) (Entrant, error) {
	for _, m := range i.identities {
		through, ok := m.admits(c)
		if !ok {
			continue
		}
		name, err := m.identify(c, through)
		if err != nil {
			return Entrant{}, i.unmapped(c, whyName, err.Error())
		}
		scopes := i.granted
		if scopes == 0 {
			scopes = c.scopes()
		}
		until, _, _ := c.moment("exp")
		return Entrant{Principal: identity.Principal{Type: m.kind, Name: name, Proof: identity.OIDC,
			By: "oidc:" + i.Issuer.Issuer + "#" + c.text("sub")}, Scopes: scopes, Until: until}, nil
	}
	return Entrant{}, i.unmapped(c, whyNobody, "")
}

// unmapped: the token is what it says, and stands for nobody here.
func (i *issuer) unmapped(c claims, why, detail string) error {
	return &Refused{Why: why, Detail: detail, Issuer: i.Issuer.Issuer, Subject: c.text("sub")}
}
