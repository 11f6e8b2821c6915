// Package policy says who may lease what, for how long and how. It is pure: no clock, disk or network, so the same
// request always gets the same decision. Its rule: patterns live only in the policy; names and values that a
// requester controls are compared byte by byte and never expanded, folded or trimmed. What is not allowed is denied:
// the zero Decision denies.
package policy

import (
	"fmt"
	"strings"
	"time"

	"keylease/internal/identity"
)

// Delivery is how a secret gets where it is needed.
type Delivery string

const (
	Proxy Delivery = "proxy" // the agent gets the use of the key through keylease's proxy
	Exec  Delivery = "exec"  // a child process gets the key
	Value Delivery = "value" // the agent gets the key itself
)

// Deliveries returns every delivery, least exposing first.
func Deliveries() []Delivery { return []Delivery{Proxy, Exec, Value} }

// ParseDelivery reads a delivery's name. Its error does not repeat s.
func ParseDelivery(s string) (Delivery, error) { return parseWord("delivery", s, Deliveries()) }

// Approval is who must say yes before a lease is granted.
type Approval string

const (
	None     Approval = "none"
	User     Approval = "user"     // the client reports that its user agreed
	Operator Approval = "operator" // a person with admin authority agreed
)

func approvals() []Approval { return []Approval{None, User, Operator} }

// ParseApproval reads an approval's name; "" is None. Its error does not repeat s.
func ParseApproval(s string) (Approval, error) {
	if s == "" {
		return None, nil
	}
	return parseWord("approval", s, approvals())
}

// stricter returns the approval that asks for more. The zero Approval asks for nothing; one that this version does
// not know asks for everything.
func stricter(a, b Approval) Approval {
	if a.rank() >= b.rank() {
		return a.orNone()
	}
	return b.orNone()
}

// AtLeast reports whether a is as strict as min.
func (a Approval) AtLeast(min Approval) bool { return a.rank() >= min.rank() }

func (a Approval) rank() int {
	switch a {
	case "", None:
		return 0
	case User:
		return 1
	}
	return 2
}

func (a Approval) orNone() Approval {
	if a == "" {
		return None
	}
	return a
}

func parseWord[T ~string](what, s string, known []T) (T, error) {
	for _, k := range known {
		if string(k) == s {
			return k, nil
		}
	}
	return "", fmt.Errorf("unknown %s: use %s", what, orList(known))
}

// orList writes "a, b or c".
func orList[T ~string](words []T) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}

// What applies where neither request, credential, rule nor file says anything.
const (
	DefaultLeaseTTL   = 15 * time.Minute
	DefaultMaxTTL     = time.Hour // of a credential that does not say
	DefaultLeaseRate  = 50.0      // lease changes per second of one principal
	DefaultLeaseBurst = 500
	DefaultUseRate    = 100.0 // proxied requests per second under one lease
	DefaultUseBurst   = 200

	// DefaultTrailBytes is what one principal may write into the trail in a day: some 600,000 events, which is three
	// hours at DefaultLeaseRate, or seven events a second for the whole day.
	DefaultTrailBytes = 256 << 20
)

// Matcher is one entry of a credential's allowedIdentities: an agent by Name or a human by Email, both patterns as
// Glob reads them. A human matches only with a proof of at least OIDC: anybody can declare an e-mail address.
type Matcher struct {
	Type  identity.Type `json:"type"`
	Name  string        `json:"name,omitempty"`
	Email string        `json:"email,omitempty"`
}

// Matches reports whether m admits p. The zero Matcher admits nobody.
func (m Matcher) Matches(p identity.Principal) bool {
	switch {
	case m.Type != p.Type:
		return false
	case m.Type == identity.Agent:
		return Glob(m.Name, p.Name)
	case m.Type == identity.Human:
		return p.Proof.AtLeast(identity.OIDC) && Glob(m.Email, p.Name)
	}
	return false
}

// CredentialPolicy is what a credential itself says about its leases. Zero fields say nothing.
type CredentialPolicy struct {
	DefaultLeaseTTL   time.Duration // whole seconds
	MaxLeaseTTL       time.Duration // whole seconds; 0: DefaultMaxTTL applies
	MaxLeases         int           // live leases at a time over all principals; 0: no limit
	AllowedIdentities []Matcher     // nil: everybody
	Delivery          []Delivery    // nil: every one
	Approval          Approval
	KeepOnDisconnect  bool
}

// Admits reports whether the credential lets p in. A rule must let it in too.
func (c CredentialPolicy) Admits(p identity.Principal) bool {
	if c.AllowedIdentities == nil {
		return true
	}
	for _, m := range c.AllowedIdentities {
		if m.Matches(p) {
			return true
		}
	}
	return false
}

// Credential is what a decision sees of a credential.
type Credential struct {
	Name     string
	Type     string
	Metadata map[string]string
	Policy   CredentialPolicy
}

// Request is one question: may this identity lease this credential?
type Request struct {
	Identity   identity.Principal
	Narrowing  Narrowing // of the token that proved the identity
	Credential Credential
	TTL        time.Duration // 0: not asked
	Purpose    string        // not looked at: see Decision.PurposeRequired
	Delivery   Delivery      // not looked at: see Decision.Deliveries
}

// Decision is the answer. The zero Decision denies. It does not know whether a purpose was given, how many leases
// are live or which deliveries the credential is set up for: whoever grants checks those against it.
type Decision struct {
	Allow            bool
	Reason           string // for people
	Rule             string // the rule that decided; "": none did
	TTL              time.Duration
	MaxTTL           time.Duration // ceiling from issue on, renewals included
	Capped           bool          // TTL is less than was asked for
	MaxLeases        int           // live leases on this credential over all principals; 0: no limit
	Limit            *Limit        // nil: none
	Deliveries       []Delivery    // at least one when allowed; least exposing first
	Approval         Approval
	PurposeRequired  bool
	KeepOnDisconnect bool
}

// Limit is a rule's maxLeases: how many live leases one identity may hold, over all the credentials that the rule
// covers.
type Limit struct {
	Rule   string
	Max    int
	Covers func(Credential) bool
}

// Step is what one rule had to say to a request, in the order of the file.
type Step struct {
	Rule    string `json:"rule"`
	Effect  string `json:"effect"` // allow or deny; EffectNarrow where it is not a rule but the token
	Matched bool   `json:"matched"`
	Why     string `json:"why,omitempty"` // the clause that did not match
}
