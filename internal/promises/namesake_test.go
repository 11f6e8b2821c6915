//go:build linux

package promises

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// nameTricks make names that some system expands, decodes, folds, cuts or walks. %s is a name that is there.
var nameTricks = []string{"*", "?", "%s*", "*%s", "?%s", "[a-z]*", "[a-z]%s", "{%s,x}", "(%s)", "^%s$", "%%2f%s", "%s%%00", "%s%%2e", "%%64b", "%s\x00", "\x00%s", "%s\x00x",
	"%s ", " %s", "\t%s", "%s\n", "%s\r", "%s\u00a0", "\u202e%s", "%s\u202c", "%s\u200b", "\ufeff%s", "\uff44\uff42", "%s\u0301", "\u2024%s", "\u00ad%s", "%s|x", "%s;x", "%s,x",
	"$%s", "~%s", "%s#1", "'%s'", "\"%s\"", "`%s`", "$(%s)", "%s\\", "\\%s"}

// pathTricks make names that would lead elsewhere if they were paths.
var pathTricks = []string{"../%s", "/%s", "//%s", "%s/", "%s/.", "./%s", "x//%s", "a/./%s", "a/../%s", "../credentials/%s", "..", ".", "%s/../%s", "..%%2f%s", "..\\%s", "%s/rotate", "-%s", ".%s"}

func tricked(tricks []string, name string) (all []string) {
	for _, trick := range tricks {
		all = append(all, strings.NewReplacer("%s", name, "%%", "%").Replace(trick))
	}
	return all
}

// operator asks the admin API over the socket, as keylease commands do, on one connection.
func (w *world) operator() func(method, path string, body any) (status int, text string) {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		conn, err := net.Dial("unix", w.socket())
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(conn, `{"keylease":1,"kind":"admin"}`)
		r := bufio.NewReader(conn)
		_, err = r.ReadString('\n')
		return buffered{conn, r}, err
	}}
	w.t.Cleanup(transport.CloseIdleConnections)
	ask := http.Client{Timeout: patience, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func(method, path string, body any) (int, string) {
		w.t.Helper()
		r, err := http.NewRequest(method, "http://keylease"+path, strings.NewReader(jsonLine(body)))
		w.must(err)
		got, err := ask.Do(r)
		w.must(err)
		defer got.Body.Close()
		all, err := io.ReadAll(got.Body)
		w.must(err)
		return got.StatusCode, string(all)
	}
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// namesakes is a world in which alice holds a lease on db, and another of her names leads nowhere.
func namesakes(t *testing.T) (w *world, alice, bob *agent, unharmed func(after string)) {
	t.Helper()
	w = newWorld(t)
	w.policy(`version: 1
limits: {leaseRate: 0}
rules:
  - {name: alice, identities: [alice, root], credentials: [db], metadata: {team: [blue]}}
  - {name: bob, identities: [bob], credentials: [other]}
`)
	w.seed(secretOf("db", "metadata: {team: blue}"), secretOf("other", "metadata: {team: \"*\"}"))
	alice, bob = w.agent("alice"), w.agent("bob")
	id := lend(t, alice, "db")
	_, record := w.token("carol")
	entries := len(w.audit())
	return w, alice, bob, func(after string) {
		t.Helper()
		for _, e := range w.audit()[entries:] {
			if e.Event != "lease.denied" {
				t.Errorf("after %s there is %+v", after, e)
			}
			entries++
		}
		if live := w.leases(); len(live) != 1 || live[id].LeaseID == "" {
			t.Errorf("after %s these are live: %v", after, live)
		}
		if tokens := w.ok("token", "ls"); !strings.Contains(tokens, record) || strings.Count(tokens, "active") != 1 {
			t.Errorf("after %s the tokens are %s", after, tokens)
		}
	}
}

// TestA7NamesAreNeverPatterns: identity and credential names with * ? [ { %2f NUL, bidi, full-width and other tricks in
// them are refused where they would come in, and find nothing where they only ask. Nothing that a requester controls is
// ever expanded, save match of list_credentials.
func TestA7NamesAreNeverPatterns(t *testing.T) {
	t.Parallel()
	w, alice, bob, unharmed := namesakes(t)
	admin := w.operator()
	for _, name := range tricked(nameTricks, "db") {
		if code, text := admin("POST", "/v1/credentials", args{"name": name, "type": "generic-secret", "value": "ZmFrZQ=="}); code != 400 {
			t.Errorf("put %q: HTTP %d %s", name, code, text)
		}
		if code, text := admin("POST", "/v1/seed", args{"items": []args{{"name": name, "type": "generic-secret", "value": "ZmFrZQ==", "has_value": true}}}); code != 400 {
			t.Errorf("seed %q: HTTP %d %s", name, code, text)
		}
		findsNothing(w, admin, name)
		for _, c := range []caller{alice, bob} {
			wantCode(t, c, "not_available", "lease_credential", args{"credential": name})
			wantCode(t, c, "not_available", "lease_credential", args{"lease_id": name})
			wantCode(t, c, "not_available", "release_lease", args{"lease_id": name})
			for _, ask := range []args{{"type": name}, {"metadata": args{"team": name}}, {"metadata": args{strings.Trim(name, "\x00\t\r\n"): "blue"}}} {
				got, err := c.try("list_credentials", ask)
				if err != nil && !strings.Contains(name, "\x00") { // a NUL in a member's name gets no further than the parser
					t.Fatal(err)
				}
				if name == "*" && c == caller(bob) && jsonLine(ask) == `{"metadata":{"team":"*"}}` {
					continue // that is what his credential has, to the letter
				}
				if err == nil && fmt.Sprint(got.body["credentials"]) != "[]" {
					t.Errorf("list_credentials expands %v: %s", ask, got.raw)
				}
			}
		}
	}
	unharmed("tricks with credentials' names")
	for _, name := range tricked(nameTricks, "alice") {
		if code, text := admin("POST", "/v1/tokens", args{"type": "agent", "identity": name}); code != 400 {
			t.Errorf("a token for %q: HTTP %d %s", name, code, text)
		}
		if got := w.hello(`{"keylease":1,"kind":"mcp","as":` + jsonLine(name) + `}`); !strings.Contains(got, `"ok":false`) {
			t.Errorf("a hello as %q: %s", name, got)
		}
		findsNothing(w, admin, name)
		if code, text := admin("POST", "/v1/policy/explain", args{"type": "agent", "identity": name, "proof": "token", "credential": "db"}); code == 200 && strings.Contains(text, `"allow":true`) {
			t.Errorf("the policy takes %q for alice: %s", name, text)
		}
	}
	unharmed("tricks with identities' names")
	for _, verb := range [][]string{{"rm", "*"}, {"revoke", "d?"}, {"release", "ls_*"}, {"token", "revoke", "tk_*"}, {"revoke-leases", "--identity", "a*"}, {"put", "d*"},
		{"token", "create", "--identity", "al*"}, {"mcp", "--as", "a*"}} { // and a few of them from the terminal
		if o := w.cliIn("fake-value", verb...); o.code == 0 && !strings.Contains(o.out, "revoked 0") {
			t.Errorf("%v: %s", verb, o)
		}
	}
	unharmed("a few from the terminal")
	if got := call(t, alice, "list_credentials", args{"match": "d*"}); !strings.Contains(got.raw, `"name":"db"`) {
		t.Errorf("match alone is a pattern: %s", got.raw)
	}
}

// findsNothing asks every verb that takes the name of something that has to be there.
func findsNothing(w *world, admin func(method, path string, body any) (int, string), name string) {
	w.t.Helper()
	for _, ask := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/v1/credentials/%s", nil}, {"DELETE", "/v1/credentials/%s", nil}, {"POST", "/v1/credentials/%s/revoke", nil},
		{"POST", "/v1/credentials/%s/rotate", args{"value": "ZmFrZQ=="}}, {"DELETE", "/v1/leases/%s", nil},
		{"POST", "/v1/tokens/%s/rotate", nil}, {"POST", "/v1/tokens/%s/revoke", nil},
	} {
		path := strings.ReplaceAll(ask.path, "%s", url.PathEscape(name))
		if code, text := admin(ask.method, path, ask.body); code < 300 || strings.Contains(text, `"metadata"`) {
			w.t.Errorf("%s %s: HTTP %d %s", ask.method, path, code, text)
		}
	}
	for _, filter := range []args{{"identity": name}, {"credential": name}} {
		if code, text := admin("POST", "/v1/leases/revoke", filter); code != 400 && !strings.Contains(text, `"revoked":0`) {
			w.t.Errorf("revoke-leases of %v: HTTP %d %s", filter, code, text)
		}
	}
}

// TestA8AlmostTheSameName: a name that differs from another in case, in white space or in a dot is another name, or none:
// it matches no rule that is about that other, owns none of its leases, and stands for none of its credentials.
func TestA8AlmostTheSameName(t *testing.T) {
	t.Parallel()
	w, _, _, _ := namesakes(t)
	admin := w.operator()
	root := w.agent("root")
	id := lend(t, root, "db")
	call(t, root, "release_lease", args{"lease_id": id})
	id = lend(t, root, "db")
	for _, name := range []string{"ROOT", "Root", "rooT", " root", "root ", "Root\t", "\troot", "root\n", "root\x00", "ｒｏｏｔ", "roοt", "root.", "root-", "root_", "root/", "root:", "root@", "0root", "roo", "r00t"} {
		code, text := admin("POST", "/v1/tokens", args{"type": "agent", "identity": name})
		answer := w.hello(`{"keylease":1,"kind":"mcp","as":` + jsonLine(name) + `}`)
		legal := strings.Contains(answer, `"ok":true`)
		if legal != (code == 200) || legal != (strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._@+:/-") == "") {
			t.Errorf("%q: the hello is answered %s, the token HTTP %d %s", name, answer, code, text)
		}
		if !legal {
			continue
		}
		namesake := w.agent(name)
		wantCode(t, namesake, "not_available", "lease_credential", args{"credential": "db"})
		wantCode(t, namesake, "not_available", "lease_credential", args{"lease_id": id})
		wantCode(t, namesake, "not_available", "release_lease", args{"lease_id": id})
		if got := call(t, namesake, "list_credentials", args{}); !strings.Contains(got.raw, `"credentials":[]`) {
			t.Errorf("%q may lease: %s", name, got.raw)
		}
	}
	for _, name := range []string{"DB", "Db", "dB", " db", "db ", "Db\t", "db.", "db-", "db_", "ｄｂ", "db\n", "d", "dbb"} {
		wantCode(t, root, "not_available", "lease_credential", args{"credential": name})
		if code, text := admin("GET", "/v1/credentials/"+url.PathEscape(name), nil); code < 300 {
			t.Errorf("%q stands for a credential: %s", name, text)
		}
	}
	if _, live := w.leases()[id]; !live {
		t.Error("root's lease is gone")
	}
}

// TestA9ANameIsNotAPath: a name with slashes and dots in it never reaches another record, by no verb, and nothing can be
// stored under one.
func TestA9ANameIsNotAPath(t *testing.T) {
	t.Parallel()
	w, alice, bob, unharmed := namesakes(t)
	admin := w.operator()
	for _, name := range tricked(pathTricks, "db") {
		if code, text := admin("POST", "/v1/credentials", args{"name": name, "type": "generic-secret", "value": "ZmFrZQ=="}); code != 400 {
			t.Errorf("put %q: HTTP %d %s", name, code, text)
		}
		findsNothing(w, admin, name)
		for _, c := range []caller{alice, bob} {
			wantCode(t, c, "not_available", "lease_credential", args{"credential": name})
			wantCode(t, c, "not_available", "release_lease", args{"lease_id": name})
		}
	}
	for _, path := range []string{"/v1/credentials/../credentials/db", "/v1//credentials/db", "/v1/credentials/./db", "/v1/leases/../credentials/db", "/v1/credentials/x/../db", "/v1/credentials/db/"} {
		for _, method := range []string{"GET", "DELETE"} {
			if code, text := admin(method, path, nil); code == 200 {
				t.Errorf("%s %s: HTTP %d %s", method, path, code, text)
			}
		}
	}
	unharmed("names that are paths")
	for _, name := range []string{"../db", "a//db", "a/./db", "..", "."} {
		for _, verb := range []string{"show", "rm", "revoke", "put", "rotate"} {
			if o := w.cliIn("fake-value", verb, name); o.code == 0 {
				t.Errorf("%s %s: %s", verb, name, o)
			}
		}
	}
	unharmed("the same from the terminal")
}
