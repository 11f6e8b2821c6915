//go:build linux

package promises

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keylease/internal/lease"
)

// approvalPolicy lends everything to everybody, after somebody's yes.
func approvalPolicy(who string) string {
	return "version: 1\nlimits: {leaseRate: 0}\nrules:\n  - {name: a person, identities: [\"*\"], credentials: [\"*\"], approval: " + who + "}\n"
}

// asks wants a lease that a person has to agree to, and returns the approval's id.
func asks(t *testing.T, c caller, a args) string {
	t.Helper()
	got := call(t, c, "lease_credential", a)
	if got.refused || got.get("status") != "approval_required" || got.get("approval", "id") == "" || got.get("approval", "how") == "" {
		t.Fatalf("%v: %s", a, got.raw)
	}
	if strings.Contains(got.raw, "fake-value-of") || got.lease() != "" {
		t.Fatalf("lent before anybody agreed: %s", got.raw)
	}
	return got.get("approval", "id")
}

// resumes comes for the answer, again where the daemon went away meanwhile.
func resumes(t *testing.T, c caller, id string) (got answer) {
	t.Helper()
	for range 5 {
		if got = call(t, c, "lease_credential", args{"approval_id": id}); got.code() != "unavailable" {
			break
		}
	}
	return got
}

func fetched(t *testing.T, c caller, id, credential string) {
	t.Helper()
	got := resumes(t, c, id)
	if got.refused || got.get("status") != "granted" || got.get("value") != valueOf(credential) {
		t.Fatalf("after the yes: %s", got.raw)
	}
}

// TestTheOperatorAnswers: over every transport an agent is told what waits, a person answers with the shipped program,
// and the agent gets what was asked for, once; or hears no.
func TestTheOperatorAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	s := w.serve()
	w.seed(secretOf("db", ""))
	for i, open := range []func(token string) caller{
		func(string) caller { return w.agent("local-agent") },
		func(token string) caller { return w.web(s.addr, token, false) },
		func(token string) caller { return w.web(s.addr, token, true) },
		func(token string) caller { return w.sse(s.addr, token) },
	} {
		token, _ := w.token(fmt.Sprintf("agent-%d", i))
		c := open(token)
		id := asks(t, c, args{"credential": "db", "purpose": "migrate \u202e the tables", "ttl": "10m"})
		list := w.ok("approvals")
		if !strings.Contains(list, id) || !strings.Contains(list, "the agent says: \"migrate") || strings.Contains(list, "\u202e") {
			t.Errorf("keylease approvals: %s", list)
		}
		if shown := w.ok("approve", id); !strings.Contains(shown, "May agent") || !strings.Contains(shown, "10m at most") || !strings.Contains(shown, "approved") {
			t.Errorf("approve does not show what was approved: %s", shown)
		}
		fetched(t, c, id, "db")
		if got := resumes(t, c, id); got.code() != "approval_denied" {
			t.Errorf("used twice: %s", got.raw)
		}
		id = asks(t, c, args{"credential": "db", "purpose": "again"})
		w.ok("deny", id, "--reason", "not on a Friday")
		if got := resumes(t, c, id); got.code() != "approval_denied" || !strings.Contains(got.raw, "not on a Friday") {
			t.Errorf("after the no: %s", got.raw)
		}
		w.refused(5, "approve", id)
	}
	w.refused(3, "approve", "ap_nobody")
	var list struct{ Approvals []lease.ApprovalInfo }
	w.json(&list, "approvals", "--all")
	if len(list.Approvals) != 8 || !slices.ContainsFunc(list.Approvals, func(i lease.ApprovalInfo) bool { return i.AnsweredBy == "operator" }) {
		t.Errorf("%+v", list)
	}
}

// TestAnAnswerIsHeardWhileTheAgentWaits: lease_credential with approval_id waits for the answer.
func TestAnAnswerIsHeardWhileTheAgentWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	c := w.agent("waiter")
	id := asks(t, c, args{"credential": "db"})
	said := make(chan outcome, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		said <- w.cli("approve", id)
	}()
	got := resumes(t, c, id)
	if o := <-said; o.code != 0 || got.get("status") != "granted" {
		t.Fatalf("%s; %s", o, got.raw)
	}
}

// TestA12AnAgentApprovesNothingOfItsOwn: not over a connection that opened as MCP, not from a process below an MCP
// client, not over HTTP, and not by a client's word where policy wants the operator's.
func TestA12AnAgentApprovesNothingOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("eve")
	c := w.web(s.addr, token, true)
	c.spec.asks = true
	id := asks(t, c, args{"credential": "db"}) // its client would ask the user, and is not asked to
	conn, err := net.Dial("unix", w.socket())
	w.must(err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	for _, line := range []string{`{"keylease":1,"kind":"mcp","as":"eve"}`, `{"keylease":1,"kind":"admin"}`, "POST /v1/approvals/" + id + "/approve HTTP/1.1", "", ""} {
		_, err := conn.Write([]byte(line + "\n"))
		w.must(err)
	}
	w.eventually("the connection counts as MCP", func() error {
		if o := w.cli("approvals"); o.code != 4 {
			return fmt.Errorf("%s", o)
		}
		return nil
	})
	w.refused(4, "approve", id)
	w.refused(4, "deny", id)
	for _, path := range []string{"/v1/approvals", "/v1/approvals/" + id + "/approve"} {
		if got, err := do("POST", "http://"+s.addr+path, "{}", "Authorization", "Bearer "+token); err != nil || got.status != 404 {
			t.Errorf("%s over HTTP: %d, %v", path, got.status, err)
		}
	}
	_ = conn.Close()
	w.eventually("nobody approved it, and a person can", func() error {
		if o := w.cli("approve", id); o.code != 0 {
			return fmt.Errorf("%s", o)
		}
		return nil
	})
	if w.count("lease.created") != 0 {
		t.Error("lent before a person agreed")
	}
	fetched(t, c, id, "db")
}

func (w *world) count(event string) int {
	w.t.Helper()
	return strings.Count(w.ok("audit", "--event", event, "--json"), event)
}

// TestE3OneApprovalOneLease: 64 calls at once, over several connections of one principal, get one lease of one yes.
func TestE3OneApprovalOneLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("racer")
	callers := []caller{w.agentOf(spec{client: "racer", env: []string{"KEYLEASE_TOKEN=" + token}}),
		w.agentOf(spec{client: "racer", modern: true, env: []string{"KEYLEASE_TOKEN=" + token}}), w.web(s.addr, token, false), w.web(s.addr, token, true)}
	id := asks(t, callers[0], args{"credential": "db"})
	w.ok("approve", id)
	var granted atomic.Int32
	together(t, 64, func(i int) error {
		got, err := callers[i%len(callers)].try("lease_credential", args{"approval_id": id})
		switch {
		case err != nil:
			return err
		case got.get("status") == "granted":
			granted.Add(1)
		case got.code() != "approval_denied":
			return fmt.Errorf("%s", got.raw)
		}
		return nil
	})
	var live struct{ Leases []lease.Info }
	if w.json(&live, "leases"); granted.Load() != 1 || len(live.Leases) != 1 {
		t.Errorf("%d granted, %d live", granted.Load(), len(live.Leases))
	}
}

// TestAnApprovalOutlivesTheDaemon: killed between the question and the answer, and between the answer and the lease.
func TestAnApprovalOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	c := w.agent("patient")
	id := asks(t, c, args{"credential": "db"})
	w.killDaemon()
	w.ok("approve", id)
	w.killDaemon()
	fetched(t, c, id, "db")
	w.killDaemon()
	if got := resumes(t, c, id); got.code() != "approval_denied" {
		t.Errorf("used twice: %s", got.raw)
	}
}

// TestADaemonStaysForAWaitingQuestion: one that started by itself does not end while somebody may still answer.
func TestADaemonStaysForAWaitingQuestion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("idleStop: 1s\n")
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	c := w.agent("patient")
	id := asks(t, c, args{"credential": "db"})
	daemon := w.holder()
	time.Sleep(3 * time.Second)
	if daemon == 0 || !slices.Contains(w.processes("serve"), daemon) {
		t.Fatal("the daemon left while a question waited")
	}
	w.ok("deny", id)
	w.gone(daemon)
}

// TestApprovalsOfOneUserAreFewAndNotRepeated: a fourth question waits, and after two denials nobody is asked.
func TestApprovalsOfOneUserAreFewAndNotRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	a, b := w.agent("one-name"), w.agent("another-name")
	first := asks(t, a, args{"credential": "db", "purpose": "1"})
	if asks(t, a, args{"credential": "db", "purpose": "1"}) != first {
		t.Error("one thing was asked twice")
	}
	second := asks(t, b, args{"credential": "db", "purpose": "2"})
	asks(t, b, args{"credential": "db", "purpose": "3"})
	wantCode(t, b, "rate_limited", "lease_credential", args{"credential": "db", "purpose": "4"})
	w.ok("deny", first)
	w.ok("deny", second)
	wantCode(t, a, "approval_denied", "lease_credential", args{"credential": "db", "purpose": "5"})
}

// TestTheOperatorIsToldOfQuestions: by a program of the configuration's, which gets the question on stdin and nothing
// of the daemon's environment.
func TestTheOperatorIsToldOfQuestions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	script, told := filepath.Join(w.home, "tell"), filepath.Join(w.home, "told")
	w.write(script, "#!/bin/sh\n{ cat; env; pwd; echo \"$@\"; } > "+told+".new; mv "+told+".new "+told+"\n")
	w.must(os.Chmod(script, 0o700))
	w.configure("approvals:\n  notify: [" + script + ", \"$HOME; a b\"]\n")
	w.policy(approvalPolicy("operator"))
	w.serve()
	w.seed(secretOf("db", ""))
	id := asks(t, w.agent("teller"), args{"credential": "db", "purpose": "p"})
	var text string
	w.eventually("the program ran", func() error {
		data, err := os.ReadFile(told)
		text = string(data)
		return err
	})
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines[1 : len(lines)-2])
	if !strings.Contains(lines[0], `"approval_id":"`+id+`"`) || lines[len(lines)-2] != "/" || lines[len(lines)-1] != "$HOME; a b" {
		t.Errorf("%s", text)
	}
	for _, line := range lines[1 : len(lines)-2] {
		if name, _, _ := strings.Cut(line, "="); !slices.Contains([]string{"HOME", "PATH", "PWD", "SHLVL", "_", "OLDPWD"}, name) {
			t.Errorf("its environment has %s", line)
		}
	}
	w.configure("approvals:\n  notify: [tell]\n")
	w.refused(2, "serve", "--http", "off")
}

// TestAPassphraseIsForTheTerminalOnly: nothing that can be piped or set approves.
func TestAPassphraseIsForTheTerminalOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("admin:\n  passphrase: $argon2id$v=19$m=19456,t=1,p=1$c29tZXNhbHQ$3ZN7rqgqU8m3RA/W9+bmUA\n")
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	c := w.agent("agent")
	id := asks(t, c, args{"credential": "db"})
	if o := w.cliIn("password", "approve", id); o.code != 4 || !strings.Contains(o.err, "at a terminal only") {
		t.Errorf("%s", o)
	}
	if o := w.cliIn("password\npassword\n", "approvals", "passphrase"); o.code != 2 {
		t.Errorf("%s", o)
	}
	w.ok("deny", id) // which is never hard
	w.configure("admin:\n  passphrase: hunter2hunter2\n")
	w.stopDaemon()
	if o := w.refused(2, "serve", "--http", "off"); strings.Contains(o.err, "hunter2") {
		t.Errorf("the error repeats it: %s", o)
	}
}

// TestAPassphraseIsTypedAtATerminal: the right one approves, a wrong one does not, and trying is slowed.
func TestAPassphraseIsTypedAtATerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("admin:\n  passphrase: $argon2id$v=19$m=19456,t=1,p=1$c29tZXNhbHQ$3ZN7rqgqU8m3RA/W9+bmUA\n")
	w.policy(approvalPolicy("operator"))
	w.seed(secretOf("db", ""))
	c := w.agent("agent")
	id := asks(t, c, args{"credential": "db"})
	if o := w.typing("wrong\n", "approve", id); o.code != 4 || !strings.Contains(o.out, "not the passphrase") || strings.Contains(o.out, "wrong") {
		t.Errorf("%s", o)
	}
	if w.count("approval.granted") != 0 || w.count("auth.failed") != 1 {
		t.Error("a wrong passphrase approved, or nobody hears of it")
	}
	if o := w.typing("password\n", "approve", id); o.code != 0 || !strings.Contains(o.out, "approved") {
		t.Errorf("%s", o)
	}
	fetched(t, c, id, "db")
	id = asks(t, c, args{"credential": "db", "purpose": "more"})
	for range 4 {
		w.typing("wrong\n", "approve", id)
	}
	if o := w.typing("password\n", "approve", id); o.code == 0 || !strings.Contains(o.out, "too often") {
		t.Errorf("the sixth try: %s", o)
	}
}

// typing runs keylease at a terminal of its own, where somebody types.
func (w *world) typing(keys string, args ...string) outcome {
	w.t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	w.must(err)
	defer screen.Close()
	w.must(unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	w.must(err)
	line, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	w.must(err)
	cmd := exec.Command(w.bin, args...)
	cmd.Env, cmd.Dir = w.env(), w.home
	cmd.Stdin, cmd.Stdout, cmd.Stderr = line, line, line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	w.must(cmd.Start())
	_ = line.Close()
	said, read := &buffer{}, make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := screen.Read(b)
			_, _ = said.Write(b[:n])
			if err != nil {
				return
			}
			if strings.HasSuffix(said.String(), "passphrase: ") {
				for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
					if t, err := unix.IoctlGetTermios(int(screen.Fd()), unix.TCGETS); err != nil || t.Lflag&unix.ECHO == 0 {
						break // from here on nothing typed is shown
					}
				}
				_, _ = screen.WriteString(keys)
			}
		}
	}()
	hung := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer hung.Stop()
	_ = cmd.Wait() // its code is what counts
	<-read         // the terminal ends with the last who has it open
	return outcome{said.String(), "", cmd.ProcessState.ExitCode()}
}
