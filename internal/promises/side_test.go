//go:build linux

package promises

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"keylease/store"
)

// TestE1AWrongTokenTakesTheSameTime: over HTTP, a token that differs from a live one in its last character, a revoked
// one, and one of nobody are refused in the same words, and in times that can't be told apart: the medians of tries in
// turn differ by less than those times scatter by themselves. (internal/lease does 10^4 tries without the network.)
func TestE1AWrongTokenTakesTheSameTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("limits: {failureRate: 0}\n")
	s := w.serve()
	good, _ := w.token("alice")
	revoked, record := w.token("alice")
	w.ok("token", "revoke", record)
	kinds := []string{wrongLast(good), revoked, "kl_" + strings.Repeat("a", len(good)-3), wrongLast(revoked)}
	const rounds = 400
	took, said := make([][]time.Duration, len(kinds)), map[string]bool{}
	for round := range rounds {
		for i := range kinds {
			kind := (i + round) % len(kinds)
			start := time.Now()
			got, err := do("POST", "http://"+s.addr+"/mcp", toolBody("list_credentials", args{}), modernCall(kinds[kind], "list_credentials")...)
			took[kind] = append(took[kind], time.Since(start))
			w.must(err)
			got.header.Del("Date")
			said[fmt.Sprint(got.status, got.header, got.body)] = true
		}
	}
	if len(said) != 1 {
		t.Errorf("they are refused in %d ways: %v", len(said), said)
	}
	for kind := range kinds[1:] {
		a, b := quartiles(took[0]), quartiles(took[kind+1])
		if gap, noise := (a[1] - b[1]).Abs(), max(a[2]-a[0], b[2]-b[0]); gap > noise {
			t.Errorf("kind %d: the medians %s and %s are %s apart, beyond the scatter of %s", kind+1, a[1], b[1], gap, noise)
		}
	}
}

func quartiles(all []time.Duration) [3]time.Duration {
	slices.Sort(all)
	return [3]time.Duration{all[len(all)/4], all[len(all)/2], all[len(all)*3/4]}
}

// wrongLast is a token with another last character.
func wrongLast(token string) string {
	last := "a"
	if strings.HasSuffix(token, last) {
		last = "b"
	}
	return token[:len(token)-1] + last
}

// TestE2TokensAreKeptAsHashes: no file of keylease's has a token's text in any encoding, neither has the token's record
// when it is unsealed, and no token but the very one is taken, wherever it differs.
func TestE2TokensAreKeptAsHashes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("log: {level: debug}\n")
	s := w.serve()
	w.seed(secretOf("db", ""))
	first, record := w.token("alice")
	second, _ := w.token("bob")
	var rotated struct {
		Token string `json:"token"`
	}
	w.json(&rotated, "token", "rotate", record)
	tokens := []string{first, second, rotated.Token}
	lend(t, w.web(s.addr, second, true), "db")
	local := w.agentOf(spec{client: "c", env: []string{"KEYLEASE_TOKEN=" + rotated.Token}})
	lend(t, local, "db")
	for at := range len(second) {
		for _, other := range []string{"a", "b"} {
			near := second[:at] + other + second[at+1:]
			if near == second {
				continue
			}
			got, err := do("POST", "http://"+s.addr+"/mcp", toolBody("list_credentials", args{}), modernCall(near, "list_credentials")...)
			w.must(err)
			if got.status != 401 {
				t.Fatalf("another character at place %d, and HTTP %d", at, got.status)
			}
		}
	}
	wrong := w.agentOf(spec{client: "c", env: []string{"KEYLEASE_TOKEN=" + wrongLast(second)}})
	wantCode(t, wrong, "unauthenticated", "list_credentials", args{})
	wrong.leave() // or it starts another daemon
	local.leave()
	if shown := w.ok("token", "ls", "--json") + w.ok("audit", "--json") + s.log.String(); holdsToken([]byte(shown), tokens) {
		t.Error("a token is shown")
	}
	s.stop()
	for path, data := range tree(w, w.data(), w.config()) {
		if holdsToken(data, tokens) {
			t.Errorf("%s holds a token", path)
		}
	}
	log, _ := os.ReadFile(filepath.Join(w.data(), "daemon.log"))
	records := w.records(store.KindToken)
	if len(records) != 2 {
		t.Errorf("%d token records", len(records))
	}
	for _, plain := range append(records, log) {
		if holdsToken(plain, tokens) {
			t.Error("a token's record holds the token")
		}
	}
}

// holdsToken looks for the random part of each token, as text, as its bytes, and in the encodings that JSON gives those.
func holdsToken(data []byte, tokens []string) bool {
	for _, token := range tokens {
		body := strings.TrimPrefix(token, "kl_")
		raw, _ := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(body[:26]))
		numbers, _ := json.Marshal(func() (n []int) {
			for _, b := range []byte(token) {
				n = append(n, int(b))
			}
			return n
		}())
		for _, form := range [][]byte{[]byte(body[:26]), []byte(strings.ToUpper(body[:26])), raw, []byte(base64.StdEncoding.EncodeToString([]byte(token))[:32]),
			[]byte(base64.StdEncoding.EncodeToString([]byte(body))[:32]), fmt.Appendf(nil, "%x", body[:26]), bytes.Trim(numbers, "[]")} {
			if len(form) > 8 && bytes.Contains(data, form) {
				return true
			}
		}
	}
	return false
}

// TestE4OneAnswer: what is unknown, what is forbidden and what is somebody else's are one answer, byte for byte, for
// lease, renew and release, over every road (whose newest revision alone puts a few members of its own around it).
func TestE4OneAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(`version: 1
limits: {leaseRate: 0}
rules:
  - {name: alice, identities: [alice], credentials: [hers, both, admitted, revoked, removed]}
  - {name: bob, identities: [bob], credentials: [both, admitted, revoked, removed]}
  - {name: nobody, credentials: [denied], effect: deny}
`)
	s := w.serve()
	w.seed(secretOf("hers", ""), secretOf("both", ""), secretOf("denied", ""), secretOf("revoked", ""), secretOf("removed", ""),
		secretOf("admitted", "policy: {allowedIdentities: [{type: agent, name: alice}]}"))
	a := w.agent("alice")
	held := lend(t, a, "both")
	ended := lend(t, a, "hers")
	call(t, a, "release_lease", args{"lease_id": ended})
	revoked := lend(t, a, "revoked")
	w.ok("revoke", "revoked")
	w.ok("rm", "removed")
	token, _ := w.token("bob")
	roads := doors(w, s.addr, token)
	roads["declared"] = w.agent("bob")
	ids := []string{held, ended, revoked, held[:len(held)-1] + "a", "ls_" + strings.Repeat("a", 26), "ls_", "hers", "no such lease", strings.Repeat("x", 5000), held + " ", strings.ToUpper(held)}
	names := []string{"nothing", "hers", "denied", "admitted", "revoked", "removed", "No Name", "*", strings.Repeat("x", 5000), held}
	said := map[string]string{}
	for road, c := range roads {
		said := said
		if strings.HasPrefix(road, "modern") {
			said = map[string]string{}
			defer func() {
				if len(said) != 1 {
					t.Errorf("%s: there are %d answers: %v", road, len(said), said)
				}
			}()
		}
		ask := func(tool string, a args) {
			t.Helper()
			got := wantCode(t, c, "not_available", tool, a)
			said[got.raw] = fmt.Sprintf("%s, %s %.100v", road, tool, a)
		}
		for _, id := range ids {
			ask("release_lease", args{"lease_id": id})
			ask("lease_credential", args{"lease_id": id})
			ask("lease_credential", args{"lease_id": id, "ttl": "5m", "credential": "both"})
		}
		for _, name := range names {
			ask("lease_credential", args{"credential": name})
			ask("lease_credential", args{"credential": name, "ttl": "5m", "purpose": "work", "delivery": "value"})
		}
	}
	if len(said) != 1 {
		t.Errorf("there are %d answers:", len(said))
		for raw, to := range said {
			t.Errorf("%s\nto %s", raw, to)
		}
	}
}
