//go:build linux

package promises

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// tokenRow is one token as keylease token ls --json prints it.
type tokenRow struct {
	ID         string     `json:"id"`
	LastUsedAt *time.Time `json:"last_used_at"`
	UsesLeft   *int       `json:"uses_left"`
}

func (w *world) tokenRow(id string) tokenRow {
	w.t.Helper()
	var out struct {
		Tokens []tokenRow `json:"tokens"`
	}
	w.json(&out, "token", "ls")
	for _, t := range out.Tokens {
		if t.ID == id {
			return t
		}
	}
	w.t.Fatalf("token ls does not show %s", id)
	return tokenRow{}
}

// rotated gives a token another text.
func (w *world) rotated(id string, more ...string) string {
	w.t.Helper()
	var out struct {
		Token string `json:"token"`
	}
	w.json(&out, append([]string{"token", "rotate", id}, more...)...)
	return out.Token
}

// offers are the rows of list_credentials by name.
func offers(t *testing.T, c caller) map[string]map[string]any {
	t.Helper()
	list, _ := call(t, c, "list_credentials", args{}).body["credentials"].([]any)
	byName := map[string]map[string]any{}
	for _, one := range list {
		row, _ := one.(map[string]any)
		name, _ := row["name"].(string)
		byName[name] = row
	}
	return byName
}

// span is how long a lease may last in all.
func span(t *testing.T, a answer) time.Duration {
	t.Helper()
	from, err := time.Parse(time.RFC3339Nano, a.get("issued_at"))
	if err != nil {
		t.Fatal(err)
	}
	to, err := time.Parse(time.RFC3339Nano, a.get("max_expires_at"))
	if err != nil {
		t.Fatal(err)
	}
	return to.Sub(from)
}

// TestANarrowedTokenDoesLess: what a token takes away from its identity is away for every verb, through every door,
// and after a rotation and a kill.
func TestANarrowedTokenDoesLess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("open-a", "policy: {maxLeaseTTL: 8h}"), secretOf("open-b", ""), secretOf("shut", ""))
	token, id := w.token("ci", "--credentials", "open-*,gone", "--credentials", "other-?", "--max-ttl", "2m")
	whole, _ := w.token("ci")
	theirs := lend(t, w.web(s.addr, whole, true), "shut")
	check := func(name string, c caller) {
		t.Helper()
		rows := offers(t, c)
		if len(rows) != 2 || rows["open-a"]["max_ttl"] != "2m" || rows["open-a"]["default_ttl"] != "2m" || rows["open-b"] == nil {
			t.Errorf("%s is offered %v", name, rows)
		}
		got := call(t, c, "lease_credential", args{"credential": "open-a", "ttl": "1h"})
		if got.get("ttl") != "2m" || got.body["ttl_capped"] != true || got.get("value") != valueOf("open-a") || span(t, got) != 2*time.Minute {
			t.Errorf("%s leases %s", name, got.raw)
		}
		renewed := call(t, c, "lease_credential", args{"lease_id": got.lease(), "ttl": "8h"})
		if span(t, renewed) != 2*time.Minute || renewed.get("expires_at") > renewed.get("max_expires_at") {
			t.Errorf("%s renews %s", name, renewed.raw)
		}
		shut := wantCode(t, c, "not_available", "lease_credential", args{"credential": "shut"})
		if none := wantCode(t, c, "not_available", "lease_credential", args{"credential": "no-such"}); none.raw != shut.raw {
			t.Errorf("%s can tell what is shut from what is not there:\n%s\n%s", name, shut.raw, none.raw)
		}
		wantCode(t, c, "not_available", "lease_credential", args{"lease_id": theirs})
		wantCode(t, c, "not_available", "release_lease", args{"lease_id": theirs})
		if back := call(t, c, "release_lease", args{"lease_id": got.lease()}); back.get("status") != "released" {
			t.Errorf("%s gives back: %s", name, back.raw)
		}
	}
	for name, c := range doors(w, s.addr, token) {
		check(name, c)
	}
	token = w.rotated(id)
	s.kill()
	s = w.serve("--http", s.addr)
	check("rotated and killed", w.web(s.addr, token, true))
	if got := w.ok("policy", "explain", "--token", id, "--credential", "shut"); !strings.HasPrefix(got, "no: ") {
		t.Error(got)
	}
	for _, bad := range [][]string{{"--credentials", ""}, {"--credentials", "open-*,"}, {"--credentials", "[ab]"}, {"--max-ttl", ""}, {"--max-ttl", "0s"}, {"--uses", "0"}, {"--uses", "-1"}} {
		w.refused(2, append([]string{"token", "create", "--identity", "ci"}, bad...)...)
	}
}

// TestUsesAreExact: a token for twenty leases opens twenty, whatever rush there is and however often the daemon is
// killed; renewing costs none.
func TestUsesAreExact(t *testing.T) {
	t.Parallel()
	const uses = 20
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, id := w.token("ci", "--uses", fmt.Sprint(uses))
	var granted atomic.Int32
	var killed atomic.Bool
	rush := func(killAt int32) {
		t.Helper()
		together(t, 64, func(int) error {
			got, err := w.web(s.addr, token, true).try("lease_credential", args{"credential": "db"})
			switch {
			case err != nil && killed.Load(): // nobody can know
			case err != nil:
				return err
			case got.code() == "lease_limit" && got.body["error"].(map[string]any)["retry_after"] == nil:
			case got.refused:
				return fmt.Errorf("%s", got.raw)
			default:
				if granted.Add(1) == killAt {
					killed.Store(true)
					_ = s.Process.Kill()
				}
			}
			return nil
		})
	}
	rush(8)
	<-s.exited
	s = w.serve("--http", s.addr)
	killed.Store(false)
	rush(-1)
	made := find(w.audit(), "lease.created")
	if len(made) != uses || granted.Load() > uses {
		t.Errorf("%d leases made, %d answered, of %d", len(made), granted.Load(), uses)
	}
	s.kill()
	s = w.serve("--http", s.addr)
	c := w.web(s.addr, token, true)
	spent := wantCode(t, c, "lease_limit", "lease_credential", args{"credential": "db"})
	if len(spent.yours()) != uses || !strings.Contains(spent.raw, "ask the operator for another token") {
		t.Errorf("spent: %s", spent.raw)
	}
	if got := call(t, c, "lease_credential", args{"lease_id": made[0].LeaseID}); got.refused {
		t.Errorf("a renewal: %s", got.raw)
	}
	if left := w.tokenRow(id).UsesLeft; left == nil || *left != 0 {
		t.Errorf("uses left: %v", left)
	}
	if got := w.ok("token", "ls"); !strings.Contains(got, "0 of 20 leases left") {
		t.Error(got)
	}
}

// TestA4TheSameRecordAfterItsRotation: while a rotation overlaps, both texts are the one principal; a second rotation,
// or the end of the overlap, leaves the newer.
func TestA4TheSameRecordAfterItsRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	first, id := w.token("alice")
	one, two := lend(t, w.web(s.addr, first, true), "db"), lend(t, w.web(s.addr, first, true), "db")
	local := w.agentOf(spec{client: "test-client", env: []string{"KEYLEASE_TOKEN=" + first}})
	if w.tokenRow(id).LastUsedAt == nil {
		t.Error("it was used, and token ls does not say so")
	}
	second := w.rotated(id, "--overlap", "1h")
	s.kill()
	s = w.serve("--http", s.addr)
	for name, token := range map[string]string{"old": first, "new": second} {
		if got := call(t, w.web(s.addr, token, true), "lease_credential", args{"lease_id": one}); got.refused {
			t.Errorf("the %s text can't renew: %s", name, got.raw)
		}
	}
	if got := call(t, local, "release_lease", args{"lease_id": two}); got.get("status") != "released" {
		t.Errorf("the old text can't release: %s", got.raw)
	}
	if got := call(t, w.web(s.addr, second, true), "release_lease", args{"lease_id": one}); got.get("status") != "released" {
		t.Errorf("the new text can't release: %s", got.raw)
	}
	dead := func(name, token string) {
		t.Helper()
		if got, err := w.web(s.addr, token, true).try("list_credentials", args{}); err == nil {
			t.Errorf("the %s text still works: %s", name, got.raw)
		}
	}
	third := w.rotated(id, "--overlap", "1s")
	dead("first", first)
	wantCode(t, local, "unauthenticated", "list_credentials", args{}) // on a connection that it opened, too
	time.Sleep(time.Second)
	dead("second", second)
	call(t, w.web(s.addr, third, true), "list_credentials", args{})
	fourth := w.rotated(id)
	dead("third", third)
	w.ok("token", "revoke", id)
	dead("fourth", fourth)
	for _, text := range []string{first, second, third, fourth} {
		if strings.Contains(w.ok("audit"), text) {
			t.Error("a token's text is in the trail")
		}
	}
}

// TestAnIdentityIsCutOffAtOnce: a thousand leases end with one Entry. From that Entry on none of them is renewed, though
// many try; none is live again when the daemon is killed on the answer; each gets its own terminal Entry in the end, once.
// What is leased afterwards lives.
func TestAnIdentityIsCutOffAtOnce(t *testing.T) {
	t.Parallel()
	const many = 1000
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", fmt.Sprintf("policy: {maxLeases: %d}", many+1)))
	token, _ := w.token("alice")
	other, _ := w.token("bob")
	c := w.web(s.addr, token, true)
	ids := make([]string, many)
	together(t, 20, func(g int) error {
		for i := g; i < many; i += 20 {
			got, err := c.try("lease_credential", args{"credential": "db", "ttl": "10m"})
			if err != nil || got.refused {
				return fmt.Errorf("%w %s", err, got.raw)
			}
			ids[i] = got.lease()
		}
		return nil
	})
	his := lend(t, w.web(s.addr, other, true), "db")
	if got := w.ok("revoke-leases", "--identity", "alice", "--type", "human"); got != "revoked 0 leases\n" {
		t.Error(got)
	}
	var renewed atomic.Int32
	stormed := make(chan struct{})
	go func() { // until the daemon is killed
		defer close(stormed)
		together(t, 8, func(g int) error {
			for i := g; ; i += 8 {
				got, err := c.try("lease_credential", args{"lease_id": ids[i%many]})
				switch {
				case err != nil:
					return nil
				case !got.refused:
					renewed.Add(1)
				case got.code() != "lease_ended":
					return fmt.Errorf("%s", got.raw)
				}
			}
		})
	}()
	w.eventually("renewals come in", func() error {
		if renewed.Load() < 20 {
			return fmt.Errorf("%d", renewed.Load())
		}
		return nil
	})
	said := w.ok("revoke-leases", "--identity", "alice")
	s.kill() // before the sweeper has written down what is over
	<-stormed
	if said != fmt.Sprintf("revoked %d leases\n", many) {
		t.Error(said)
	}
	w.serve("--http", s.addr)
	if live := w.leases(); len(live) != 1 || live[his].LeaseID == "" {
		t.Errorf("%d leases live after the kill", len(live))
	}
	wantCode(t, c, "lease_ended", "lease_credential", args{"lease_id": ids[0]})
	if got := call(t, c, "release_lease", args{"lease_id": ids[1]}); got.get("status") != "revoked" {
		t.Errorf("released after the cut: %s", got.raw)
	}
	after := lend(t, c, "db") // there is room again
	w.eventually("each lease has its terminal Entry", func() error {
		books := w.books() // which fails where one has two
		if books.mostLive["db"] > many+1 {
			t.Errorf("%d leases at a time", books.mostLive["db"])
		}
		if len(books.live) != 2 || len(books.ended) != many {
			return fmt.Errorf("%d live, %d ended", len(books.live), len(books.ended))
		}
		return nil
	})
	if live := w.leases(); len(live) != 2 || live[after].LeaseID == "" {
		t.Errorf("%d leases live", len(live))
	}
	all := w.audit()
	cuts := find(all, "identity.leases_ended")
	if len(cuts) != 1 || cuts[0].Details["leases"] != fmt.Sprint(many) {
		t.Fatalf("%+v", cuts)
	}
	for _, e := range find(all, "lease.renewed") {
		if e.Seq > cuts[0].Seq {
			t.Errorf("entry %d renews %s, which had ended with entry %d", e.Seq, e.LeaseID, cuts[0].Seq)
			break
		}
	}
	w.verified()
}

// TestFreezeLendsNothing: once freeze is acknowledged nothing is leased, renewed or handed out through any door, also
// after a kill -9; listing and releasing go on, and thaw ends it.
func TestFreezeLendsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("ci")
	var frozen, over atomic.Bool
	var lent atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		together(t, 8, func(int) error {
			c := w.web(s.addr, token, true)
			for !over.Load() {
				late := frozen.Load()
				got, err := c.try("lease_credential", args{"credential": "db"})
				switch {
				case err != nil:
					return err
				case !got.refused && late:
					return fmt.Errorf("lent after the freeze was acknowledged: %s", got.lease())
				case !got.refused:
					lent.Add(1)
				case got.get("error", "reason") != "frozen":
					return fmt.Errorf("%s", got.raw)
				}
			}
			return nil
		})
	}()
	w.eventually("the rush has begun", func() error {
		if lent.Load() < 20 {
			return fmt.Errorf("%d lent", lent.Load())
		}
		return nil
	})
	w.ok("freeze", "--reason", "laptop stolen")
	frozen.Store(true)
	all := doors(w, s.addr, token)
	over.Store(true)
	<-done
	ids := []string{}
	for id := range w.leases() {
		ids = append(ids, id)
	}
	check := func() {
		t.Helper()
		for name, c := range all {
			for _, a := range []args{{"credential": "db"}, {"credential": "no-such"}, {"lease_id": ids[0]}} {
				got := wantCode(t, c, "unavailable", "lease_credential", a)
				if got.get("error", "reason") != "frozen" || strings.Contains(got.raw, "laptop") || strings.Contains(got.raw, valueOf("db")) {
					t.Errorf("%s: %s", name, got.raw)
				}
			}
			if len(offers(t, c)) != 1 {
				t.Errorf("%s: no list", name)
			}
			if got := call(t, c, "release_lease", args{"lease_id": ids[len(ids)-1]}); got.get("status") != "released" {
				t.Errorf("%s: %s", name, got.raw)
			}
		}
		ready, err := do("GET", "http://"+s.addr+"/readyz", "")
		if err != nil || ready.status != 200 || !strings.Contains(ready.body, `"lending":"frozen"`) || strings.Contains(ready.body, "laptop") {
			t.Errorf("readyz: %v %+v", err, ready)
		}
		if o := w.cli("leases"); !strings.Contains(o.err, "laptop stolen") {
			t.Errorf("leases does not say it: %s", o)
		}
	}
	check()
	s.kill()
	s = w.serve("--http", s.addr)
	all = doors(w, s.addr, token)
	if !strings.Contains(s.log.String(), "FROZEN: lending is frozen since") {
		t.Errorf("serve does not say it: %s", s.log)
	}
	check()
	w.ok("freeze", "--reason", "again")
	trail := w.audit()
	stop := find(trail, "server.frozen")
	if len(stop) != 1 {
		t.Fatalf("%+v", stop)
	}
	for _, e := range trail {
		if (e.Event == "lease.created" || e.Event == "lease.renewed") && e.Seq > stop[0].Seq {
			t.Errorf("entry %d (%s) after the freeze", e.Seq, e.Event)
		}
	}
	w.ok("thaw")
	for _, c := range all {
		lend(t, c, "db")
	}
	if got := w.ok("thaw"); got != "lending was not frozen\n" {
		t.Error(got)
	}
}

// TestDeclaredNamesCanBeRefused: with identities: {declared: deny} a name that nothing proves gets nothing; a token's
// holder gets what it is allowed, by the same socket.
func TestDeclaredNamesCanBeRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("alice")
	w.seed(secretOf("db", ""))
	id := lend(t, a, "db")
	token, _ := w.token("alice")
	w.configure("identities: {declared: deny}\n")
	w.stopDaemon() // the relay starts the next one at once
	w.ok("ls")     // the operator is no agent
	proven := w.agentOf(spec{client: "test-client", env: []string{"KEYLEASE_TOKEN=" + token}})
	lend(t, proven, "db")
	for tool, with := range map[string][]args{"list_credentials": {{}}, "release_lease": {{"lease_id": id}}, "lease_credential": {{"credential": "db"}, {"lease_id": id}}} {
		for _, one := range with {
			var got answer
			w.eventually("the relay is back", func() (err error) { got, err = a.try(tool, one); return err })
			if got.code() != "unauthenticated" || !strings.Contains(got.raw, "KEYLEASE_TOKEN") || strings.Contains(got.raw, "fake-value") {
				t.Errorf("%s: %s", tool, got.raw)
			}
		}
	}
	var said struct {
		Allow bool `json:"allow"`
	}
	if err := json.Unmarshal([]byte(w.ok("policy", "explain", "--identity", "alice", "--credential", "db", "--json")), &said); err != nil || said.Allow {
		t.Errorf("policy explain: %v %v", said, err)
	}
}
