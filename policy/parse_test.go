package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/internal/strictyaml"
	"keylease/policy"
)

func TestBadPolicies(t *testing.T) {
	const ok = `identities: ["*"], credentials: ["*"]`
	for _, c := range []struct{ name, file, want string }{
		{"empty", ``, `p:1: the file is empty`},
		{"only a comment", "# later\n", `p:1: the file is empty`},
		{"a list", `[]`, `p:1: the file must be fields with values`},
		{"no version, no rules", `{}`, "p:1: the file needs a version: write version: 1 at its top\n" +
			"p:1: the file needs rules: without one nobody may lease anything (to mean that, write rules: [])"},
		{"version 2", "version: 2\nrules: []", `p:1: this version of keylease reads policy files of version: 1 only`},
		{"version as text", "version: \"1\"\nrules: []", `p:1: version must be a whole number`},
		{"unknown fields, near and far", "version: 1\nrule: []\nzebra: 1\nrules: []",
			"p:2: unknown field \"rule\": did you mean \"rules\"?\np:3: unknown field \"zebra\": the fields here are version, defaults, limits, rules"},
		{"two faults in two rules", "version: 1\nrules:\n- {name: a, " + ok + ", maxLeasTTL: 1h}\n- {name: b, " + ok + ", maxLeaseTTL: 1x}",
			"p:3: unknown field \"maxLeasTTL\": did you mean \"maxLeaseTTL\"?\n" +
				"p:4: maxLeaseTTL is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d"},
		{"no name", "version: 1\nrules:\n- {" + ok + "}", `p:3: the rule needs a name: it is what refusals and the trail call it`},
		{"empty name", "version: 1\nrules:\n- {name: '', " + ok + "}", `p:3: the rule's name is empty`},
		{"bidi name", "version: 1\nrules:\n- {name: \"a\\u202eb\", " + ok + "}", `p:3: a rule's name is at most 200 bytes of printable text`},
		{"same name twice", "version: 1\nrules:\n- {name: a, " + ok + "}\n- {name: a, " + ok + "}", `p:4: another rule has this name: it was on line 3 already`},
		{"same field twice", "version: 1\nrules:\n- name: a\n  identities: [a]\n  credentials: [b]\n  identities: [c]", `p:6: field "identities" is here twice: it was on line 4 already`},
		{"an allow for nobody in particular", "version: 1\nrules:\n- name: a", "p:3: the rule has no identities: write identities: [\"*\"] to mean all\n" +
			"p:3: the rule has no credentials: write credentials: [\"*\"] to mean all"},
		{"empty lists", "version: 1\nrules:\n- name: a\n  identities: []\n  credentials: []\n  delivery: []\n  metadata: {env: []}",
			"p:4: identities is an empty list: write [\"*\"] to mean all\n" +
				"p:5: credentials is an empty list: write [\"*\"] to mean all\n" +
				"p:6: delivery is an empty list: nothing could be leased; leave it out to allow proxy, exec or value\n" +
				"p:7: metadata: the list is empty, so the rule would never match"},
		{"a deny of everything", "version: 1\nrules:\n- {name: a, effect: deny}",
			`p:3: the rule denies everything to everybody: write identities: ["*"] and credentials: ["*"] if it is meant to`},
		{"a deny with limits", "version: 1\nrules:\n- name: a\n  credentials: [x]\n  effect: deny\n  proof: token\n  maxLeases: 1",
			"p:6: proof means nothing in a rule with effect: deny; take it out\np:7: maxLeases means nothing in a rule with effect: deny; take it out"},
		{"patterns that match no name", "version: 1\nrules:\n- name: a\n  identities: [Claude, \"\"]\n  credentials: [\"{a,b}\", a/b, \"*\"]",
			"p:4: identities: the pattern holds 'C', which no name holds: use a-z, 0-9 and . _ @ + : / -, with * for any run and ? for one character\n" +
				"p:4: identities: an empty pattern matches nothing\n" +
				"p:5: credentials: the pattern holds '{', which no name holds: use a-z, 0-9 and . _ -, with * for any run and ? for one character\n" +
				"p:5: credentials: the pattern holds '/', which no name holds: use a-z, 0-9 and . _ -, with * for any run and ? for one character"},
		{"a pattern in metadata", "version: 1\nrules:\n- {name: a, " + ok + ", metadata: {env: [\"dev*\"]}}",
			`p:3: metadata: values are compared exactly, * is no pattern here; list the values`},
		{"metadata not a list", "version: 1\nrules:\n- {name: a, " + ok + ", metadata: {env: dev}}",
			`p:3: field "env" in metadata must be a list: write [ … ] or lines that begin with -`},
		{"unknown words", "version: 1\nrules:\n- name: a\n  " + strings.ReplaceAll(ok, ", c", "\n  c") + "\n  proof: tokens\n  approval: boss\n  purpose: requird\n  effect: Allow\n  delivery: [exec, values]",
			"p:6: proof must be declared, token, oidc or mtls (did you mean \"token\"?)\n" +
				"p:7: approval must be none, user or operator\n" +
				"p:8: purpose must be optional or required (did you mean \"required\"?)\n" +
				"p:9: effect must be allow or deny (did you mean \"allow\"?)\n" +
				"p:10: delivery must be proxy, exec or value (did you mean \"value\"?)"},
		{"numbers out of range", "version: 1\nlimits: {leaseRate: -1, leaseBurst: -1}\nrules:\n- {name: a, " + ok + ", maxLeases: 0}",
			"p:2: leaseRate can't be less than 0 (0: no limit)\np:2: leaseBurst can't be less than 0 (0: no limit)\n" +
				"p:4: maxLeases must be from 1 to 1000000; leave it out for no limit"},
		{"wrong kinds", "version: 1\nrules:\n- {name: 5, " + ok + ", maxLeases: many, keepOnDisconnect: yes, maxLeaseTTL: 30}",
			"p:3: name must be text: put it in quotes\np:3: maxLeases must be a whole number\n" +
				"p:3: keepOnDisconnect must be true or false\np:3: maxLeaseTTL must be text: put it in quotes"},
		{"zero, forever, fraction", "version: 1\ndefaults: {defaultLeaseTTL: 0s}\nlimits: {maxLeaseTTL: 99999d}\nrules:\n- {name: a, " + ok + ", maxLeaseTTL: 1.5h}",
			"p:2: defaultLeaseTTL is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d\n" +
				"p:3: maxLeaseTTL is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d\n" +
				"p:5: maxLeaseTTL is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d"},
		{"default over maximum", "version: 1\nrules:\n- {name: a, " + ok + ", defaultLeaseTTL: 2h, maxLeaseTTL: 1h}",
			`p:3: defaultLeaseTTL (2h) is longer than maxLeaseTTL (1h)`},
		{"a rule that is no rule", "version: 1\nrules: [5, null]", "p:2: an item of rules must be fields with values\np:2: an item of rules must be fields with values"},
	} {
		p, err := policy.Parse("p", []byte(c.file))
		if p != nil || err == nil || err.Error() != c.want {
			t.Errorf("%s:\n%v\nwant:\n%s", c.name, err, c.want)
		}
		var faults strictyaml.Faults
		if err != nil && !errors.As(err, &faults) {
			t.Errorf("%s: %T", c.name, err)
		}
	}
}

func TestCredentialPolicyAsJSON(t *testing.T) {
	for _, c := range []policy.CredentialPolicy{
		{},
		{AllowedIdentities: []policy.Matcher{}, Delivery: []policy.Delivery{}}, // nobody must not come back as everybody
		{DefaultLeaseTTL: 30 * time.Minute, MaxLeaseTTL: 4 * time.Hour, MaxLeases: 5, Approval: policy.User, KeepOnDisconnect: true,
			Delivery:          []policy.Delivery{policy.Exec},
			AllowedIdentities: []policy.Matcher{{Type: identity.Agent, Name: "ide-*"}, {Type: identity.Human, Email: "*@example.com"}}},
	} {
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back policy.CredentialPolicy
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(c, back) {
			t.Errorf("%s came back as %+v: %v", b, back, err)
		}
	}
	b, _ := json.Marshal(policy.CredentialPolicy{MaxLeaseTTL: 90 * time.Minute})
	if string(b) != `{"maxLeaseTTL":"1h30m"}` {
		t.Errorf("got %s", b)
	}
	if err := json.Unmarshal([]byte(`{"onlyOnTuesdays":true}`), new(policy.CredentialPolicy)); err == nil {
		t.Error("a restriction of a later version was dropped")
	}
}

func TestParseCredentialPolicy(t *testing.T) {
	c, err := policy.ParseCredentialPolicy("--policy", []byte(`{maxLeaseTTL: 4h, maxLeases: 5, allowedIdentities: [{type: agent, name: codex}]}`))
	if err != nil || c.MaxLeaseTTL != 4*time.Hour || c.MaxLeases != 5 || len(c.AllowedIdentities) != 1 {
		t.Errorf("%+v %v", c, err)
	}
	_, err = policy.ParseCredentialPolicy("--policy", []byte(`{allowedIdentities: [{type: agent, email: "*"}, {name: x}, {type: robot, name: x}], defaultLeaseTTL: 2h}`))
	want := `--policy:1: defaultLeaseTTL (2h) is longer than maxLeaseTTL (1h)
--policy:1: an allowed identity of type agent has no email; write name
--policy:1: an allowed identity of type agent needs name: write "*" to mean all
--policy:1: an allowed identity needs a type: write {type: agent, name: …} or {type: human, email: …}
--policy:1: type must be agent or human`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestParseWords(t *testing.T) {
	if _, err := policy.ParseDelivery("Value"); err == nil || err.Error() != "unknown delivery: use proxy, exec or value" {
		t.Errorf("%v", err)
	}
	if a, err := policy.ParseApproval(""); err != nil || a != policy.None {
		t.Errorf("%q %v", a, err)
	}
}

// What parses, parses to the same again; it decides without a panic and within its limits; with a key that nobody knows
// added to it, it is refused.
func FuzzParse(f *testing.F) {
	f.Add([]byte("version: 1\nrules:\n- {name: a, identities: [\"*\"], credentials: [\"*\"], metadata: {a: [b]}, proof: token}"))
	f.Add([]byte("version: 1\nrules: [{name: b, credentials: [x], effect: deny}]"))
	f.Add([]byte(`{"version": 1, "limits": {"leaseRate": 1e3}, "rules": []}`))
	f.Add([]byte("version: 1\ndefaults: {defaultLeaseTTL: 5m}\nlimits: {maxLeaseTTL: 2h, leaseBurst: 3}\nrules:\n- name: |\n    a\n  identities: [\"a?\", x]\n  credentials: [\"*-prod\"]\n  maxLeases: 2\n  delivery: [value, exec]\n  approval: user\n  purpose: required\n  keepOnDisconnect: true\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.Parse("p", data)
		if (p == nil) == (err == nil) {
			t.Fatal("either a policy or an error")
		}
		if p == nil {
			return
		}
		if again, err := policy.Parse("p", bytes.Clone(data)); err != nil || !reflect.DeepEqual(p, again) {
			t.Fatalf("parsed again it is another: %v", err)
		}
		for _, r := range []policy.Request{
			{Identity: agent("a", identity.Token), Credential: key("x", "a", "b")},
			{Identity: agent("a", identity.Declared), Credential: key("db-prod"), TTL: time.Minute},
			{Identity: identity.Principal{Type: identity.Human, Name: "a@example.com", Proof: identity.OIDC}, Credential: key("x"), TTL: policy.DefaultMaxTTL * 2},
			{Identity: agent("*", identity.Token), Credential: key("*")}, {}, {TTL: -1, Identity: agent("a", identity.MTLS)},
		} {
			d := p.Decide(r)
			if d.Allow && (d.TTL <= 0 || d.TTL > d.MaxTTL || d.MaxTTL > time.Hour || len(d.Deliveries) == 0 || d.Rule == "" || r.Identity.Name == "*" || r.TTL < 0) {
				t.Errorf("%+v: %+v", r, d)
			}
			p.Explain(r)
		}
		p.Warnings()
		for _, more := range []string{"\nnobodyKnows: 1\n", "\n\"Rules\": []\n"} {
			if _, err := policy.Parse("p", append(bytes.Clone(data), more...)); err == nil {
				t.Errorf("%q is taken with %q at its end", data, more)
			}
		}
	})
}
