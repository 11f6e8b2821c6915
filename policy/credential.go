package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"keylease/internal/identity"
	"keylease/internal/strictyaml"
	"keylease/internal/ttl"
)

// CredentialFields is a credential's policy as people write it, in a seed file or for put.
type CredentialFields struct {
	DefaultLeaseTTL   *string        `yaml:"defaultLeaseTTL"`
	MaxLeaseTTL       *string        `yaml:"maxLeaseTTL"`
	MaxLeases         *int           `yaml:"maxLeases"`
	AllowedIdentities []matcherShape `yaml:"allowedIdentities"`
	Delivery          []string       `yaml:"delivery"`
	Approval          *string        `yaml:"approval"`
	KeepOnDisconnect  *bool          `yaml:"keepOnDisconnect"`
}

type matcherShape struct {
	Type  *string `yaml:"type"`
	Name  *string `yaml:"name"`
	Email *string `yaml:"email"`
}

// Policy returns what the fields mean. What is wrong with them becomes faults of d, in which they stand at path.
func (f CredentialFields) Policy(d *strictyaml.Document, path strictyaml.Path) CredentialPolicy {
	r := reader{d}
	c := CredentialPolicy{
		DefaultLeaseTTL:  r.duration(f.DefaultLeaseTTL, path.Join("defaultLeaseTTL")),
		MaxLeaseTTL:      r.duration(f.MaxLeaseTTL, path.Join("maxLeaseTTL")),
		MaxLeases:        r.count(f.MaxLeases, path.Join("maxLeases")),
		Delivery:         r.deliveries(f.Delivery, path.Join("delivery")),
		KeepOnDisconnect: f.KeepOnDisconnect != nil && *f.KeepOnDisconnect,
	}
	if f.Approval != nil {
		c.Approval = word(r, f.Approval, path.Join("approval"), approvals()...)
	}
	r.inOrder(c.DefaultLeaseTTL, or(c.MaxLeaseTTL, DefaultMaxTTL), path)
	if f.AllowedIdentities != nil && len(f.AllowedIdentities) == 0 {
		r.Faultf(path.Join("allowedIdentities"), "allowedIdentities is an empty list: nobody could lease it; leave it out to admit all whom a rule admits")
	}
	for i, m := range f.AllowedIdentities {
		c.AllowedIdentities = append(c.AllowedIdentities, r.matcher(m, path.Join("allowedIdentities", i)))
	}
	return c
}

func (r reader) matcher(s matcherShape, path strictyaml.Path) Matcher {
	if !r.Has(path.Join("type")) {
		r.Faultf(path, "an allowed identity needs a type: write {type: agent, name: …} or {type: human, email: …}")
		return Matcher{}
	}
	m := Matcher{Type: word(r, s.Type, path.Join("type"), identity.Agent, identity.Human)}
	field, other, pattern, into := "name", "email", s.Name, &m.Name
	if m.Type == identity.Human {
		field, other, pattern, into = "email", "name", s.Email, &m.Email
	}
	if r.Has(path.Join(other)) {
		r.Faultf(path.Join(other), "an allowed identity of type %s has no %s; write %s", m.Type, other, field)
	}
	switch {
	case pattern == nil:
		r.Faultf(path, `an allowed identity of type %s needs %s: write "*" to mean all`, m.Type, field)
	default:
		*into = *pattern
		if err := CheckGlob(*pattern, identityMarks); err != nil {
			r.Faultf(path.Join(field), "%s: %v", field, err)
		}
	}
	return m
}

// ParseCredentialPolicy reads the policy of one credential, YAML or JSON: {maxLeaseTTL: 4h, maxLeases: 5}.
// file is its name in errors, which are strictyaml.Faults.
func ParseCredentialPolicy(file string, data []byte) (CredentialPolicy, error) {
	d := strictyaml.Open(file, data)
	var f CredentialFields
	d.Decode(&f)
	c := f.Policy(d, nil)
	if err := d.Err(); err != nil {
		return CredentialPolicy{}, err
	}
	return c, nil
}

// storedPolicy is a CredentialPolicy as JSON has it, on disk and on the terminal: lengths of time as people write them.
type storedPolicy struct {
	DefaultLeaseTTL   duration   `json:"defaultLeaseTTL,omitempty"`
	MaxLeaseTTL       duration   `json:"maxLeaseTTL,omitempty"`
	MaxLeases         int        `json:"maxLeases,omitempty"`
	AllowedIdentities []Matcher  `json:"allowedIdentities,omitzero"` // empty is not nil: it admits nobody
	Delivery          []Delivery `json:"delivery,omitzero"`
	Approval          Approval   `json:"approval,omitempty"`
	KeepOnDisconnect  bool       `json:"keepOnDisconnect,omitempty"`
}

type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(ttl.Format(time.Duration(d))), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := ttl.Parse(string(b))
	*d = duration(v)
	return err
}

// MarshalJSON writes c with durations like "30m" and without what c does not say.
func (c CredentialPolicy) MarshalJSON() ([]byte, error) {
	return json.Marshal(storedPolicy{duration(c.DefaultLeaseTTL), duration(c.MaxLeaseTTL), c.MaxLeases,
		c.AllowedIdentities, c.Delivery, c.Approval, c.KeepOnDisconnect})
}

// UnmarshalJSON refuses a field that it does not know: it could be a restriction, written by a later version.
func (c *CredentialPolicy) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var s storedPolicy
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("reading a credential's policy: %w", err)
	}
	*c = CredentialPolicy{time.Duration(s.DefaultLeaseTTL), time.Duration(s.MaxLeaseTTL), s.MaxLeases,
		s.AllowedIdentities, s.Delivery, s.Approval, s.KeepOnDisconnect}
	return nil
}
