package identity

import "strings"

// Scopes are what a token of somebody else's issuer may be used for. They count for proof oidc alone: who the operator
// let in by other means may do all that policy grants. The zero Scopes allow nothing but giving back.
type Scopes uint8

// The scopes, as tokens and OAuth metadata write them.
const (
	LeaseScope = "keylease:lease" // lease and renew
	ListScope  = "keylease:list"  // see what may be leased
)

const (
	MayLease Scopes = 1 << iota
	MayList

	AllScopes = MayLease | MayList
)

// ScopesOf returns the scopes in texts, each of which may hold several, separated by spaces. Others are ignored.
func ScopesOf(texts ...string) (s Scopes) {
	for _, text := range texts {
		for _, word := range strings.Fields(text) {
			switch word {
			case LeaseScope:
				s |= MayLease
			case ListScope:
				s |= MayList
			}
		}
	}
	return s
}

// May reports whether the caller's proof is good for what scope stands for. Policy is asked besides.
func (c Caller) May(scope Scopes) bool { return c.Proof != OIDC || c.Scopes&scope == scope }
