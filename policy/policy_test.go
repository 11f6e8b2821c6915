package policy_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

func parse(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func example(t *testing.T) *policy.Policy {
	t.Helper()
	data, err := os.ReadFile("../policy.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(data))
}

// asking is one line of a table: who asks for what, and the answer that the policy must give.
type asking struct {
	allow bool
	r     policy.Request
	rule  string
}

func allow(who identity.Principal, what policy.Credential, rule string) asking {
	return asking{true, policy.Request{Identity: who, Credential: what}, rule}
}

func deny(who identity.Principal, what policy.Credential, rule string) asking {
	return asking{false, policy.Request{Identity: who, Credential: what}, rule}
}

func (a asking) check(t *testing.T, p *policy.Policy) {
	t.Helper()
	d := p.Decide(a.r)
	if d.Allow != a.allow || d.Rule != a.rule {
		t.Errorf("%s %q (%s) on %q: allow=%v by rule %q (%s); want %v by %q",
			a.r.Identity.Type, a.r.Identity.Name, a.r.Identity.Proof, a.r.Credential.Name, d.Allow, d.Rule, d.Reason, a.allow, a.rule)
	}
	if !d.Allow && !reflect.DeepEqual(d, policy.Decision{Rule: d.Rule, Reason: d.Reason}) {
		t.Errorf("a denial grants something: %+v", d)
	}
}

func agent(name string, proof identity.Proof) identity.Principal {
	return identity.Principal{Type: identity.Agent, Name: name, Proof: proof}
}

func human(name string, proof identity.Proof) identity.Principal {
	return identity.Principal{Type: identity.Human, Name: name, Proof: proof}
}

func declared(name string) identity.Principal { return agent(name, identity.Declared) }

// key is a credential with metadata given as key, value, key, value…
func key(name string, metadata ...string) policy.Credential {
	m := map[string]string{}
	for i := 0; i < len(metadata); i += 2 {
		m[metadata[i]] = metadata[i+1]
	}
	return policy.Credential{Name: name, Type: "api-key", Metadata: m}
}

func TestExamplePolicy(t *testing.T) {
	p := example(t)
	dev := key("openai-dev", "environment", "development")
	prod := key("openai-prod", "environment", "production")
	const rule1, rule2, rule3 = "coding agents use development keys", "production needs a person", "nobody leases payments"
	for _, a := range []asking{
		allow(declared("claude-code"), dev, rule1),
		allow(declared("cursor"), dev, rule1),
		allow(declared("ide-vscode"), dev, rule1),
		allow(declared("ide-"), dev, rule1),
		allow(declared("claude-code"), key("openai-prod", "environment", "staging"), rule1),
		deny(declared("codex"), dev, ""),
		deny(declared("claude-code"), key("openai-dev"), ""),
		deny(declared("claude-code"), key("openai-dev", "environment", "Development"), ""),
		deny(declared("claude-code"), key("openai-dev", "environment", ""), ""),
		deny(declared("claude-code"), prod, ""),
		allow(agent("claude-code", identity.Token), prod, rule2),
		allow(agent("claude-code", identity.OIDC), prod, rule2),
		allow(agent("claude-code", identity.MTLS), prod, rule2),
		deny(agent("cursor", identity.Token), prod, ""),
		deny(declared("claude-code"), key("stripe-live-x", "environment", "development"), rule3),
		deny(agent("claude-code", identity.MTLS), key("stripe-live-a-prod"), rule3),
		allow(declared("claude-code"), key("stripe-live", "environment", "development"), rule1),
	} {
		a.check(t, p)
	}
	d := p.Decide(policy.Request{Identity: agent("claude-code", identity.Token), Credential: prod})
	if !d.PurposeRequired || d.Approval != policy.Operator || d.MaxTTL != 30*time.Minute || d.TTL != 15*time.Minute ||
		!reflect.DeepEqual(d.Deliveries, []policy.Delivery{policy.Proxy, policy.Exec}) {
		t.Errorf("production: %+v", d)
	}
}

// It does not matter where the deny stands or how wide the allow is.
func TestDenyBeatsAllowWhereverItStands(t *testing.T) {
	wide := `{name: wide, identities: ["*"], credentials: ["*"]}`
	exact := `{name: exact, identities: [root], credentials: [db]}`
	for _, no := range []string{
		`{name: no, identities: ["*"], credentials: ["*"], effect: deny}`,
		`{name: no, identities: [root], effect: deny}`,
		`{name: no, identities: ["r?ot"], credentials: ["d*"], effect: deny}`,
		`{name: no, credentials: [db], effect: deny}`,
		`{name: no, metadata: {tier: [gold]}, effect: deny}`,
	} {
		for _, order := range [][]string{{no, wide, exact}, {wide, no, exact}, {exact, wide, no}} {
			p := parse(t, "{version: 1, rules: ["+strings.Join(order, ", ")+"]}")
			for _, proof := range []identity.Proof{identity.Declared, identity.Token, identity.OIDC, identity.MTLS} {
				deny(agent("root", proof), key("db", "tier", "gold"), "no").check(t, p)
			}
		}
	}
}

// Names are bytes. Nothing that looks alike is alike, and nothing asked with is a pattern.
func TestNamesAreComparedAsBytes(t *testing.T) {
	p := parse(t, `{version: 1, rules: [{name: r, identities: [root], credentials: [db]}]}`)
	allow(declared("root"), key("db"), "r").check(t, p)
	for _, name := range []string{"ROOT", "Root", "root.", " root", "root ", "root\t", "Root\t", "root\x00", "ro\u200bot", "ｒoot", "*",
		"r*", "roo?", "[r]oot", "{root,x}", "../root", "root/", "%72oot", "", "r\u202eoot"} {
		deny(declared(name), key("db"), "").check(t, p)
	}
	for _, name := range []string{"DB", "db.", " db", "*", "d?", "[d]b", "../db", "a//db", "./db", "db/", "db\x00", ""} {
		deny(declared("root"), key(name), "").check(t, p)
	}
	everybody := parse(t, `{version: 1, rules: [{name: r, identities: ["*"], credentials: ["*"]}]}`)
	for _, name := range []string{"ROOT", "*", "[a]", "a\x00", "ｒoot", " a", "", "a\u202eb"} {
		deny(declared(name), key("db"), "").check(t, everybody)
	}
	meta := parse(t, `{version: 1, rules: [{name: r, identities: ["*"], credentials: ["*"], metadata: {env: [dev]}}]}`)
	deny(declared("a"), key("db", "env", "*"), "").check(t, meta)
	deny(declared("a"), key("db", "env", "dev "), "").check(t, meta)
}

func TestTheFirstAllowThatMatchesSetsTheLimits(t *testing.T) {
	p := parse(t, `
version: 1
rules:
  - {name: narrow, identities: [a], credentials: ["*"], proof: token, maxLeaseTTL: 2m}
  - {name: wide, identities: [a], credentials: ["*"], maxLeaseTTL: 1m, keepOnDisconnect: true}
`)
	strong, weak := p.Decide(policy.Request{Identity: agent("a", identity.Token), Credential: key("k")}), p.Decide(policy.Request{Identity: declared("a"), Credential: key("k")})
	if strong.Rule != "narrow" || strong.MaxTTL != 2*time.Minute || strong.KeepOnDisconnect {
		t.Errorf("token: %+v", strong)
	}
	if weak.Rule != "wide" || weak.MaxTTL != time.Minute || !weak.KeepOnDisconnect {
		t.Errorf("declared: %+v", weak)
	}
}

func TestHumansOfACredentialNeedAVerifiedProof(t *testing.T) {
	p := parse(t, `{version: 1, rules: [{name: all, identities: ["*"], credentials: ["*"]}]}`)
	k := key("k")
	k.Policy.AllowedIdentities = []policy.Matcher{
		{Type: identity.Human, Email: "*@example.com"},
		{Type: identity.Agent, Name: "ide-*"},
	}
	for _, a := range []asking{
		allow(human("a@example.com", identity.OIDC), k, "all"),
		allow(human("a@example.com", identity.MTLS), k, "all"),
		deny(human("a@example.com", identity.Token), k, ""),
		deny(human("a@example.com", identity.Declared), k, ""),
		deny(human("a@example.com.evil.org", identity.OIDC), k, ""),
		deny(agent("a@example.com", identity.OIDC), k, ""),
		allow(declared("ide-x"), k, "all"),
		deny(human("ide-x", identity.OIDC), k, ""),
		deny(identity.Principal{Name: "ide-x"}, k, ""),
	} {
		a.check(t, p)
	}
	k.Policy.AllowedIdentities = []policy.Matcher{{}}
	deny(declared("a"), k, "").check(t, p)
	k.Policy.AllowedIdentities = []policy.Matcher{}
	deny(declared("a"), k, "").check(t, p)
}

func TestAStoreThatNeverHadAPolicy(t *testing.T) {
	only := key("k")
	only.Policy.AllowedIdentities = []policy.Matcher{{Type: identity.Agent, Name: "codex"}}
	for _, a := range []asking{
		allow(declared("a"), key("k"), ""),
		allow(agent("a", identity.Token), key("k"), ""),
		deny(agent("a", identity.OIDC), key("k"), ""),
		deny(agent("a", identity.MTLS), key("k"), ""),
		deny(declared("a"), only, ""),
		allow(declared("codex"), only, ""),
		deny(declared("Codex"), only, ""),
	} {
		a.check(t, nil)
	}
	if d := (*policy.Policy)(nil).Decide(policy.Request{Identity: declared("a"), Credential: key("k")}); d.TTL != 15*time.Minute || d.MaxTTL != time.Hour || len(d.Deliveries) != 3 || d.Approval != policy.None {
		t.Errorf("%+v", d)
	}
}

func TestZeroDecisionAndEmptyPolicyDeny(t *testing.T) {
	if (policy.Decision{}).Allow {
		t.Error("the zero Decision allows")
	}
	deny(declared("a"), key("k"), "").check(t, &policy.Policy{})
	deny(declared("a"), key("k"), "").check(t, parse(t, "{version: 1, rules: []}"))
}

// What a lease may last: rule, credential, file default and hard cap against what is asked.
func TestTTL(t *testing.T) {
	const m, h = time.Minute, time.Hour
	for _, c := range []struct {
		name                   string
		file, rule             string
		credDefault, credMax   time.Duration
		ask, want, wantCeiling time.Duration
		capped                 bool
	}{
		{"nobody says anything", "", "", 0, 0, 0, 15 * m, h, false},
		{"the file's default", "defaults: {defaultLeaseTTL: 20m}, ", "", 0, 0, 0, 20 * m, h, false},
		{"the rule's before the file's", "defaults: {defaultLeaseTTL: 20m}, ", ", defaultLeaseTTL: 5m", 0, 0, 0, 5 * m, h, false},
		{"the credential's before the rule's", "", ", defaultLeaseTTL: 5m", 30 * m, 4 * h, 0, 30 * m, 4 * h, false},
		{"what is asked before all", "", ", defaultLeaseTTL: 5m", 30 * m, 4 * h, 2 * h, 2 * h, 4 * h, false},
		{"capped by the credential", "", "", 30 * m, 4 * h, 24 * h, 4 * h, 4 * h, true},
		{"exactly the cap is not capped", "", "", 30 * m, 4 * h, 4 * h, 4 * h, 4 * h, false},
		{"one second more is", "", "", 30 * m, 4 * h, 4*h + time.Second, 4 * h, 4 * h, true},
		{"capped by the rule", "", ", maxLeaseTTL: 10m", 30 * m, 4 * h, 24 * h, 10 * m, 10 * m, true},
		{"a rule can't widen a silent credential", "", ", maxLeaseTTL: 8h", 0, 0, 24 * h, h, h, true},
		{"capped by the hard cap", "limits: {maxLeaseTTL: 2h}, ", "", 30 * m, 4 * h, 24 * h, 2 * h, 2 * h, true},
		{"a default is held under the cap quietly", "limits: {maxLeaseTTL: 2m}, ", "", 30 * m, 4 * h, 0, 2 * m, 2 * m, false},
	} {
		p := parse(t, "{version: 1, "+c.file+`rules: [{name: r, identities: ["*"], credentials: ["*"]`+c.rule+"}]}")
		k := key("k")
		k.Policy.DefaultLeaseTTL, k.Policy.MaxLeaseTTL = c.credDefault, c.credMax
		d := p.Decide(policy.Request{Identity: declared("a"), Credential: k, TTL: c.ask})
		if !d.Allow || d.TTL != c.want || d.MaxTTL != c.wantCeiling || d.Capped != c.capped {
			t.Errorf("%s: ttl %s of %s, capped %v; want %s of %s, %v", c.name, d.TTL, d.MaxTTL, d.Capped, c.want, c.wantCeiling, c.capped)
		}
	}
	if d := (*policy.Policy)(nil).Decide(policy.Request{Identity: declared("a"), Credential: key("k"), TTL: -1}); d.Allow {
		t.Error("a negative ttl is allowed")
	}
}

func TestTheStricterOfRuleAndCredential(t *testing.T) {
	p := parse(t, `{version: 1, rules: [{name: r, identities: ["*"], credentials: ["*"], approval: user, delivery: [value, proxy]}]}`)
	for _, c := range []struct {
		approval policy.Approval
		delivery []policy.Delivery
		want     string
	}{
		{"", nil, "true user [proxy value]"},
		{policy.None, []policy.Delivery{policy.Exec, policy.Value}, "true user [value]"},
		{policy.Operator, []policy.Delivery{policy.Value, policy.Exec, policy.Proxy}, "true operator [proxy value]"},
		{"from-a-later-version", nil, "true from-a-later-version [proxy value]"},
		{policy.None, []policy.Delivery{policy.Exec}, "false  []"},
	} {
		k := key("k")
		k.Policy.Approval, k.Policy.Delivery = c.approval, c.delivery
		d := p.Decide(policy.Request{Identity: declared("a"), Credential: k})
		if got := fmt.Sprint(d.Allow, " ", d.Approval, " ", d.Deliveries); got != c.want {
			t.Errorf("%s %s: %s; want %s", c.approval, c.delivery, got, c.want)
		}
	}
}

func TestARulesLimitCoversItsCredentialsOnly(t *testing.T) {
	d := example(t).Decide(policy.Request{Identity: declared("cursor"), Credential: key("a", "environment", "staging")})
	if d.Limit == nil || d.Limit.Max != 5 || d.Limit.Rule != d.Rule {
		t.Fatalf("limit: %+v", d.Limit)
	}
	if !d.Limit.Covers(key("b", "environment", "development")) || d.Limit.Covers(key("b", "environment", "production")) || d.Limit.Covers(key("b")) {
		t.Error("the limit covers the wrong credentials")
	}
}

func TestExplainNamesTheClause(t *testing.T) {
	p := example(t)
	steps := p.Explain(policy.Request{Identity: declared("claude-code"), Credential: key("openai-prod", "environment", "production")})
	want := []policy.Step{
		{"coding agents use development keys", "allow", false, "metadata: environment is not development or staging"},
		{"production needs a person", "allow", false, "proof: needs token at least, not declared"},
		{"nobody leases payments", "deny", false, "credentials: openai-prod is not stripe-live-*"},
	}
	if !reflect.DeepEqual(steps, want) {
		t.Errorf("got %+v", steps)
	}
	steps = p.Explain(policy.Request{Identity: declared("codex"), Credential: key("k", "environment", "staging")})
	if steps[0].Why != "identities: codex is not claude-code, cursor or ide-*" {
		t.Errorf("got %+v", steps[0])
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a*", "a", true}, {"*a", "ba", true}, {"a*c", "abbc", true}, {"a*c", "abb", false},
		{"*-prod", "x-prod", true}, {"*-prod", "x-prod2", false}, {"**", "a", true}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"?", "", false}, {"", "", true}, {"", "a", false}, {"a*b*c", "aXbYbZc", true}, {"[a]", "a", false}, {"a", "A", false},
		{"{a,b}", "a", false}, {`\a`, "a", false}, {"*@example.com", "a@example.com", true}, {"*a*a*a*b", strings.Repeat("a", 255), false},
	} {
		if got := policy.Glob(c.pattern, c.name); got != c.want {
			t.Errorf("Glob(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestAUsersApprovalOfProductionIsWarnedOf(t *testing.T) {
	const rule = `{version: 1, rules: [{name: NAME, identities: ["*"], credentials: ["CRED"], metadata: {environment: [ENV]}, delivery: [value], approval: WHO}]}`
	for _, c := range []struct {
		name, credentials, environment, who string
		warned                              bool
	}{
		{"a", "*-prod", "any", "user", true}, {"a", "stripe-live-*", "any", "user", true}, {"a", "*", "Production", "user", true},
		{"production needs a person", "*", "any", "user", true}, {"a", "*-prod", "any", "operator", false}, {"a", "*-prod", "any", "none", false},
		{"delivery", "product-*", "staging", "user", false},
	} {
		text := strings.NewReplacer("NAME", c.name, "CRED", c.credentials, "ENV", c.environment, "WHO", c.who).Replace(rule)
		w := strings.Join(parse(t, text).Warnings(), "\n")
		if strings.Contains(w, "approval: operator takes a person") != c.warned {
			t.Errorf("%+v: %q", c, w)
		}
	}
}

func TestRatesAndHash(t *testing.T) {
	for text, want := range map[string]string{
		"{version: 1, rules: []}": "50 500 0s",
		"{version: 1, limits: {leaseRate: 2.5, leaseBurst: 7, maxLeaseTTL: 1h}, rules: []}": "2.5 7 1h0m0s",
		"{version: 1, limits: {leaseRate: 0}, rules: []}":                                   "0 0 0s",
		"{version: 1, limits: {leaseBurst: 0}, rules: []}":                                  "0 0 0s",
	} {
		if got := fmt.Sprint(parse(t, text).Limits()); got != want {
			t.Errorf("%s: %s; want %s", text, got, want)
		}
	}
	for text, want := range map[string]int64{
		"{version: 1, rules: []}":                                         policy.DefaultTrailBytes,
		"{version: 1, limits: {leaseRate: 0}, rules: []}":                 0,
		"{version: 1, limits: {leaseRate: 0, trailBytes: 7}, rules: []}":  7,
		"{version: 1, limits: {leaseRate: 10, trailBytes: 0}, rules: []}": 0,
	} {
		if got := parse(t, text).TrailBytes(); got != want {
			t.Errorf("%s: %d trail bytes; want %d", text, got, want)
		}
	}
	a, b := parse(t, "{version: 1, rules: []}"), parse(t, "{version: 1, rules: []} ")
	if len(a.Hash()) != 64 || a.Hash() == b.Hash() || (*policy.Policy)(nil).Hash() != "" {
		t.Error("the hash is not that of the file's bytes")
	}
}

func TestNothingIsWarnedOfWithoutACause(t *testing.T) {
	if w := example(t).Warnings(); len(w) > 0 {
		t.Errorf("warned of the example: %q", w)
	}
	if w := parse(t, `{version: 1, rules: [{name: r, identities: ["*"], credentials: ["*"], delivery: [value], approval: none}]}`).Warnings(); len(w) > 0 {
		t.Errorf("warned of nothing: %q", w)
	}
}
