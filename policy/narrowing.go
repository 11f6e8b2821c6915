package policy

import (
	"fmt"
	"time"
)

// Narrowing is what a token takes away from the identity that it stands for. Nothing in one ever adds to what the
// policy grants, and the zero Narrowing takes nothing away.
type Narrowing struct {
	Credentials []string      // patterns as Glob reads them, one of which must match; nil: no further limit
	MaxTTL      time.Duration // a lease's whole life, renewals included; 0: no further limit
}

// maxNarrowing is how many patterns a Narrowing may have: it is looked at for each credential of a list.
const maxNarrowing = 32

// Check reports why n can't be what was meant: a list without a pattern, a pattern that no name can match, or a time
// that is not one.
func (n Narrowing) Check() error {
	if n.Credentials != nil && len(n.Credentials) == 0 {
		return fmt.Errorf("the list of credentials is empty: leave it out to mean all that the identity may lease")
	}
	if len(n.Credentials) > maxNarrowing {
		return fmt.Errorf("%d patterns for credentials; at most %d are allowed", len(n.Credentials), maxNarrowing)
	}
	for _, pattern := range n.Credentials {
		if err := CheckGlob(pattern, credentialMarks); err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
	}
	if n.MaxTTL < 0 || n.MaxTTL > 0 && n.MaxTTL < time.Second {
		return fmt.Errorf("the longest time of a lease is at least 1s")
	}
	return nil
}

// Covers reports whether n leaves the credential of this name open. An empty list that is not nil leaves nothing.
func (n Narrowing) Covers(name string) bool {
	return n.Credentials == nil || anyGlob(n.Credentials, name)
}

// IsZero reports whether n takes nothing away.
func (n Narrowing) IsZero() bool { return n.Credentials == nil && n.MaxTTL == 0 }

// EffectNarrow is the effect of the Step that a Narrowing takes in an explanation.
const EffectNarrow = "narrow"

// steps is what n has to say to r, before any rule; nothing for the zero Narrowing.
func (n Narrowing) steps(r Request) []Step {
	if n.IsZero() {
		return nil
	}
	s := Step{Rule: "the token", Effect: EffectNarrow, Matched: n.Covers(r.Credential.Name)}
	if !s.Matched {
		s.Why = fmt.Sprintf("credentials: %s is not %s", r.Credential.Name, orList(n.Credentials))
	}
	return []Step{s}
}
