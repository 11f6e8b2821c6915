//go:build linux

package promises

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inside is what no client should ever read: the words of decoders, handlers and panics.
var inside = regexp.MustCompile(`(?i)panic|goroutine|unmarshal|\.go:\d|runtime error|mcp-go|badger`)

// TestBadInputGarbageLines: each line that is no request gets an error that tells nothing of the inside, and the
// connection goes on; the same over the socket without a relay in front.
func TestBadInputGarbageLines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	for _, line := range []string{
		"hello", "null", `"x"`, "17", "[]", "{}", "{", "\x00\x01\xff\xfe", `{"jsonrpc":"2.0"}`, `{"jsonrpc":"1.0","id":"z","method":"ping"}`,
		`{"jsonrpc":"2.0","id":null,"method":"ping"}`, `{"jsonrpc":"2.0","id":{},"method":"ping"}`, `{"jsonrpc":"2.0","id":1.5,"method":"ping"}`,
		`{"jsonrpc":"2.0","id":"z","method":7}`, `[{"jsonrpc":"2.0","id":"z","method":"ping"}]`, `{"jsonrpc":"2.0","id":"z","method":"ping"} x`,
		`{"jsonrpc":"2.0","id":"z","id":"y","method":"ping"}`, `{"jsonrpc":"2.0","id":"z","METHOD":"ping"}`,
		`{"jsonrpc":"2.0","id":"z","method":"tools/call"}`, `{"jsonrpc":"2.0","id":"z","method":"tools/call","params":null}`,
		`{"jsonrpc":"2.0","id":"z","method":"tools/call","params":{"name":"lease_credential","Name":"x"}}`,
		`{"jsonrpc":"2.0","id":"z","method":"tools/call","params":{"name":"no_such_tool","arguments":{}}}`,
		`{"jsonrpc":"2.0","id":"z","method":"tools/call","params":[1,2]}`, `{"jsonrpc":"2.0","id":"z","method":"no/such"}`,
		`{"jsonrpc":"2.0","id":"z","method":"ping","params":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`,
		`{"jsonrpc":"2.0","id":"z","method":"ping","params":{"n":` + strings.Repeat("9", 10_000) + `}}`,
		`{"jsonrpc":"2.0","id":"z","method":"ping","params":{"` + strings.Repeat("x", 70<<10) + `":1}}`,
	} {
		w.must(a.send(line))
		if got := a.stray(); !strings.Contains(got, `"error"`) || inside.MatchString(got) || len(got) > 1000 {
			t.Errorf("%.80q: answered %s", line, got)
		}
	}
	// Arguments that do not fit are a tool's error, in its own form.
	for _, bad := range []any{args{"credential": 7}, args{"credential": []string{"db"}}, args{"nothing": 1}, args{}, "db", nil,
		args{"credential": strings.Repeat("x", 60_000)}, args{"credential": "db", "delivery": "telepathy"}, args{"credential": "db", "purpose": strings.Repeat("x", 201)}} {
		got, err := a.try("lease_credential", bad)
		if err == nil && (got.code() != "invalid_argument" && got.code() != "not_available" || got.get("error", "hint") == "") ||
			err != nil && inside.MatchString(err.Error()) || inside.MatchString(got.raw) {
			t.Errorf("%.60v: %v %.300s", bad, err, got.raw)
		}
	}
	for _, line := range []string{"hello", `{"keylease":1,"kind":"root"}`, `{"keylease":9,"kind":"mcp"}`, strings.Repeat("x", 100<<10), ""} {
		conn, err := net.Dial("unix", w.socket())
		w.must(err)
		_, _ = conn.Write([]byte(line + "\n"))
		_ = conn.Close()
	}
	lend(t, a, "db")
	if len(w.leases()) != 1 {
		t.Error("something of it had an effect")
	}
}

// TestBadInputClientsThatVanish: a client that closes at once, dies in the middle of a line, or dies in the middle of a
// call costs nobody anything: its lease, if it got one, ends after the grace, and the trail is whole.
func TestBadInputClientsThatVanish(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("grace: 1s\n")
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("web")
	call := rpcLine("9", "tools/call", toolCall("lease_credential", args{"credential": "db"}, spec{}))
	together(t, 12, func(i int) error {
		if i%4 == 3 { // HTTP: half a body
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				return err
			}
			fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n%s", s.addr, token, call)
			return conn.Close()
		}
		a, err := w.start(spec{client: fmt.Sprintf("mayfly-%d", i)})
		if err != nil || i%4 == 0 {
			return err // closed at once, when the test ends at the latest
		}
		if err := a.handshake(legacy); err != nil {
			return err
		}
		if i%4 == 1 {
			_, err = a.in.Write([]byte(call[:len(call)/2]))
		} else {
			err = a.send(call)
		}
		a.die()
		return err
	})
	w.eventually("nothing is lent any more", func() error {
		if live := w.leases(); len(live) > 0 {
			return fmt.Errorf("%v", live)
		}
		return nil
	})
	lend(t, w.agent("alice"), "db")
	w.books()
	w.verified()
}

// TestBadInputTokens: with a token that is unknown, or was revoked before or while connected, tools/list still answers
// and every call is unauthenticated; it is never taken for a local caller with a name.
func TestBadInputTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	good, _ := w.token("alice")
	revoked, record := w.token("alice")
	w.ok("token", "revoke", record)
	later, record := w.token("alice")
	connected := w.agentOf(spec{client: "c", env: []string{"KEYLEASE_TOKEN=" + later}})
	id := lend(t, connected, "db")
	w.ok("token", "revoke", record)
	agents := map[string]*agent{"revoked while connected": connected}
	for name, token := range map[string]string{"unknown": "kl_" + strings.Repeat("a", 59), "no token at all": "hunter2", "revoked": revoked, "cut": good[:20]} {
		agents[name] = w.agentOf(spec{client: "claude-code", flags: []string{"--as", "alice"}, env: []string{"KEYLEASE_TOKEN=" + token}})
	}
	for name, a := range agents {
		r, err := a.ask(a.id(), "tools/list", args{})
		if err != nil || strings.Count(string(r.Result), `"inputSchema"`) != 3 {
			t.Errorf("%s: tools/list: %v %s", name, err, r.Result)
		}
		for tool, arguments := range map[string]args{"list_credentials": {}, "lease_credential": {"credential": "db"}, "release_lease": {"lease_id": id}} {
			if got := wantCode(t, a, "unauthenticated", tool, arguments); got.get("error", "hint") == "" {
				t.Errorf("%s: no hint: %s", name, got.raw)
			}
		}
	}
	if len(w.leases()) != 0 {
		t.Errorf("lent: %v", w.leases())
	}
	if len(find(w.audit(), "auth.failed")) == 0 {
		t.Error("not in the trail")
	}
}

// TestBadInputTakenPlaces: a port in use, a data folder that another daemon holds, and a standalone relay beside a
// daemon are exit 8, say who is in the way, and disturb nobody.
func TestBadInputTakenPlaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	defer taken.Close()
	o := w.refused(8, "serve", "--http", taken.Addr().String())
	if !strings.Contains(o.err, taken.Addr().String()) || !strings.Contains(o.err, "keylease: hint: ") {
		t.Errorf("a port in use: %s", o)
	}
	s := w.serve()
	for _, verb := range [][]string{{"serve", "--http", "off"}, {"mcp", "--standalone"}} {
		if o := w.refused(8, verb...); !strings.Contains(o.err, fmt.Sprint(s.Process.Pid)) {
			t.Errorf("%v does not say who is there: %s", verb, o)
		}
	}
	w.seed(secretOf("db", ""))
	lend(t, w.agent("alice"), "db")
}

// TestB5BeyondLoopback: without TLS tokens and values would travel in the clear, so any other address is refused before
// anything is made; so is one that is none.
func TestB5BeyondLoopback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.com:0", "somewhere", "127.0.0.1", "127.0.0.1:http:1"} {
		if o := w.cli("serve", "--http", addr); o.code != 1 && o.code != 2 || !strings.Contains(o.err, "keylease: error: ") || !strings.Contains(o.err, addr) {
			t.Errorf("%s: %s", addr, o)
		}
	}
	if made, err := os.ReadDir(filepath.Join(w.data(), "store")); err == nil {
		t.Errorf("a store was made: %v", made)
	}
}

// TestBadInputForeignFolder: a data folder or a socket folder of somebody else's, or one open to others, is refused by
// daemon, relay and command alike before anything is sent or made in it.
func TestBadInputForeignFolder(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"open to others":  func(dir string) error { return os.Chmod(dir, 0o777) },
		"somebody else's": func(dir string) error { return os.Chown(dir, 65534, 65534) },
		"a link": func(dir string) error {
			return os.Rename(dir, dir+".real")
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "somebody else's" && os.Geteuid() != 0 {
				t.Skip("only root can give folders away")
			}
			w := newWorld(t)
			w.must(os.MkdirAll(w.data(), 0o700))
			w.must(os.WriteFile(filepath.Join(w.data(), "theirs"), nil, 0o600))
			w.must(spoil(w.data()))
			if name == "a link" {
				w.must(os.Symlink(w.data()+".real", w.data()))
			}
			for _, verb := range [][]string{{"serve", "--http", "off"}, {"ls"}, {"init"}} {
				o := w.cli(verb...)
				want := 7
				if verb[0] == "serve" { // it reaches for no daemon
					want = 1
				}
				if o.code != want || !strings.Contains(o.err, w.data()) {
					t.Errorf("%v: %s", verb, o)
				}
			}
			a, err := w.start(spec{client: "c"})
			w.must(err)
			if err := a.handshake(legacy); err == nil || !strings.Contains(err.Error(), w.data()) {
				t.Errorf("an agent: %v", err)
			}
			if made, _ := os.ReadDir(w.data() + "/"); len(made) != 1 {
				t.Errorf("something was made in it: %v", made)
			}
		})
	}
}

// TestBadInputFiles: a seed file that is half good stores nothing and lists every fault with its line; a policy and a
// configuration with a typo do not start, and the nearest right word is named. No value is repeated.
func TestBadInputFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := filepath.Join(w.home, "bad.yaml")
	w.write(bad, `credentials:
  - {name: good, type: generic-secret, value: fake-canary-1}
  - {name: typo, type: generic-secret, vaule: fake-canary-2}
  - {name: a/b, type: generic-secret, value: fake-canary-3}
  - {name: good, type: generic-secret, value: fake-canary-4}
  - {name: slow, type: generic-secret, value: fake-canary-5, policy: {maxLeaseTTL: forever}}
  - {name: empty, type: generic-secret, value: ""}
  - {name: strange, type: no-such-type, value: fake-canary-6}
  - {name: huge, type: generic-secret, value: `+strings.Repeat("x", 65<<10)+`}
  - {name: nowhere, type: generic-secret, valueFrom: {env: NO_SUCH_VARIABLE}}
`)
	for _, verb := range [][]string{{"seed", bad}, {"serve", "--http", "off", "--seed", bad}} {
		o := w.refused(2, verb...)
		for line := 3; line <= 9; line++ {
			if !strings.Contains(o.err, fmt.Sprintf("bad.yaml:%d", line)) {
				t.Errorf("%s: the fault of line %d is not named: %s", verb[0], line, o.err)
			}
		}
		if strings.Contains(o.err, "canary") || !strings.Contains(o.err, "value") {
			t.Errorf("%s: a value is repeated, or no nearest name given: %s", verb[0], o.err)
		}
	}
	w.refused(3, "ls") // none of it was worth making a store for
	for _, put := range []struct{ name, value string }{{"a/b", "x"}, {"../x", "x"}, {"A", "x"}, {"", "x"}, {"empty", ""}, {"huge", strings.Repeat("x", 65<<10)}} {
		if o := w.cliIn(put.value, "put", put.name, "--type", "generic-secret"); o.code != 2 || len(o.err) > 1000 {
			t.Errorf("put %q with %d bytes: exit %d %.300s", put.name, len(put.value), o.code, o.err)
		}
	}
	w.stopDaemon()
	w.policy("version: 1\nrules:\n  - {name: x, identites: [a], credentials: [b], maxLeaseTTL: 1 fortnight}\n")
	o := w.refusesToServe(2)
	if !strings.Contains(o.err, "policy.yaml:3") || !strings.Contains(o.err, "identities") {
		t.Errorf("a policy with a typo: %s", o)
	}
	a, err := w.start(spec{client: "c"})
	w.must(err)
	if err := a.handshake(legacy); err == nil || !strings.Contains(err.Error(), "policy.yaml:3") {
		t.Errorf("the agent is told: %v", err)
	}
	w.policy(openPolicy)
	w.configure("htpp: off\n")
	if o := w.refusesToServe(2); !strings.Contains(o.err, "keylease.yaml:1") || !strings.Contains(o.err, "http") {
		t.Errorf("a configuration with a typo: %s", o)
	}
	w.configure("grace: 1s\n")
	w.ok("ls")
}
