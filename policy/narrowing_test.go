package policy

import (
	"testing"
	"time"

	"keylease/internal/identity"
)

// Whatever a narrowing says, what is granted under it is granted without it too, for no less.
func TestANarrowingNeverAdds(t *testing.T) {
	p, err := Parse("policy.yaml", []byte(`version: 1
limits: {maxLeaseTTL: 3h}
rules:
  - name: short
    identities: ["ci*"]
    credentials: ["*-prod"]
    proof: token
    maxLeaseTTL: 20m
  - name: never
    credentials: ["stripe-*"]
    effect: deny
  - name: rest
    identities: ["*"]
    credentials: ["*"]
    defaultLeaseTTL: 1h
`))
	if err != nil {
		t.Fatal(err)
	}
	narrowings := []Narrowing{{}, {Credentials: []string{"openai-*"}}, {Credentials: []string{"*"}}, {Credentials: []string{"stripe-*", "aws-prod"}},
		{Credentials: []string{}}, {MaxTTL: time.Minute}, {MaxTTL: 100 * time.Hour}, {Credentials: []string{"openai-prod"}, MaxTTL: 30 * time.Minute}}
	asked := 0
	for _, policy := range []*Policy{p, nil} {
		for _, n := range narrowings {
			for _, proof := range []identity.Proof{identity.Declared, identity.Token, identity.OIDC} {
				for _, name := range []string{"openai-prod", "openai-dev", "aws-prod", "stripe-live"} {
					for _, ttl := range []time.Duration{0, time.Second, 45 * time.Minute, 50 * time.Hour} {
						for _, max := range []time.Duration{0, 2 * time.Minute, 8 * time.Hour} {
							r := Request{Identity: identity.Principal{Type: identity.Agent, Name: "ci-1", Proof: proof}, TTL: ttl,
								Credential: Credential{Name: name, Policy: CredentialPolicy{MaxLeaseTTL: max}}}
							whole := policy.Decide(r)
							r.Narrowing = n
							less := policy.Decide(r)
							asked++
							switch {
							case less.Allow != (whole.Allow && n.Covers(name)):
								t.Errorf("%+v of %s: %+v, without it %+v", n, name, less, whole)
							case !less.Allow:
							case less.MaxTTL > whole.MaxTTL || less.TTL > whole.TTL || n.MaxTTL > 0 && less.MaxTTL > n.MaxTTL || less.TTL > less.MaxTTL:
								t.Errorf("%+v of %s for %v: %v at most %v, without it %v at most %v", n, name, ttl, less.TTL, less.MaxTTL, whole.TTL, whole.MaxTTL)
							case less.Capped != (ttl > less.MaxTTL) || less.Rule != whole.Rule:
								t.Errorf("%+v of %s for %v: %+v", n, name, ttl, less)
							}
						}
					}
				}
			}
		}
	}
	if asked < 1000 {
		t.Errorf("only %d questions", asked)
	}
}

func TestExplainSaysWhatTheTokenTakesAway(t *testing.T) {
	r := Request{Identity: identity.Principal{Type: identity.Agent, Name: "ci"}, Credential: Credential{Name: "aws"}}
	var none *Policy
	if steps := none.Explain(r); len(steps) != 0 {
		t.Errorf("%+v", steps)
	}
	r.Narrowing = Narrowing{Credentials: []string{"openai-*", "db"}}
	if steps := none.Explain(r); len(steps) != 1 || steps[0].Matched || steps[0].Why != "credentials: aws is not openai-* or db" {
		t.Errorf("%+v", steps)
	}
	r.Credential.Name = "db"
	if steps := none.Explain(r); len(steps) != 1 || !steps[0].Matched {
		t.Errorf("%+v", steps)
	}
}
