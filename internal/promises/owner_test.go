//go:build linux

package promises

import (
	"fmt"
	"strings"
	"testing"
)

// doors are the ways by which one token's agent reaches the tools.
func doors(w *world, addr, token string) map[string]caller {
	return map[string]caller{
		"stdio":       w.agentOf(spec{client: "test-client", env: []string{"KEYLEASE_TOKEN=" + token}}),
		"http":        w.web(addr, token, false),
		"modern http": w.web(addr, token, true),
		"sse":         w.sse(addr, token),
	}
}

// TestA1OthersLeaseIsNotAvailable: B can neither renew nor release A's lease by its id, on any road; each try is
// recorded as B's, and A's lease lives on.
func TestA1OthersLeaseIsNotAvailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	id := lend(t, a, "db")
	token, _ := w.token("bob")
	tries := 0
	for name, b := range doors(w, s.addr, token) {
		t.Run(name, func(t *testing.T) {
			wantCode(t, b, "not_available", "release_lease", args{"lease_id": id})
			wantCode(t, b, "not_available", "lease_credential", args{"lease_id": id})
			wantCode(t, b, "not_available", "lease_credential", args{"lease_id": id, "credential": "db", "delivery": "value"})
			tries += 3
		})
	}
	if _, live := w.leases()[id]; !live {
		t.Fatal("alice's lease did not survive bob")
	}
	if got := call(t, a, "lease_credential", args{"lease_id": id}); got.refused {
		t.Fatalf("alice can't renew her own lease: %s", got.raw)
	}
	found := denied(w.audit(), id)
	if len(found) != tries {
		t.Fatalf("%d refusals, %d in the trail", tries, len(found))
	}
	for _, e := range found {
		if e.Identity.Name != "bob" || e.Details["code"] != "not_available" {
			t.Fatalf("recorded as %+v", e)
		}
	}
}

// TestA2OneCodePath: every road refuses the same thing in the same bytes, so there is one place that decides; the
// admin's own road ends the lease, is recorded, and the holder is told how it ended.
func TestA2OneCodePath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	id := lend(t, a, "db")
	token, _ := w.token("bob")
	said := map[string][]string{}
	for name, b := range doors(w, s.addr, token) {
		got := wantCode(t, b, "not_available", "release_lease", args{"lease_id": id})
		said[fmt.Sprint(got.body)] = append(said[fmt.Sprint(got.body)], name)
	}
	if len(said) != 1 {
		t.Fatalf("the roads answer differently: %v", said)
	}
	w.ok("release", id)
	if got := call(t, a, "release_lease", args{"lease_id": id}); got.get("status") != "released" {
		t.Fatalf("after the admin's release: %s", got.raw)
	}
	wantCode(t, a, "lease_ended", "lease_credential", args{"lease_id": id})
	if len(find(w.audit(), "lease.released")) != 1 {
		t.Fatal("one lease, but not one lease.released")
	}
}

// TestA3AnIdIsWorthNothing: to B, an id of A's is what an id that never was is, word for word, over every verb.
func TestA3AnIdIsWorthNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	id := lend(t, w.agent("alice"), "db")
	b := w.agent("bob")
	strange := id[:len(id)-8] + "aaaaaaaa"
	for _, tool := range []string{"release_lease", "lease_credential"} {
		known := wantCode(t, b, "not_available", tool, args{"lease_id": id})
		unknown := wantCode(t, b, "not_available", tool, args{"lease_id": strange})
		if known.raw != unknown.raw {
			t.Errorf("%s tells bob that the lease exists:\n%s\n%s", tool, known.raw, unknown.raw)
		}
	}
	all := w.audit()
	if len(denied(all, id)) != 2 || len(denied(all, strange)) != 2 {
		t.Error("lease.denied is not there for each try")
	}
}

// TestA4SameNameOtherProof: a name that was proved in another way, or by another token record, is somebody else. The
// same record after its rotation is not.
func TestA4SameNameOtherProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	first, record := w.token("alice")
	second, _ := w.token("alice")
	id := lend(t, w.web(s.addr, first, true), "db")
	for name, other := range map[string]caller{"declared": w.agent("alice"), "another record": w.web(s.addr, second, true)} {
		got, err := other.try("release_lease", args{"lease_id": id})
		if err != nil || got.code() != "not_available" {
			t.Errorf("alice (%s): %v %s", name, err, got.raw)
		}
	}
	var rotated struct {
		Token string `json:"token"`
	}
	w.json(&rotated, "token", "rotate", record)
	if got := call(t, w.web(s.addr, rotated.Token, true), "release_lease", args{"lease_id": id}); got.get("status") != "released" {
		t.Errorf("the same record after its rotation: %s", got.raw)
	}
	if got, err := w.web(s.addr, first, true).try("list_credentials", args{}); err == nil {
		t.Errorf("the token's old text still works: %s", got.raw)
	}
}

// TestG5OnlyItsPrincipalSeesALease: in list_credentials and lease_limit, a caller finds its own leases and nobody
// else's.
func TestG5OnlyItsPrincipalSeesALease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", "policy: {maxLeases: 2}"))
	a, b := w.agent("alice"), w.agent("bob")
	hers, his := lend(t, a, "db"), lend(t, b, "db")
	token, _ := w.token("carol")
	all := doors(w, s.addr, token)
	all["alice"], all["bob"] = a, b
	own := map[string]string{"alice": hers, "bob": his}
	for name, c := range all {
		list := call(t, c, "list_credentials", args{})
		limit := wantCode(t, c, "lease_limit", "lease_credential", args{"credential": "db"})
		for _, id := range []string{hers, his} {
			if strings.Contains(list.raw, id) != (own[name] == id) || strings.Contains(limit.raw, id) != (own[name] == id) {
				t.Errorf("%s: whose is %s? %s\n%s", name, id, list.raw, limit.raw)
			}
		}
		if strings.Contains(list.raw, "alice") || strings.Contains(limit.raw, "alice") {
			t.Errorf("%s is told alice's name", name)
		}
	}
}

// TestG6NothingInARequestSaysWhoAsks: an identity in arguments is refused; in _meta, headers and clientInfo it changes
// nothing. (B1 says the same of tricks that other systems fell for.)
func TestG6NothingInARequestSaysWhoAsks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	id := lend(t, w.agent("alice"), "db")
	token, _ := w.token("mallory")
	for name, c := range doors(w, s.addr, token) {
		for _, field := range []string{"identity", "agent", "as", "principal", "_meta", "session"} {
			wantCode(t, c, "invalid_argument", "release_lease", args{"lease_id": id, field: "alice"})
			wantCode(t, c, "invalid_argument", "lease_credential", args{"credential": "db", field: args{"name": "alice"}})
			wantCode(t, c, "invalid_argument", "list_credentials", args{field: "alice"})
		}
		t.Logf("%s: refused", name)
	}
	local := w.agent("mallory")
	meta := args{"identity": "alice", "agent": "alice", "io.modelcontextprotocol/clientInfo": args{"name": "alice", "version": "1"}}
	r, err := local.ask(local.id(), "tools/call", args{"name": "release_lease", "arguments": args{"lease_id": id}, "_meta": meta})
	w.must(err)
	if got, err := r.tool(); err != nil || got.code() != "not_available" {
		t.Errorf("over stdio _meta turned mallory into alice: %v %s", err, got.raw)
	}
	c := w.web(s.addr, token, true)
	headers, err := c.headers("release_lease")
	w.must(err)
	headers = append(headers, "X-Identity", "alice", "X-Forwarded-User", "alice", "X-Remote-User", "alice", "X-Agent", "alice", "Forwarded", "for=alice")
	params := toolCall("release_lease", args{"lease_id": id}, spec{client: "alice", modern: true})
	params["_meta"].(args)["identity"] = "alice"
	_, reply, err := c.rpc("1", "tools/call", params, headers...)
	w.must(err)
	if got, err := reply.tool(); err != nil || got.code() != "not_available" {
		t.Errorf("over HTTP _meta or a header turned mallory into alice: %v %s", err, got.raw)
	}
	for _, e := range find(w.audit(), "lease.denied") {
		if e.Identity.Name != "mallory" {
			t.Errorf("recorded as %s's: %+v", e.Identity.Name, e)
		}
	}
	if _, live := w.leases()[id]; !live {
		t.Error("alice's lease is gone")
	}
}

// TestA10RemovedIsGone: deleting a credential, or revoking a token, ends its leases, and making it anew revives none.
func TestA10RemovedIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("kept", ""))
	a := w.agent("alice")
	token, record := w.token("bob")
	b := w.web(s.addr, token, true)
	hers, his := lend(t, a, "db"), lend(t, b, "kept")
	w.ok("rm", "db")
	w.ok("token", "revoke", record)
	if live := w.leases(); len(live) != 0 {
		t.Fatalf("still lent: %v", live)
	}
	if o := w.cliIn("fake-value-of-another", "put", "db", "--type", "generic-secret"); o.code != 0 {
		t.Fatal(o)
	}
	again, _ := w.token("bob")
	wantCode(t, a, "lease_ended", "lease_credential", args{"lease_id": hers})
	wantCode(t, w.web(s.addr, again, true), "not_available", "lease_credential", args{"lease_id": his})
	if got := call(t, a, "lease_credential", args{"credential": "db"}); got.get("value") != "fake-value-of-another" {
		t.Fatalf("the new db: %s", got.raw)
	}
	if b := w.books(); b.ended[hers] != "lease.revoked" || b.ended[his] != "lease.revoked" {
		t.Fatalf("in the trail: %v", b.ended)
	}
}

// TestA12AdminVerbsAreRefusedToAgents: a process that an MCP client started gets exit 4 for what changes anything and for
// what shows other people's business, also when it comes from the client itself.
func TestA12AdminVerbsAreRefusedToAgents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	// One shell is the client: it starts a relay, and once that has answered, a command of its own.
	const client = `mkfifo in; "$0" mcp --as eve <in >out & exec 5>in
		echo '{"jsonrpc":"2.0","id":1,"method":"ping"}' >&5; echo '{"jsonrpc":"2.0","id":2,"method":"tools/list"}' >&5
		until [ -s out ]; do sleep 0.02; done
		for verb in "ls" "leases" "audit" "token create --identity eve" "revoke-leases --all" "rm db"; do "$0" $verb; echo "exit $?"; done
		exec 5>&-; wait`
	o := w.shell(client)
	if strings.Count(o.out, "exit 4") != 6 || strings.Contains(o.out, "db") {
		t.Fatalf("a child of an MCP client may administer: %s", o)
	}
	w.agent("alice") // whose client, a shell too, is not this process
	w.ok("ls")
}
