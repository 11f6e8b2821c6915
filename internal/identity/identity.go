// Package identity says who is asking. Its rule: an identity is what the transport established, carried in the
// context of a call from the moment the connection or request was authenticated; nothing inside a request changes it.
package identity

import (
	"context"
	"fmt"
	"strings"
)

// Type is what kind of holder an identity is.
type Type string

const (
	Agent Type = "agent"
	Human Type = "human"
)

// Proof is how far a name can be trusted. In a rule it is a minimum. OIDC and MTLS are equally strong.
type Proof uint8

const (
	Declared Proof = iota // the connection's own word
	Token                 // a bearer token that the operator issued
	OIDC                  // a verified token of an identity provider
	MTLS                  // a verified client certificate
)

var proofNames = [...]string{"declared", "token", "oidc", "mtls"}

func (p Proof) String() string {
	if int(p) < len(proofNames) {
		return proofNames[p]
	}
	return fmt.Sprintf("proof(%d)", p)
}

// AtLeast reports whether p is as strong as min.
func (p Proof) AtLeast(min Proof) bool { return p.rank() >= min.rank() }

func (p Proof) rank() int {
	if p == MTLS {
		return int(OIDC)
	}
	return int(p)
}

// ParseProof reads the name that a policy file or Entry uses.
func ParseProof(s string) (Proof, error) {
	for i, name := range proofNames {
		if s == name {
			return Proof(i), nil
		}
	}
	return 0, fmt.Errorf("unknown proof %q: use declared, token, oidc or mtls", s)
}

// MarshalText writes the proof's name.
func (p Proof) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the proof's name.
func (p *Proof) UnmarshalText(b []byte) error {
	v, err := ParseProof(string(b))
	*p = v
	return err
}

// Principal is who owns a lease. Two callers are the same owner only when every field is equal: the same name
// proved in another way is somebody else. Comparable, so it can be a map key.
type Principal struct {
	Type  Type   `json:"type"`
	Name  string `json:"name"`
	Proof Proof  `json:"proof"`
	// By is what proved the name: "uid:1000" for declared, "token:tk_…" (the record, which survives its
	// rotation), "oidc:issuer#subject", "cert:…".
	By string `json:"by"`
}

// Holder is what per-identity limits count by: the name over all proofs.
type Holder struct {
	Type Type
	Name string
}

// Holder returns the identity that limits count, over all proofs.
func (p Principal) Holder() Holder { return Holder{p.Type, p.Name} }

// RateKey is whose rates p spends. What costs nothing must not buy a fresh rate: all declared names of one uid are one,
// and so are all subjects and certificates that stand for one name, since whoever may push a branch can have a subject
// for each. A token is its record, whichever secret it has now.
func (p Principal) RateKey() string {
	switch p.Proof {
	case Declared:
		return p.By
	case Token:
		return p.Proof.String() + " " + p.By
	}
	return p.Proof.String() + " " + string(p.Type) + " " + p.Name
}

// Caller is one party of one connection or request: its principal and what else is known about it.
// Transport, UID and Remote say where it is; ClientName, ClientVersion and Peer are for the record only and decide nothing.
type Caller struct {
	Principal
	Session       string // the session that its leases are bound to; empty: none (modern HTTP, admin)
	Scopes        Scopes // what its token is good for, where the proof is oidc: see May
	Transport     string // "local", "http", "sse"
	ClientName    string // as the client claims
	ClientVersion string // as the client claims
	PID           int    // the local peer's process id; 0 elsewhere
	UID           string // the local peer's uid; "" elsewhere
	Remote        bool   // it is not on this machine
	Peer          string // the local peer's program and those that started it, as they call themselves; "" elsewhere
}

type callerKey struct{}

// With returns a context that carries c. Only transports call it.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns the caller that the transport established; false where none was, which callers must treat as
// unauthenticated.
func From(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// MaxName is the longest identity name in bytes.
const MaxName = 255

// CheckName reports why s can't be an identity's name: names are [a-z0-9][a-z0-9._@+:/-]{0,254}, compared as
// bytes, never normalised and never used as a pattern or path.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("an identity needs a name")
	case len(s) > MaxName:
		return fmt.Errorf("identity name is %d bytes long; at most %d are allowed", len(s), MaxName)
	case !isAlnum(s[0]):
		return fmt.Errorf("identity name %q must begin with a lower-case letter or digit", s)
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && !strings.ContainsRune("._@+:/-", rune(s[i])) {
			return fmt.Errorf("identity name %q holds a character that is not allowed: use a-z, 0-9 and . _ @ + : / -", s)
		}
	}
	return nil
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
