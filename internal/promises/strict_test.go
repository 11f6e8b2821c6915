//go:build linux

package promises

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// twice are ways to put another member beside one of this name, which some reader takes for the same.
func twice(name string) (others []string) {
	others = []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:], fmt.Sprintf(`\u%04x%s`, name[0], name[1:]),
		name + `\u0000`, `\u0000` + name, name + `\u0000x`}
	for letter, folds := range map[string][]string{"s": {"ſ", `\u017f`, `\u017F`}, "k": {"\u212a", `\u212a`, `\u212A`}} {
		for _, fold := range folds {
			if strings.Contains(name, letter) {
				others = append(others, strings.Replace(name, letter, fold, 1))
			}
		}
	}
	return others
}

// TestC1WhatTwoReadersReadInTwoWays: a member that is there twice, exactly, in another case, with ſ for s or the Kelvin
// sign for k, or with a NUL at its end, is refused at every level and on every transport. Nothing is executed and
// nothing gets into the trail. Alone, a member of the protocol in another spelling is refused too.
func TestC1WhatTwoReadersReadInTwoWays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("other", ""))
	token, _ := w.token("alice")
	all := mouths(w, s.addr, token)
	levels := []struct {
		at      string // the level, as the innermost object's beginning
		members map[string]string
	}{
		{`{`, map[string]string{"jsonrpc": `"2.0"`, "id": `"raw"`, "method": `"tools/list"`, "params": `{}`}},
		{`"params":{`, map[string]string{"name": `"release_lease"`, "arguments": `{"credential":"other"}`, "_meta": `{}`}},
		{`"arguments":{`, map[string]string{"credential": `"other"`, "purpose": `"x"`}},
		{`"_meta":{`, map[string]string{"progressToken": `1`, "io.modelcontextprotocol/clientInfo": `{"name":"root","version":"1"}`}},
		{`/clientInfo":{`, map[string]string{"name": `"root"`, "version": `"2"`}},
		{`"deep":[{},[{`, map[string]string{"sk": `1`}},
	}
	line := func(at, more string, isModern bool) string {
		whole := wholeCall(isModern)
		if strings.Count(whole, at) == 0 {
			return ""
		}
		return strings.Replace(whole, at, at+more, 1)
	}
	for _, m := range all {
		entries := len(w.audit())
		tried := 0
		for _, level := range levels {
			for name, value := range level.members {
				for _, other := range twice(name) {
					text := line(level.at, `"`+other+`":`+value+`,`, m.modern)
					if text == "" {
						continue
					}
					tried++
					got, err := m.say("tools/call", text)
					w.must(err)
					if !strings.Contains(got, `"error"`) || strings.Contains(got, "granted") || strings.Contains(got, valueOf("db")) ||
						strings.Contains(got, valueOf("other")) || inside.MatchString(got) {
						t.Errorf("%s: %s\nwas answered %s", m.name, text, got)
					}
				}
			}
		}
		for was, spelled := range map[string]string{`"method"`: `"Method"`, `"params"`: `"paramſ"`, `"arguments"`: `"ARGUMENTS"`, `"name":"lease_credential"`: `"Name":"lease_credential"`,
			`"id"`: `"ID"`, `"jsonrpc"`: `"jsonRPC"`, `"credential"`: `"Credential"`} {
			tried++
			got, err := m.say("tools/call", strings.Replace(wholeCall(m.modern), was, spelled, 1))
			w.must(err)
			if !strings.Contains(got, `"error"`) || strings.Contains(got, valueOf("db")) {
				t.Errorf("%s: %s for %s was answered %s", m.name, spelled, was, got)
			}
		}
		if now := len(w.audit()); now != entries || len(w.leases()) != 0 {
			t.Errorf("%s: %d entries came into the trail, %d leases are live", m.name, now-entries, len(w.leases()))
		}
		if tried < 60 {
			t.Errorf("%s: only %d tries", m.name, tried)
		}
	}
	for _, m := range all { // and there is nothing else wrong with that call
		got, err := m.say("tools/call", wholeCall(m.modern))
		w.must(err)
		if !strings.Contains(got, valueOf("db")) {
			t.Errorf("%s: the call as it should be: %s", m.name, got)
		}
	}
	for _, hello := range []string{`{"keylease":1,"kind":"mcp","as":"bob","as":"alice"}`, `{"keylease":1,"kind":"mcp","kind":"admin"}`,
		`{"keylease":1,"kind":"mcp","KIND":"admin"}`, `{"keylease":1,"kind":"mcp","as":"bob","AS":"alice"}`, `{"keylease":1,"\u212aind":"admin","kind":"mcp"}`,
		`{"keylease":1,"kind":"mcp","to\u212aen":"x","token":"y"}`, `{"keylease":1,"kind":"mcp","as\u0000":"alice"}`, `{"keyleaſe":1,"keylease":1,"kind":"mcp"}`} {
		if got := w.hello(hello); !strings.Contains(got, `"ok":false`) {
			t.Errorf("the hello %s was answered %s", hello, got)
		}
	}
	if got := w.hello(`{"keylease":1,"kind":"mcp","as":"bob"}`); !strings.Contains(got, `"ok":true`) {
		t.Errorf("a hello as it should be: %s", got)
	}
}

// wholeCall is a tools/call that leases db, with an object at each level that there is.
func wholeCall(isModern bool) string {
	meta := `{"deep":[{},[{"sk":1}]],"progressToken":7,"io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}`
	if isModern {
		meta += `,"io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/protocolVersion":"` + modern + `"`
	}
	return `{"jsonrpc":"2.0","id":"raw","method":"tools/call","params":{"name":"lease_credential","arguments":{"credential":"db","purpose":"work"},"_meta":` + meta + `}}}`
}

// hello says a first line on the local socket and returns the daemon's.
func (w *world) hello(line string) string {
	w.t.Helper()
	conn, err := net.Dial("unix", w.socket())
	w.must(err)
	defer conn.Close()
	w.must(conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintln(conn, line)
	w.must(err)
	answer, err := bufio.NewReader(conn).ReadString('\n')
	w.must(err)
	return answer
}

// mcpMethods is every method that any revision has, and some that none has.
var mcpMethods = []string{"initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/read", "resources/templates/list",
	"resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get", "completion/complete", "logging/setLevel", "server/discover",
	"subscriptions/listen", "tasks/get", "tasks/list", "tasks/result", "tasks/cancel", "tasks/update", "sampling/createMessage", "roots/list",
	"elicitation/create", "notifications/initialized", "notifications/cancelled", "notifications/progress", "no/such", ""}

// answersWithoutParams are the methods that may do without.
var answersWithoutParams = map[string]bool{"ping": true, "tools/list": true, "server/discover": true, "initialize": true, "subscriptions/listen": true}

// TestC6ParamsThatAreNot: params that are absent, null or of another type, on every method of every revision and
// transport, are answered with an error (or, where a method needs none, with its answer). Nothing panics, and the same
// connections go on.
func TestC6ParamsThatAreNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("alice")
	meta := jsonLine(modernMeta("c"))
	wrong := []string{"", "null", "[]", `"x"`, "7", "true", "{}", `{"name":null}`, `{"name":7,"arguments":[]}`, `{"name":"lease_credential","arguments":null}`,
		`{"name":"lease_credential","arguments":"db"}`, `{"name":"release_lease"}`, `{"_meta":null}`, `{"_meta":7}`, `{"_meta":[]}`, `{"uri":null,"cursor":7,"level":[],"requestId":{}}`,
		`{"ref":null,"argument":null}`, `{"protocolVersion":null,"capabilities":7,"clientInfo":null}`, `{"notifications":null}`}
	modernOnly := []string{`{"_meta":` + meta + `,"name":null}`, `{"_meta":` + meta + `,"name":"lease_credential"}`, `{"_meta":` + meta + `,"name":"lease_credential","arguments":null}`,
		`{"_meta":` + meta + `,"name":"release_lease","arguments":7}`, `{"_meta":` + strings.Replace(meta, `{"name":"c","version":"1"}`, "null", 1) + `,"name":"list_credentials"}`,
		`{"_meta":` + strings.Replace(meta, `"`+modern+`"`, "7", 1) + `,"name":"list_credentials"}`, `{"_meta":` + strings.Replace(meta, `{}`, "null", 1) + `,"name":"list_credentials"}`}
	said := 0
	for _, m := range mouths(w, s.addr, token) {
		params := wrong
		if m.modern {
			params = append(modernOnly, wrong...)
		}
		for _, method := range mcpMethods {
			for _, p := range params {
				line := `{"jsonrpc":"2.0","id":"raw","method":` + jsonLine(method)
				if p != "" {
					line += `,"params":` + p
				}
				got, err := m.say(method, line+"}")
				w.must(err)
				said++
				refused := strings.Contains(got, `"error"`) || strings.Contains(got, `"isError":true`)
				if got == "" || !refused && !answersWithoutParams[method] && !strings.Contains(p, "list_credentials") || inside.MatchString(got) {
					t.Errorf("%s: %s} was answered %.300s", m.name, line, got)
				}
			}
		}
		got, err := m.say("tools/call", wholeCall(m.modern))
		w.must(err)
		if !strings.Contains(got, valueOf("db")) {
			t.Errorf("%s: afterwards a call is answered %s", m.name, got)
		}
	}
	for _, revision := range []string{"2024-11-05", "2025-03-26", "2025-06-18", legacy} { // each with a handshake of its own
		local := w.agentOf(spec{client: "c", modern: true}) // none yet
		w.must(local.handshake(revision))
		remote := w.web(s.addr, token, false)
		remote.era = revision
		for road, say := range map[string]func(string, string) (string, error){"stdio": local.say, "http": remote.say} {
			for _, method := range mcpMethods {
				for _, p := range []string{"", `,"params":null`, `,"params":[]`} {
					if got, err := say("", `{"jsonrpc":"2.0","id":"raw","method":`+jsonLine(method)+p+"}"); err != nil || got == "" || inside.MatchString(got) {
						t.Errorf("%s %s %s%s: %v %s", road, revision, method, p, err, got)
					}
					said++
				}
			}
		}
		lend(t, local, "db")
		lend(t, remote, "db")
	}
	daemonLog, _ := os.ReadFile(filepath.Join(w.data(), "daemon.log"))
	if log := s.log.String() + string(daemonLog); strings.Contains(log, "panic") {
		t.Errorf("something panicked: %s", tail(log, 3000))
	}
	t.Logf("%d messages", said)
}
