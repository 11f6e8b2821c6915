//go:build linux

package promises

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// TestA5TheListShowsNobodyElses: over every road, whatever limit, match or cursor B sends, it finds none of A's leases
// and none of the credentials that A alone may lease. A's cursor, or one that was changed, is refused.
func TestA5TheListShowsNobodyElses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(`version: 1
rules:
  - {name: alice has all, identities: [alice], credentials: ["*"]}
  - {name: bob has his, identities: [bob], credentials: ["b-*", shared]}
`)
	s := w.serve()
	var items []string
	for _, name := range []string{"a-1", "a-2", "b-1", "b-2", "b-3", "c-1", "c-2", "shared"} {
		items = append(items, secretOf(name, "metadata: {team: \"*\"}"))
	}
	w.seed(items...)
	a := w.agent("alice")
	hers := []string{lend(t, a, "a-1"), lend(t, a, "b-1"), lend(t, a, "shared")}
	token, _ := w.token("bob")
	cursor := call(t, a, "list_credentials", args{"limit": 2}).get("next_cursor")
	if cursor == "" {
		t.Fatal("alice got no cursor")
	}
	names := func(got answer) (list []string) {
		all, _ := got.body["credentials"].([]any)
		for _, one := range all {
			name, _ := one.(map[string]any)["name"].(string)
			list = append(list, name)
		}
		return list
	}
	for road, b := range doors(w, s.addr, token) {
		looks := func(got answer) answer {
			t.Helper()
			for _, id := range hers {
				if strings.Contains(got.raw, id) {
					t.Errorf("%s: alice's lease is shown: %s", road, got.raw)
				}
			}
			for _, name := range names(got) {
				if !strings.HasPrefix(name, "b-") && name != "shared" {
					t.Errorf("%s: %s is shown", road, name)
				}
			}
			return got
		}
		for _, ask := range []args{{}, {"limit": 0}, {"limit": 200}, {"match": "*"}, {"match": "a-*"}, {"match": "?-?"}, {"type": "generic-secret"}, {"metadata": args{"team": "*"}}} {
			if got := looks(call(t, b, "list_credentials", ask)); got.refused {
				t.Errorf("%s: %v: %s", road, ask, got.raw)
			}
		}
		for _, limit := range []any{-1, 201, 1e9, 1 << 40, 1e300, -9e18, 0.5, "200", nil, []int{1}} {
			wantCode(t, b, "invalid_argument", "list_credentials", args{"limit": limit})
		}
		if got := names(call(t, b, "list_credentials", args{"limit": 0})); fmt.Sprint(got) != "[b-1 b-2 b-3 shared]" {
			t.Errorf("%s: a limit of 0 gives %v", road, got)
		}
		first := looks(call(t, b, "list_credentials", args{"limit": 1}))
		own := first.get("next_cursor")
		next := looks(call(t, b, "list_credentials", args{"limit": 1, "cursor": own}))
		if fmt.Sprint(names(first), names(next)) != "[b-1] [b-2]" {
			t.Errorf("%s: two pages: %v, %v", road, names(first), names(next))
		}
		raw, err := base64.RawURLEncoding.DecodeString(own)
		w.must(err)
		made := base64.RawURLEncoding.EncodeToString([]byte(string(raw[:len(raw)-3]) + "a-0"))
		for _, foreign := range []string{cursor, made, own + "A", own[:len(own)-1], "x", "*", strings.Repeat("A", 60_000)} {
			wantCode(t, b, "invalid_argument", "list_credentials", args{"cursor": foreign})
		}
	}
}

// TestA6DenyBeatsAllow: a deny holds for every verb — list, lease, renew — wherever it stands in the file, and however
// its patterns are written; giving back is still allowed. What it does not name is not touched.
func TestA6DenyBeatsAllow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.seed(secretOf("pay-live", "metadata: {env: live}"), secretOf("dev", "metadata: {env: dev}"))
	token, _ := w.token("bob")
	bob, alice := w.agentOf(spec{client: "c", env: []string{"KEYLEASE_TOKEN=" + token}}), w.agent("alice")
	allows := `  - {name: everybody, identities: ["*"], credentials: ["*"]}
  - {name: bob by name, identities: [bob], credentials: [pay-live]}
  - {name: by metadata, identities: ["*"], credentials: ["*"], metadata: {env: [live]}}
`
	for _, deny := range []string{`credentials: [pay-live]`, `credentials: ["pay-*"]`, `credentials: ["*-live"]`, `credentials: ["p?y-liv?"]`, `credentials: ["*a*-*l*"]`,
		`credentials: ["*"], metadata: {env: [live]}`, `credentials: [nothing, "pay*"], identities: ["*"]`, `credentials: ["pay-live*"], identities: ["b*", carol]`,
		`credentials: [pay-live], identities: ["?ob"]`} {
		rule := "  - {name: no, " + deny + ", effect: deny}\n"
		for where, rules := range map[string]string{"first": rule + allows, "last": allows + rule, "in between": strings.Replace(allows, "  - {name: by m", rule+"  - {name: by m", 1)} {
			w.policy(openPolicy)
			id := lend(t, bob, "pay-live")
			w.policy("version: 1\nlimits: {leaseRate: 0}\nrules:\n" + rules)
			wantCode(t, bob, "not_available", "lease_credential", args{"credential": "pay-live"})
			wantCode(t, bob, "not_available", "lease_credential", args{"lease_id": id})
			for _, ask := range []args{{}, {"match": "pay-live"}, {"match": "pay*"}, {"metadata": args{"env": "live"}}} {
				if got := call(t, bob, "list_credentials", ask); strings.Contains(got.raw, "pay-live") {
					t.Errorf("%s, %s: %v lists it: %s", deny, where, ask, got.raw)
				}
			}
			if got := call(t, bob, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
				t.Errorf("%s, %s: giving it back: %s", deny, where, got.raw)
			}
			lend(t, bob, "dev")
			if strings.Contains(deny, "identities: [\"b*") || strings.Contains(deny, "?ob") {
				lend(t, alice, "pay-live") // the rule is not about her
			} else {
				wantCode(t, alice, "not_available", "lease_credential", args{"credential": "pay-live"})
			}
		}
	}
}
