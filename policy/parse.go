package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"keylease/internal/identity"
	"keylease/internal/strictyaml"
	"keylease/internal/ttl"
)

// The shapes of a policy file. Pointers and nil tell "not there" from "there and empty".
type fileShape struct {
	Version  *int `yaml:"version"`
	Defaults struct {
		DefaultLeaseTTL *string `yaml:"defaultLeaseTTL"`
	} `yaml:"defaults"`
	Limits struct {
		MaxLeaseTTL *string  `yaml:"maxLeaseTTL"`
		LeaseRate   *float64 `yaml:"leaseRate"`
		LeaseBurst  *int     `yaml:"leaseBurst"`
		UseRate     *float64 `yaml:"useRate"`
		UseBurst    *int     `yaml:"useBurst"`
		TrailBytes  *int     `yaml:"trailBytes"`
	} `yaml:"limits"`
	Rules []ruleShape `yaml:"rules"`
}

type ruleShape struct {
	Name             string              `yaml:"name"`
	Identities       []string            `yaml:"identities"`
	Credentials      []string            `yaml:"credentials"`
	Metadata         map[string][]string `yaml:"metadata"`
	Proof            *string             `yaml:"proof"`
	Effect           *string             `yaml:"effect"`
	DefaultLeaseTTL  *string             `yaml:"defaultLeaseTTL"`
	MaxLeaseTTL      *string             `yaml:"maxLeaseTTL"`
	MaxLeases        *int                `yaml:"maxLeases"`
	Delivery         []string            `yaml:"delivery"`
	Approval         *string             `yaml:"approval"`
	Purpose          *string             `yaml:"purpose"`
	KeepOnDisconnect *bool               `yaml:"keepOnDisconnect"`
}

// reader turns shapes into what they mean, telling the document of every fault.
type reader struct{ *strictyaml.Document }

// Parse reads a policy file. file is its name in errors, which are strictyaml.Faults: all of them, each with its line.
func Parse(file string, data []byte) (*Policy, error) {
	r := reader{strictyaml.Open(file, data)}
	var f fileShape
	r.Decode(&f)
	if r.Has(nil) {
		p := r.policy(f)
		if r.Err() == nil {
			sum := sha256.Sum256(data)
			p.hash = hex.EncodeToString(sum[:])
			p.warnings = warnings(r.Document, file, p)
			return p, nil
		}
	}
	return nil, r.Err()
}

func (r reader) policy(f fileShape) *Policy {
	p := &Policy{}
	switch {
	case !r.Has(at("version")):
		r.Faultf(nil, "the file needs a version: write version: 1 at its top")
	case f.Version != nil && *f.Version != 1:
		r.Faultf(at("version"), "this version of keylease reads policy files of version: 1 only")
	}
	if !r.Has(at("rules")) {
		r.Faultf(nil, "the file needs rules: without one nobody may lease anything (to mean that, write rules: [])")
	}
	p.defaultTTL = r.duration(f.Defaults.DefaultLeaseTTL, at("defaults", "defaultLeaseTTL"))
	p.hardCap = r.duration(f.Limits.MaxLeaseTTL, at("limits", "maxLeaseTTL"))
	p.leaseRate, p.leaseBurst = r.rate("lease", f.Limits.LeaseRate, DefaultLeaseRate, f.Limits.LeaseBurst, DefaultLeaseBurst)
	p.trailBytes = r.trailBytes(f.Limits.TrailBytes, p.leaseRate)
	p.useRate, p.useBurst = r.rate("use", f.Limits.UseRate, DefaultUseRate, f.Limits.UseBurst, DefaultUseBurst)
	seen := map[string]int{}
	for i, shape := range f.Rules {
		path := at("rules", i)
		u := r.rule(shape, path)
		if first, dup := seen[u.name]; dup && u.name != "" {
			r.Faultf(path.Join("name"), "another rule has this name: it was on line %d already", r.Line(at("rules", first, "name")))
		} else {
			seen[u.name] = i
		}
		p.rules = append(p.rules, u.ready())
	}
	return p
}

func at(path ...any) strictyaml.Path { return path }

// rate reads limits.leaseRate and leaseBurst, or another such pair: 0 in either is no limit.
func (r reader) rate(of string, perSecond *float64, usualRate float64, burst *int, usualBurst int) (float64, int) {
	if perSecond == nil {
		perSecond = &usualRate
	}
	if burst == nil {
		burst = &usualBurst
	}
	if *perSecond < 0 {
		r.Faultf(at("limits", of+"Rate"), "%sRate can't be less than 0 (0: no limit)", of)
	}
	if *burst < 0 {
		r.Faultf(at("limits", of+"Burst"), "%sBurst can't be less than 0 (0: no limit)", of)
	}
	if *perSecond == 0 || *burst == 0 {
		return 0, 0
	}
	return *perSecond, *burst
}

// trailBytes reads limits.trailBytes: 0 is no limit, and so is none said where lease changes have no limit either.
func (r reader) trailBytes(perDay *int, leaseRate float64) int64 {
	switch {
	case perDay == nil && leaseRate == 0:
		return 0
	case perDay == nil:
		return DefaultTrailBytes
	case *perDay < 0:
		r.Faultf(at("limits", "trailBytes"), "trailBytes can't be less than 0 (0: no limit)")
	}
	return int64(*perDay)
}

func (r reader) rule(s ruleShape, path strictyaml.Path) rule {
	u := rule{
		name: s.Name, identities: s.Identities, credentials: s.Credentials,
		proof:           word(r, s.Proof, path.Join("proof"), identity.Declared, identity.Token, identity.OIDC, identity.MTLS),
		deny:            word(r, s.Effect, path.Join("effect"), effect("allow"), "deny") == "deny",
		defaultTTL:      r.duration(s.DefaultLeaseTTL, path.Join("defaultLeaseTTL")),
		maxTTL:          r.duration(s.MaxLeaseTTL, path.Join("maxLeaseTTL")),
		maxLeases:       r.count(s.MaxLeases, path.Join("maxLeases")),
		delivery:        r.deliveries(s.Delivery, path.Join("delivery")),
		approval:        word(r, s.Approval, path.Join("approval"), approvals()...),
		purposeRequired: word(r, s.Purpose, path.Join("purpose"), purpose("optional"), "required") == "required",
	}
	u.keepOnDisconnect = s.KeepOnDisconnect != nil && *s.KeepOnDisconnect
	r.ruleName(s.Name, path)
	r.globs(s.Identities, path.Join("identities"), identityMarks)
	r.globs(s.Credentials, path.Join("credentials"), credentialMarks)
	u.metadata = r.metadata(s.Metadata, path.Join("metadata"))
	r.inOrder(u.defaultTTL, u.maxTTL, path)
	if u.deny {
		r.denyRule(path)
	} else {
		r.allowRule(path)
	}
	return u
}

type (
	effect  string
	purpose string
)

func (r reader) ruleName(name string, path strictyaml.Path) {
	switch {
	case !r.Has(path.Join("name")):
		r.Faultf(path, "the rule needs a name: it is what refusals and the trail call it")
	case name == "":
		r.Faultf(path.Join("name"), "the rule's name is empty")
	case len(name) > 200 || strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) }):
		r.Faultf(path.Join("name"), "a rule's name is at most 200 bytes of printable text")
	}
}

// allowRule: who and what must be said, so that nothing is opened to everybody by an omission.
func (r reader) allowRule(path strictyaml.Path) {
	for _, clause := range []string{"identities", "credentials"} {
		if !r.Has(path.Join(clause)) {
			r.Faultf(path, `the rule has no %s: write %s: ["*"] to mean all`, clause, clause)
		}
	}
}

// denyRule: an omitted clause denies more, never less; so only a rule that would deny everything by omission is
// refused. proof is a minimum, and a deny with a minimum would spare those who prove least.
func (r reader) denyRule(path strictyaml.Path) {
	if !r.Has(path.Join("identities")) && !r.Has(path.Join("credentials")) && !r.Has(path.Join("metadata")) {
		r.Faultf(path, `the rule denies everything to everybody: write identities: ["*"] and credentials: ["*"] if it is meant to`)
	}
	for _, clause := range []string{"proof", "defaultLeaseTTL", "maxLeaseTTL", "maxLeases", "delivery", "approval", "purpose", "keepOnDisconnect"} {
		if r.Has(path.Join(clause)) {
			r.Faultf(path.Join(clause), "%s means nothing in a rule with effect: deny; take it out", clause)
		}
	}
}

func (r reader) globs(patterns []string, path strictyaml.Path, marks string) {
	if patterns != nil && len(patterns) == 0 {
		r.Faultf(path, `%s is an empty list: write ["*"] to mean all`, path[len(path)-1])
	}
	for i, pattern := range patterns {
		if err := CheckGlob(pattern, marks); err != nil {
			r.Faultf(path.Join(i), "%s: %v", path[len(path)-1], err)
		}
	}
}

func (r reader) metadata(m map[string][]string, path strictyaml.Path) []anyOf {
	var list []anyOf
	for _, key := range slices.Sorted(maps.Keys(m)) {
		list = append(list, anyOf{key, m[key]})
		if len(m[key]) == 0 {
			r.Faultf(path.Join(key), "metadata: the list is empty, so the rule would never match")
		}
		for i, value := range m[key] {
			if strings.Contains(value, "*") {
				r.Faultf(path.Join(key, i), "metadata: values are compared exactly, * is no pattern here; list the values")
			}
		}
	}
	return list
}

// duration reads a length of time; nil and faults are 0.
func (r reader) duration(s *string, path strictyaml.Path) time.Duration {
	if s == nil {
		return 0
	}
	d, err := ttl.Parse(*s)
	if err != nil { // its text repeats the value
		r.Faultf(path, "%s is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d", path[len(path)-1])
	}
	return d
}

func (r reader) inOrder(def, max time.Duration, path strictyaml.Path) {
	if def > 0 && max > 0 && def > max {
		r.Faultf(path.Join("defaultLeaseTTL"), "defaultLeaseTTL (%s) is longer than maxLeaseTTL (%s)", ttl.Format(def), ttl.Format(max))
	}
}

// count reads maxLeases; nil is 0, no limit.
func (r reader) count(n *int, path strictyaml.Path) int {
	switch {
	case n == nil:
		return 0
	case *n < 1 || *n > 1_000_000:
		r.Faultf(path, "%s must be from 1 to 1000000; leave it out for no limit", path[len(path)-1])
	}
	return *n
}

func (r reader) deliveries(words []string, path strictyaml.Path) []Delivery {
	if words == nil {
		return nil
	}
	if len(words) == 0 {
		r.Faultf(path, "delivery is an empty list: nothing could be leased; leave it out to allow %s", orList(Deliveries()))
	}
	list := make([]Delivery, 0, len(words))
	for i := range words {
		list = append(list, word(r, &words[i], path.Join(i), Deliveries()...))
	}
	return list
}

// word reads one of a few known words; nil is the first of them.
func word[T ~string | identity.Proof](r reader, s *string, path strictyaml.Path, known ...T) T {
	if s == nil {
		return known[0]
	}
	names := make([]string, len(known))
	for i, k := range known {
		if names[i] = fmt.Sprint(k); names[i] == *s {
			return k
		}
	}
	field := path[len(path)-1]
	if _, item := field.(int); item {
		field = path[len(path)-2]
	}
	hint := ""
	if near := strictyaml.Nearest(*s, names); near != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", near)
	}
	r.Faultf(path, "%s must be %s%s", field, orList(names), hint)
	return known[0]
}
