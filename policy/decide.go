package policy

import (
	"fmt"
	"slices"
	"time"

	"keylease/internal/identity"
)

// Policy is one policy file, parsed. It does not change, so any number of goroutines may ask it.
// A nil *Policy is that of a store that never had a policy file.
type Policy struct {
	hash       string
	rules      []rule
	defaultTTL time.Duration // 0: the file does not say
	hardCap    time.Duration // 0: none
	leaseRate  float64       // 0: none
	leaseBurst int
	trailBytes int64   // 0: none
	useRate    float64 // 0: none
	useBurst   int
	warnings   []string
}

// rule is one rule as the file wrote it. Empty clauses do not narrow.
type rule struct {
	name        string
	identities  []string
	credentials []string
	metadata    []anyOf
	proof       identity.Proof // a minimum
	deny        bool

	defaultTTL, maxTTL time.Duration
	maxLeases          int
	delivery           []Delivery
	approval           Approval
	purposeRequired    bool
	keepOnDisconnect   bool

	// Made once, for every decision: see ready.
	allows string
	limit  *Limit
	open   []Delivery // to credentials that say nothing about it
}

// ready ends the making of a rule.
func (u rule) ready() rule {
	u.open = intersect(u.delivery, nil)
	u.allows = fmt.Sprintf("rule %q allows it", u.name)
	if u.maxLeases > 0 {
		u.limit = &Limit{Rule: u.name, Max: u.maxLeases, Covers: u.covers}
	}
	return u
}

// anyOf is one line of a rule's metadata: the credential must have the key, with exactly one of the values.
type anyOf struct {
	key    string
	values []string
}

// Hash returns the SHA-256 of the file's bytes in hex; "" for nil.
func (p *Policy) Hash() string {
	if p == nil {
		return ""
	}
	return p.hash
}

// Rules returns how many rules the file has.
func (p *Policy) Rules() int {
	if p == nil {
		return 0
	}
	return len(p.rules)
}

// Limits returns the rate of lease changes of one principal, its burst (a rate of 0: no limit) and the hard cap
// over every lease (0: none).
func (p *Policy) Limits() (leaseRate float64, leaseBurst int, maxLeaseTTL time.Duration) {
	if p == nil {
		return DefaultLeaseRate, DefaultLeaseBurst, 0
	}
	return p.leaseRate, p.leaseBurst, p.hardCap
}

// TrailBytes returns how many bytes of the trail one principal may write in a day (UTC). 0: no limit.
func (p *Policy) TrailBytes() int64 {
	if p == nil {
		return DefaultTrailBytes
	}
	return p.trailBytes
}

// UseLimits returns the rate of proxied requests under one lease, and its burst. A rate of 0: no limit.
func (p *Policy) UseLimits() (perSecond float64, burst int) {
	if p == nil {
		return DefaultUseRate, DefaultUseBurst
	}
	return p.useRate, p.useBurst
}

// Warnings returns what a person should know about a policy that is valid.
func (p *Policy) Warnings() []string {
	if p == nil {
		return nil
	}
	return p.warnings
}

// Decide answers r. A deny wins wherever it stands; among the allows the first that matches sets the limits.
func (p *Policy) Decide(r Request) Decision {
	switch err := identity.CheckName(r.Identity.Name); {
	case err != nil:
		return deny("", "no rule is asked about a name that could not be an identity's")
	case r.TTL < 0:
		return deny("", "a lease can't be for less than no time")
	case !r.Credential.Policy.Admits(r.Identity):
		return deny("", "the credential's allowedIdentities do not admit this identity")
	case !r.Narrowing.Covers(r.Credential.Name):
		return deny("", "the token is for other credentials only")
	case p == nil:
		return withoutPolicy(r)
	}
	if i := p.first(r, true); i >= 0 {
		return deny(p.rules[i].name, fmt.Sprintf("rule %q denies it", p.rules[i].name))
	}
	i := p.first(r, false)
	if i < 0 {
		return deny("", "no rule allows it")
	}
	return p.rules[i].grant(r, p.defaultTTL, p.hardCap)
}

// first returns the index of the first rule with this effect that matches, or -1.
func (p *Policy) first(r Request, deny bool) int {
	for i := range p.rules {
		if u := &p.rules[i]; u.deny == deny && u.matches(r) {
			return i
		}
	}
	return -1
}

// withoutPolicy decides for a store that never had a policy: those whom the operator let in, by sharing a uid or
// by making a token, get what the credential admits. Names that somebody else vouches for need a rule.
func withoutPolicy(r Request) Decision {
	if r.Identity.Proof.AtLeast(identity.OIDC) {
		return deny("", "there is no policy, and identities proved by "+r.Identity.Proof.String()+" need a rule")
	}
	d := (&rule{}).grant(r, 0, 0)
	if d.Allow {
		d.Reason = "there is no policy; the credential admits this identity"
	}
	return d
}

func deny(rule, reason string) Decision { return Decision{Rule: rule, Reason: reason} }

// grant is the decision under u, which matched: the tightest of rule, credential, hard cap and token.
func (u *rule) grant(r Request, fileDefault, hardCap time.Duration) Decision {
	c := r.Credential.Policy
	open := u.open
	if open == nil || c.Delivery != nil {
		open = intersect(u.delivery, c.Delivery)
	}
	if len(open) == 0 {
		return deny(u.name, fmt.Sprintf("rule %q and the credential have no delivery in common", u.name))
	}
	max := tightest(u.maxTTL, or(c.MaxLeaseTTL, DefaultMaxTTL), hardCap, r.Narrowing.MaxTTL)
	want := or(r.TTL, c.DefaultLeaseTTL, u.defaultTTL, fileDefault, DefaultLeaseTTL)
	return Decision{
		Allow: true, Rule: u.name, Reason: u.allows, Limit: u.limit,
		TTL: min(want, max), MaxTTL: max, Capped: r.TTL > max,
		MaxLeases: c.MaxLeases, Deliveries: open,
		Approval:         stricter(u.approval, c.Approval),
		PurposeRequired:  u.purposeRequired,
		KeepOnDisconnect: u.keepOnDisconnect || c.KeepOnDisconnect,
	}
}

// or returns the first duration that says something.
func or(ds ...time.Duration) time.Duration {
	for _, d := range ds {
		if d > 0 {
			return d
		}
	}
	return 0
}

// tightest returns the shortest duration that says something.
func tightest(ds ...time.Duration) time.Duration {
	var t time.Duration
	for _, d := range ds {
		if d > 0 && (t == 0 || d < t) {
			t = d
		}
	}
	return t
}

// intersect returns the deliveries that both lists allow, least exposing first; nil allows every one.
func intersect(a, b []Delivery) []Delivery {
	both := make([]Delivery, 0, 3)
	for _, d := range [...]Delivery{Proxy, Exec, Value} {
		if (a == nil || slices.Contains(a, d)) && (b == nil || slices.Contains(b, d)) {
			both = append(both, d)
		}
	}
	return both
}

// matches reports whether r meets every clause of u.
func (u *rule) matches(r Request) bool {
	clause, _ := u.mismatch(r)
	return clause == ""
}

// covers reports whether u is about c, whoever asks.
func (u *rule) covers(c Credential) bool {
	clause, _ := u.uncovered(c)
	return clause == ""
}

// mismatch returns the first clause of u that r does not meet, and for metadata which line; "" when u matches.
func (u *rule) mismatch(r Request) (clause string, index int) {
	switch {
	case u.identities != nil && !anyGlob(u.identities, r.Identity.Name):
		return "identities", 0
	case !r.Identity.Proof.AtLeast(u.proof):
		return "proof", 0
	}
	return u.uncovered(r.Credential)
}

func (u *rule) uncovered(c Credential) (clause string, index int) {
	if u.credentials != nil && !anyGlob(u.credentials, c.Name) {
		return "credentials", 0
	}
	for i, m := range u.metadata {
		if v, ok := c.Metadata[m.key]; !ok || !slices.Contains(m.values, v) {
			return "metadata", i
		}
	}
	return "", 0
}

// why says for people what mismatch found.
func (u rule) why(r Request) string {
	switch clause, i := u.mismatch(r); clause {
	case "identities":
		return fmt.Sprintf("identities: %s is not %s", r.Identity.Name, orList(u.identities))
	case "proof":
		return fmt.Sprintf("proof: needs %s at least, not %s", u.proof, r.Identity.Proof)
	case "credentials":
		return fmt.Sprintf("credentials: %s is not %s", r.Credential.Name, orList(u.credentials))
	case "metadata":
		return fmt.Sprintf("metadata: %s is not %s", u.metadata[i].key, orList(u.metadata[i].values))
	}
	return ""
}

func anyGlob(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Glob(p, name) })
}

// Explain returns what the narrowing, where there is one, and then every rule has to say to r, in the order of the file.
func (p *Policy) Explain(r Request) []Step {
	steps := r.Narrowing.steps(r)
	if p == nil {
		return steps
	}
	for _, u := range p.rules {
		why := u.why(r)
		steps = append(steps, Step{Rule: u.name, Effect: u.effect(), Matched: why == "", Why: why})
	}
	return steps
}

func (u rule) effect() string {
	if u.deny {
		return "deny"
	}
	return "allow"
}
