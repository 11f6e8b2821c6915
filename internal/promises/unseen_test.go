//go:build linux

package promises

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestD4TheValueStandsInValueResultsAlone: over every road the value stands in exactly one field, value, of each of the
// two copies of a result by value. It is in no list, no renewal, no result by exec or proxy, no refusal and no
// description, in no spelling. What each caller is offered comes least exposing first, and is what it gets.
func TestD4TheValueStandsInValueResultsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	value := "fake-canary-d4-" + strings.Repeat("x", 20)
	w.seed(fmt.Sprintf(`name: hosted, type: api-key, value: %s, upstream: {service: openai}`, value),
		fmt.Sprintf(`name: bare, type: api-key, value: %s`, value),
		fmt.Sprintf(`name: shown, type: api-key, value: %s, policy: {delivery: [value]}`, value))
	token, _ := w.token("bob")
	roads := doors(w, s.addr, token)
	roads["declared"] = w.agent("alice")
	spellings := []string{value, base64.StdEncoding.EncodeToString([]byte(value)), hex.EncodeToString([]byte(value))}
	stands := func(text string) (n int) {
		for _, spelling := range spellings {
			n += strings.Count(text, spelling)
		}
		return n
	}
	for road, c := range roads {
		local := road == "stdio" || road == "declared"
		open := map[string]string{"hosted": "[proxy value]", "bare": "[value]", "shown": "[value]"}
		if local {
			open = map[string]string{"hosted": "[proxy exec value]", "bare": "[exec value]", "shown": "[value]"}
		}
		list := call(t, c, "list_credentials", args{})
		if stands(list.raw) != 0 {
			t.Errorf("%s: a list holds the value", road)
		}
		offers, _ := list.body["credentials"].([]any)
		for _, one := range offers {
			offer, _ := one.(map[string]any)
			name, _ := offer["name"].(string)
			ways, _ := offer["deliveries"].([]any)
			if fmt.Sprint(ways) != open[name] {
				t.Errorf("%s: %s can be had by %v, want %s", road, name, ways, open[name])
			}
			for _, way := range []string{"proxy", "exec", "value"} {
				got := call(t, c, "lease_credential", args{"credential": name, "delivery": way, "purpose": "test"})
				if !slices.Contains(ways, any(way)) {
					if got.code() != "delivery_unavailable" || stands(got.raw) != 0 {
						t.Errorf("%s: %s by %s: %s", road, name, way, got.raw)
					}
					continue
				}
				_, has := got.body["value"]
				if want := map[string]int{"value": 2}[way]; got.refused || got.get("delivery") != way || stands(got.raw) != want || has != (want > 0) || has && got.get("value") != value {
					t.Errorf("%s: %s by %s: the value stands %d times, want %d: %s", road, name, way, stands(got.raw), want, got.raw)
				}
				again := call(t, c, "lease_credential", args{"lease_id": got.lease()})
				if again.refused || stands(again.raw) != 0 || way != "value" && strings.Contains(again.get("hint"), "value") {
					t.Errorf("%s: %s by %s, renewed: %s", road, name, way, again.raw)
				}
				if handle := got.get("use", "api_key"); way == "proxy" && (handle == "" || strings.Contains(again.raw, handle)) {
					t.Errorf("%s: a renewal gives the handle once more, or there was none: %s", road, again.raw)
				}
				if back := call(t, c, "release_lease", args{"lease_id": got.lease()}); back.refused || stands(back.raw) != 0 {
					t.Errorf("%s: %s", road, back.raw)
				}
			}
		}
	}
}

// TestHelpersAreRefusedWhenTheLeaseIs: what git and the AWS tools ask is asked of the policy of now; each answer is an
// Entry before it is given, and a refusal shows nothing.
func TestHelpersAreRefusedWhenTheLeaseIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.serve("--http", "off")
	w.seed(`name: forge, type: api-key, value: fake-forge-key, metadata: {host: git.example.com}`,
		`name: cloud, type: api-key, value: fake-cloud-key, metadata: {accessKeyId: FAKE}`)
	git := func() outcome {
		return w.cliIn("protocol=https\nhost=git.example.com\n\n", "helper", "git", "--credential", "forge", "--as", "coder", "get")
	}
	aws := func() outcome {
		cmd := exec.Command(w.bin, "helper", "aws", "--credential", "cloud", "--as", "coder")
		return w.run(cmd, "")
	}
	uses := func() int {
		return strings.Count(w.ok("audit", "--event", "lease.used", "--json"), `"phase":"begun"`)
	}
	given := func(o outcome, value string) bool { return o.code == 0 && strings.Contains(o.out, value) }
	if g, a := git(), aws(); !given(g, "password=fake-forge-key\n") || !given(a, `"SecretAccessKey":"fake-cloud-key"`) || uses() != 2 {
		t.Fatalf("%s%s%d uses", g, a, uses())
	}
	for why, change := range map[string]struct{ off, on func() }{
		"frozen":         {func() { w.ok("freeze") }, func() { w.ok("thaw") }},
		"denied":         {func() { w.policy(openPolicy + "  - {name: no, credentials: [\"*\"], effect: deny}\n") }, func() { w.policy(openPolicy) }},
		"by value alone": {func() { w.policy(openPolicy + "    delivery: [value]\n") }, func() { w.policy(openPolicy) }},
	} {
		change.off()
		for _, o := range []outcome{git(), aws()} {
			if o.code == 0 || strings.Contains(o.out+o.err, "fake-") || o.err == "" || o.out != "" && o.out != "quit=1\n" {
				t.Errorf("%s: %s", why, o)
			}
		}
		change.on()
	}
	w.ok("revoke-leases", "--all")
	if n := uses(); n != 2 {
		t.Errorf("%d uses are written down, and 2 were answered", n)
	}
	if g := git(); !given(g, "password=fake-forge-key\n") { // a new lease: nothing forbids it
		t.Error(g)
	}
	w.ok("revoke", "forge")
	if g := git(); g.code == 0 || strings.Contains(g.out+g.err, "fake-") {
		t.Errorf("revoked: %s", g)
	}
}
