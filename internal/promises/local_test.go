//go:build linux

package promises

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestB7NothingSecretInArgvOrEnvironment: what a client's environment holds stays in the relay, and what an operator
// types is in no process's arguments; the daemon that a relay starts gets neither.
func TestB7NothingSecretInArgvOrEnvironment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if o := w.cliIn(valueOf("db"), "put", "db", "--type", "generic-secret"); o.code != 0 {
		t.Fatal(o)
	}
	text, _ := w.token("alice")
	w.killDaemon() // so that the relay is who starts it, with the token at hand
	a := w.agentOf(spec{client: "x", env: []string{"KEYLEASE_TOKEN=" + text, "OPENAI_API_KEY=" + valueOf("other")}})
	lend(t, a, "db")
	if pids := w.processes(""); len(pids) != 2 {
		t.Fatalf("want the relay and its daemon: %v", pids)
	}
	for _, pid := range w.processes("") {
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		w.must(err)
		for _, secret := range []string{text, valueOf("db"), valueOf("other")} {
			if strings.Contains(string(argv), secret) {
				t.Errorf("the arguments of %d hold a secret", pid)
			}
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		w.must(err)
		if _, core, _ := strings.Cut(string(limits), "Max core file size"); !strings.HasPrefix(strings.TrimSpace(core), "0 ") {
			t.Errorf("process %d may dump core: %.60s", pid, core)
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		switch {
		case errors.Is(err, os.ErrPermission): // and we are its user
		case err != nil:
			t.Fatal(err)
		case os.Geteuid() != 0:
			t.Errorf("any process of this user can read the environment of %d", pid)
		case pid != a.relay && strings.Contains(string(environ), "KEYLEASE_") || pid != a.relay && strings.Contains(string(environ), "OPENAI"):
			t.Errorf("the daemon was started with %q", environ)
		}
	}
}

// TestB7ARelayKeepsItsTokenFromItsUser: another process of the relay's own user can't read the token out of the relay's
// environment or memory.
func TestB7ARelayKeepsItsTokenFromItsUser(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.up()
	s.seed(secretOf("db", ""))
	text, _ := s.token("alice")
	a := s.agentAs(agentUID, "x", "KEYLEASE_TOKEN="+text)
	lend(t, a, "db")
	for _, file := range []string{"environ", "mem", "maps", "fd/0", "auxv"} {
		o := s.as(agentUID, "/bin/cat", fmt.Sprintf("/proc/%d/%s", a.relay, file))
		if o.code == 0 || !strings.Contains(o.err, "Permission denied") {
			t.Errorf("another process of its user reads %s of the relay: exit %d", file, o.code)
		}
	}
}

// TestB8OwnUserMode: the socket is 0600 in a 0700 folder, and where neither holds any more another user is refused for
// who it is.
func TestB8OwnUserMode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ok("init")
	w.ok("ls") // starts the daemon
	for path, want := range map[string]os.FileMode{w.socket(): 0o600, w.data(): 0o700} {
		info, err := os.Lstat(path)
		w.must(err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", filepath.Base(path), info.Mode().Perm(), want)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	knock := func(kind string) (string, error) {
		var conn net.Conn
		asThread(t, otherUID, func() error { conn, _ = net.Dial("unix", w.socket()); return nil })
		if conn == nil {
			return "", os.ErrPermission
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = fmt.Fprintf(conn, `{"keylease":1,"kind":%q,"as":"eve"}`+"\n", kind)
		got, _ := io.ReadAll(conn)
		return string(got), nil
	}
	if got, err := knock("mcp"); err == nil {
		t.Errorf("another user reached the socket: %q", got)
	}
	for dir := w.data(); len(dir) >= len(w.home); dir = filepath.Dir(dir) {
		w.must(os.Chmod(dir, 0o755))
	}
	w.must(os.Chmod(w.socket(), 0o666))
	for _, kind := range []string{"mcp", "admin", "handover"} {
		if got, err := knock(kind); err != nil || got != "" {
			t.Errorf("another user, for %s: %q %v", kind, got, err)
		}
	}
}

// TestB8PidReuseIsSeen: a connection whose process is gone administers nothing: the number it is known by may be
// another process's by now.
func TestB8PidReuseIsSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	status := func(conn net.Conn) (int, string) {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err := io.WriteString(conn, `{"keylease":1,"kind":"admin","version":"x"}`+"\n"+"GET /v1/credentials HTTP/1.1\r\nHost: keylease\r\n\r\n")
		w.must(err)
		r := bufio.NewReader(conn)
		hello, err := r.ReadString('\n')
		w.must(err)
		if !strings.Contains(hello, `"ok":true`) {
			t.Fatal(hello)
		}
		res, err := http.ReadResponse(r, nil)
		w.must(err)
		body, err := io.ReadAll(res.Body)
		w.must(err)
		return res.StatusCode, string(body)
	}
	mine, err := net.Dial("unix", w.socket())
	w.must(err)
	defer mine.Close()
	if code, body := status(mine); code != 200 || !strings.Contains(body, "db") {
		t.Fatalf("a connection of this process: %d %s", code, body)
	}
	if !knowsLives(t, mine) {
		t.Skip("this kernel has no SO_PEERPIDFD (Linux 6.5)")
	}
	if code, body := status(leftBehind(t, w.socket())); code != 403 || strings.Contains(body, "db\"") || !strings.Contains(body, "is gone") {
		t.Errorf("a connection of a process that is gone: %d %s", code, body)
	}
}

// TestA12AnMCPConnectionAdministersNothing: what opened as MCP stays MCP; the admin's verbs are not on it, nor on the
// HTTP port, whatever token comes with them.
func TestA12AnMCPConnectionAdministersNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	text, _ := w.token("eve")
	conn, err := net.Dial("unix", w.socket()) // from here on this process is an MCP client, and what it starts
	w.must(err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	for _, line := range []string{`{"keylease":1,"kind":"mcp","as":"eve"}`, `{"keylease":1,"kind":"admin"}`, "DELETE /v1/credentials/db HTTP/1.1"} {
		_, err := io.WriteString(conn, line+"\n")
		w.must(err)
	}
	lines := bufio.NewScanner(conn)
	for i, want := range []string{`"ok":true`, `"code":-32600`, `"code":-32700`} {
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("line %d: %q, want %s", i, lines.Text(), want)
		}
	}
	w.refused(4, "ls")
	for _, path := range []string{"/v1/credentials", "/v1/leases", "/v1/tokens", "/v1/audit", "/v1/status"} {
		got, err := do("GET", "http://"+s.addr+path, "", "Authorization", "Bearer "+text)
		w.must(err)
		if got.status != 404 {
			t.Errorf("GET %s over HTTP: %d %s", path, got.status, got.body)
		}
	}
	_ = conn.Close()
	w.eventually("the connection is gone, and this process a person's again", func() error {
		if o := w.cli("show", "db"); o.code != 0 {
			return errors.New(o.String())
		}
		return nil
	})
}

// TestTheTrailSaysWhichProgramAsked: who a local caller's process is and who started it stands in the trail beside the
// name that it gave itself, for what it was lent and what it was refused.
func TestTheTrailSaysWhichProgramAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	w.seed(secretOf("db", ""))
	a := w.agent("claude-code")
	lend(t, a, "db")
	wantCode(t, a, "not_available", "lease_credential", args{"credential": "nothing"})
	text, _ := w.token("ci")
	lend(t, w.web(s.addr, text, true), "db")
	kin := map[string][]string{}
	for _, e := range w.audit() {
		if e.Event == "lease.created" || e.Event == "lease.denied" {
			kin[e.Identity.Name] = append(kin[e.Identity.Name], e.Details["peer"])
		}
	}
	if len(kin["ci"]) != 1 || kin["ci"][0] != "" {
		t.Errorf("over HTTP: %q", kin["ci"])
	}
	if got := kin["claude-code"]; len(got) != 2 || got[0] != got[1] || !strings.HasPrefix(got[0], fmt.Sprintf("%d ", a.relay)) ||
		strings.Count(got[0], " < ") < 1 || !strings.Contains(got[0], "sh") || len(got[0]) > 300 {
		t.Errorf("over the socket: %q", got)
	}
	shown := w.ok("audit", "--event", "lease.created", "--json")
	if !strings.Contains(shown, `"peer":"`) || !strings.Contains(w.ok("leases"), "claude-code (declared)") {
		t.Error("the operator is not shown it")
	}
}
