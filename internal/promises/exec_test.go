//go:build linux

package promises

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// running is a keylease exec that the test does not wait for.
type running struct {
	*exec.Cmd
	w        *world
	out, err *buffer
	ended    chan struct{}
}

// startExec starts keylease exec, or run, with these arguments.
func (w *world) startExec(args ...string) *running {
	w.t.Helper()
	return w.startAs(nil, nil, append([]string{"exec"}, args...)...)
}

func (w *world) startAs(who *user, env []string, args ...string) *running {
	w.t.Helper()
	r := &running{Cmd: exec.Command(w.bin, args...), w: w, out: &buffer{}, err: &buffer{}, ended: make(chan struct{})}
	r.Env, r.Dir, r.Stdout, r.Stderr = w.env(env...), w.home, r.out, r.err
	if who != nil {
		r.Env, r.Dir, r.SysProcAttr = append(r.Env, "HOME="+who.home), who.home, who.credential()
	}
	r.WaitDelay = patience // a process that the command left behind may hold our pipe
	w.must(r.Start())
	go func() { _ = r.Wait(); close(r.ended) }()
	w.t.Cleanup(func() {
		_ = r.Process.Kill()
		<-r.ended
	})
	return r
}

// says waits until the command has printed text.
func (r *running) says(text string) {
	r.w.t.Helper()
	r.w.eventually("the command says "+text, func() error {
		if !strings.Contains(r.out.String(), text) {
			return fmt.Errorf("%q, and on stderr %q", r.out, r.err)
		}
		return nil
	})
}

// pid is the number in the line "pid N" that the command says first: all of it, which may come in pieces.
func (r *running) pid() int {
	r.w.t.Helper()
	r.says("\n")
	var pid int
	if _, err := fmt.Sscanf(r.out.String(), "pid %d\n", &pid); err != nil {
		r.w.t.Fatalf("%q: %v", r.out, err)
	}
	return pid
}

// ends waits until it has, with this exit code.
func (r *running) ends(code int) {
	r.w.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.w.t.Fatalf("%v has not ended: %q, %q", r.Args, r.out, r.err)
	}
	if got := r.ProcessState.ExitCode(); got != code {
		r.w.t.Fatalf("%v: exit code %d, want %d: %q, %q", r.Args[1:], got, code, r.out, r.err)
	}
}

// heedful is a command that says when it is ready and when it was told to stop.
var heedful = []string{"--", "sh", "-c", `trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.02; done`}

// lendExec leases a credential for exec and returns the lease's id.
func lendExec(t *testing.T, c caller, credential string, more ...string) string {
	t.Helper()
	a := args{"credential": credential, "delivery": "exec"}
	for i := 0; i+1 < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	got := call(t, c, "lease_credential", a)
	if got.refused || got.get("delivery") != "exec" {
		t.Fatalf("leasing %s: %s", credential, got.raw)
	}
	return got.lease()
}

// TestD5ACommandsOutputIsMasked: whatever spelling of the value the command prints, on stdout or stderr, in one piece or
// in many, it does not come out; all else does, as it was.
func TestD5ACommandsOutputIsMasked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	value := `fake-"p@ss/w+rd"-<of>&42`
	if o := w.cliIn(value, "put", "db", "--type", "generic-secret"); o.code != 0 {
		t.Fatal(o)
	}
	js, _ := json.Marshal(value)
	for name, text := range map[string]string{
		"raw": value, "base64": base64.StdEncoding.EncodeToString([]byte(value)),
		"base64, second phase": base64.StdEncoding.EncodeToString([]byte("u:" + value)),
		"base64url":            base64.RawURLEncoding.EncodeToString([]byte("user:" + value)),
		"hex":                  hex.EncodeToString([]byte(value)), "url": url.QueryEscape(value), "json": string(js),
	} {
		w.write(filepath.Join(w.home, "text"), "before\n"+text+"\nafter\n")
		for _, how := range []string{`cat text`, `cat text >&2`, `dd if=text bs=1 2>/dev/null`} {
			o := w.cli("exec", "--credential", "db", "--", "sh", "-c", how)
			said := o.out + o.err
			if o.code != 0 || !strings.HasPrefix(said, "before\n") || !strings.HasSuffix(said, "\nafter\n") || !strings.Contains(said, "[secret]") || strings.Contains(said, text) {
				t.Errorf("%s by %s: %s", name, how, o)
			}
		}
	}
	// It comes in pieces, slower than the mask hesitates: three bytes at most show.
	o := w.cli("exec", "--credential", "db", "--", "sh", "-c", `for i in 1 2 3 4; do printf %s "$(printf %s "$DB" | cut -c$((i*6-5))-$((i*6)))"; sleep 0.12; done`)
	if o.code != 0 || !strings.Contains(o.out, "[secret]") || strings.Contains(o.out, value[:4]) || strings.Contains(o.out, value[6:10]) {
		t.Errorf("in pieces: %s", o)
	}
	// A short one blanks nothing, and a warning says so.
	if o := w.cliIn("admin", "put", "short", "--type", "generic-secret"); o.code != 0 {
		t.Fatal(o)
	}
	o = w.cli("exec", "--credential", "short", "--", "echo", "the admin and the administration")
	if o.out != "the admin and the administration\n" || !strings.Contains(o.err, "shorter than 8 bytes, so it is not masked") {
		t.Errorf("a short value: %s", o)
	}
}

// TestExecGivesTheValueToItsCommandAlone: the command has the caller's environment, less what is keylease's, and the value
// under its name; what is not its output passes untouched. D1: the value is in nobody else's argv or environment, and in no
// file or log.
func TestExecGivesTheValueToItsCommandAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	value := valueOf("db")
	token, _ := w.token("ci")
	cmd := exec.Command(w.bin, "exec", "--credential", "db", "--", "sh", "-c", `env | sort; printf %s "$DB" | sha256sum; cat`)
	cmd.Env = w.env("KEYLEASE_TOKEN="+token, "KEYLEASE_AS=somebody", "KEYLEASE_SOCKET=", "DB=an old one", "MINE=yes")
	o := w.run(cmd, "from stdin\n")
	for _, want := range []string{"DB=[secret]\n", "MINE=yes\n", "HOME=" + w.home + "\n", "from stdin\n", shaOf(value)} {
		if !strings.Contains(o.out, want) {
			t.Errorf("without %q: %s", want, o)
		}
	}
	if o.code != 0 || strings.Contains(o.out, "KEYLEASE") || strings.Contains(o.out, "an old one") {
		t.Errorf("%s", o)
	}
	used := find(w.audit(), "lease.used")
	if len(used) != 2 || used[0].Identity.Name != "ci" || used[0].Identity.Proof != "token" || used[0].Details["phase"] != "begun" || used[1].Details["phase"] != "ended" || !strings.HasSuffix(used[0].Details["program"], "/sh") {
		t.Errorf("in the trail: %+v", used)
	}
	r := w.startExec("--credential", "db", "--", "sh", "-c", "echo ready; sleep 60")
	r.says("ready")
	for _, pid := range append(w.processes("exec"), w.processes("serve")...) {
		for _, name := range []string{"cmdline", "environ"} {
			if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name)); err == nil && strings.Contains(string(text), value) {
				t.Errorf("process %d has it in its %s", pid, name)
			}
		}
		var owner syscall.Stat_t
		w.must(syscall.Stat(fmt.Sprintf("/proc/%d/mem", pid), &owner))
		if os.Geteuid() != 0 && owner.Uid != 0 {
			t.Errorf("process %d may be read by its own user", pid)
		}
	}
	w.must(filepath.WalkDir(w.home, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path != filepath.Join(w.home, "seed.yaml") {
			if text, _ := os.ReadFile(path); strings.Contains(string(text), value) {
				t.Errorf("%s holds it", path)
			}
		}
		return nil
	}))
}

func shaOf(value string) string {
	out, err := exec.Command("sh", "-c", `printf %s "$1" | sha256sum`, "sh", value).Output()
	if err != nil {
		panic(err)
	}
	return strings.Fields(string(out))[0]
}

// TestExecExitCodes are those of env: the command's own, 128 and the signal, 127, 126, and 125 for keylease itself.
func TestExecExitCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	w.write(filepath.Join(w.home, "plain"), "echo no")
	w.write(filepath.Join(w.home, "script"), "echo by sh")
	w.must(os.Chmod(filepath.Join(w.home, "script"), 0o700))
	for _, c := range []struct {
		code int
		says string
		argv []string
	}{
		{0, "", []string{"--credential", "db", "--", "true"}},
		{42, "", []string{"--credential", "db", "--", "sh", "-c", "exit 42"}},
		{0, "by sh", []string{"--credential", "db", "--", "./script"}},
		{128 + 15, "", []string{"--credential", "db", "--", "sh", "-c", "kill -TERM $$"}},
		{128 + 9, "", []string{"--credential", "db", "sh", "-c", "kill -KILL $$"}},
		{127, "there is no such program: no-such-program", []string{"--credential", "db", "--", "no-such-program"}},
		{127, "there is no such program", []string{"--credential", "db", "--", "./no-such-program"}},
		{126, "can't be run", []string{"--credential", "db", "--", "./plain"}},
		{126, "can't be run", []string{"--credential", "db", "--", w.home}},
		{125, "which command?", []string{"--credential", "db"}},
		{125, "which credential?", []string{"--", "true"}},
		{125, "say the same thing twice", []string{"--credential", "db", "--lease", "ls_x", "--", "true"}},
		{125, "unknown flag", []string{"--credentail", "db", "--", "true"}},
		{125, "not available to you", []string{"--credential", "other", "--", "true"}},
		{125, "no such credential or lease is available to you", []string{"--lease", "ls_x", "--", "true"}},
		{125, "--file: ", []string{"--credential", "db", "--file", "LD_PRELOAD", "--", "true"}},
		{125, "no --json", []string{"--json", "--credential", "db", "--", "true"}},
	} {
		o := w.cli(append([]string{"exec"}, c.argv...)...)
		if c.says == "not available to you" {
			c.says = "is available to you"
		}
		if o.code != c.code || !strings.Contains(o.out+o.err, c.says) || c.code < 125 && o.err != "" {
			t.Errorf("%v: want %d and %q, got %s", c.argv, c.code, c.says, o)
		}
	}
	if o := w.cli("run", "db/deploy", "--", "more"); o.code != 125 || !strings.Contains(o.err, "takes 1 argument(s)") {
		t.Errorf("run with arguments: %s", o)
	}
	if o := w.cli("run", "no-such-command"); o.code != 125 || !strings.Contains(o.err, "is available to you") {
		t.Errorf("run of what there is not: %s", o)
	}
	if live := w.leases(); len(live) != 0 {
		t.Errorf("left over: %v", live)
	}
}

// TestExecPassesSignalsOn: what keylease exec gets reaches the command once, and all that it started; when keylease exec is
// killed outright the command dies with it, and the lease that was opened for it ends.
func TestExecPassesSignalsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		r := w.startExec("--credential", "db", "--", "sh", "-c", fmt.Sprintf(`n=0; trap 'n=$((n+1)); echo got $n' %d; echo ready; for i in 1 2 3 4 5 6 7 8; do sleep 0.03; done; exit 5`, s))
		r.says("ready")
		w.must(r.Process.Signal(s))
		r.ends(5)
		if strings.Count(r.out.String(), "got") != 1 {
			t.Errorf("%v: %q", s, r.out)
		}
	}
	family := w.startExec("--credential", "db", "--", "sh", "-c", `sleep 60 & echo pid $! ; wait`)
	pid := family.pid()
	w.must(family.Process.Signal(syscall.SIGTERM))
	family.ends(128 + 15)
	w.gone(pid)

	killed := w.startExec("--credential", "db", "--", "sh", "-c", `echo pid $$; exec sleep 60`)
	pid = killed.pid()
	w.must(killed.Process.Kill())
	w.gone(pid)
	w.eventually("its lease has ended", func() error {
		if live := w.leases(); len(live) != 0 {
			return fmt.Errorf("%v", live)
		}
		return nil
	})
	used := find(w.audit(), "lease.used")
	if last := used[len(used)-1]; last.Details["reason"] != "keylease exec is gone" {
		t.Errorf("the trail says %+v", last)
	}
}

// TestA2ACommandEndsWithItsLease: whichever way its lease ends, the command is told to stop and says why, once, and the
// trail has one end; who ended it is answered at once, even where keylease exec itself hangs.
func TestA2ACommandEndsWithItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.seed(secretOf("db", ""), secretOf("removed", ""), secretOf("revoked", ""), secretOf("brief", "policy: {defaultLeaseTTL: 1s, maxLeaseTTL: 2s}"))
	token, record := w.token("ci")
	a := w.agent("alice")
	ends := map[string]string{}
	for _, c := range []struct {
		name, credential, event, why string
		end                          func(id string)
	}{
		{"release_lease", "db", "lease.released", "the lease was released\n", func(id string) { call(t, a, "release_lease", args{"lease_id": id}) }},
		{"release", "db", "lease.released", "released by an admin\n", func(id string) { w.ok("release", id) }},
		{"revoke-leases", "db", "lease.revoked", "revoked by an admin", func(string) { w.ok("revoke-leases", "--identity", "alice") }},
		{"revoke", "revoked", "lease.revoked", "", func(string) { w.ok("revoke", "revoked") }},
		{"rm", "removed", "lease.revoked", "", func(string) { w.ok("rm", "removed") }},
		{"its time, renewed to the last", "brief", "lease.expired", "the lease has expired\n", func(string) {}},
	} {
		id := lendExec(t, a, c.credential)
		began := time.Now()
		r := w.startExec(append([]string{"--lease", id}, heedful...)...)
		r.says("ready")
		c.end(id)
		r.ends(9)
		if said := r.err.String(); strings.Count(said, "keylease:") != 1 || !strings.Contains(said, "keylease: the command is being stopped: "+c.why) { // its shell may speak of a sleep that was ended
			t.Errorf("%s: stderr is %q", c.name, r.err)
		}
		if r.out.String() != "ready\ntold\n" {
			t.Errorf("%s: %q", c.name, r.out)
		}
		if c.credential == "brief" && time.Since(began) < 1500*time.Millisecond {
			t.Errorf("%s: it was not renewed: stopped after %s", c.name, time.Since(began))
		}
		ends[id] = c.event
	}
	r := w.startAs(nil, []string{"KEYLEASE_TOKEN=" + token}, append([]string{"exec", "--credential", "db"}, heedful...)...)
	r.says("ready")
	w.ok("token", "revoke", record)
	r.ends(9)
	r = w.startExec(append([]string{"--credential", "db"}, heedful...)...)
	r.says("ready")
	w.ok("freeze", "--reason", "a trial")
	r.ends(9)
	w.ok("thaw")

	// A command that makes 0 of its SIGTERM did not come to its end all the same.
	r = w.startExec("--credential", "db", "--", "sh", "-c", `trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done`)
	r.says("ready")
	w.ok("revoke-leases", "--all")
	r.ends(128 + 15)

	// keylease exec hangs: nobody waits for it for long.
	r = w.startExec(append([]string{"--credential", "db"}, heedful...)...)
	r.says("ready")
	w.must(r.Process.Signal(syscall.SIGSTOP))
	w.ok("revoke-leases", "--all")
	if live := w.leases(); len(live) != 0 {
		t.Errorf("live: %v", live)
	}
	w.must(r.Process.Signal(syscall.SIGCONT))
	r.ends(9)

	b := w.books() // fails where a lease ends twice
	for id, event := range ends {
		if b.ended[id] != event {
			t.Errorf("%s ended with %q, want %q", id, b.ended[id], event)
		}
	}
	w.verified()
}

// TestExecKillsWhatDoesNotHeed: 10 s after SIGTERM, the command and all that it started in its group.
func TestExecKillsWhatDoesNotHeed(t *testing.T) {
	t.Parallel()
	if os.Getenv("KEYLEASE_TEST_FULL") == "" {
		t.Skip("takes 10 s: set KEYLEASE_TEST_FULL; internal/child tries it with a shorter time")
	}
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	r := w.startExec("--credential", "db", "--", "sh", "-c", `trap '' TERM; sleep 60 & echo pid $!; while :; do sleep 1; done`)
	pid := r.pid()
	began := time.Now()
	w.ok("revoke-leases", "--all")
	r.ends(128 + 9)
	if took := time.Since(began); took < 9*time.Second || took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	w.gone(pid)
}

// TestExecJoinsALeaseOrOpensOne: commands of one principal on one credential share a live lease; what was opened for a
// command ends with the last one on it; what was not stays.
func TestExecJoinsALeaseOrOpensOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", "policy: {maxLeases: 1}"))
	w.agent("someone") // the daemon stays
	first := w.startExec("--credential", "db", "--", "sh", "-c", "echo ready; sleep 60")
	first.says("ready")
	if o := w.cli("exec", "--credential", "db", "--", "printenv", "DB"); o.code != 0 || o.out != "[secret]\n" {
		t.Errorf("beside it: %s", o)
	}
	if o := w.cli("exec", "--as", "other", "--credential", "db", "--", "true"); o.code != 125 || !strings.Contains(o.err, "1 leases that this credential allows") {
		t.Errorf("somebody else: %s", o)
	}
	_ = first.Process.Signal(syscall.SIGTERM)
	first.ends(128 + 15)
	if live := w.leases(); len(live) != 0 {
		t.Errorf("left over: %v", live)
	}
	a := w.agent("alice")
	id := lendExec(t, a, "db")
	if o := w.cli("exec", "--as", "alice", "--credential", "db", "--", "true"); o.code != 0 {
		t.Errorf("%s", o)
	}
	if o := w.cli("exec", "--lease", id, "--", "true"); o.code != 0 {
		t.Errorf("%s", o)
	}
	if _, there := w.leases()[id]; !there {
		t.Error("the agent's own lease ended with a command")
	}
}

// TestExecIsForItsHolder: a lease that a token opened wants that token; one that was given by value runs nothing; what
// the policy takes back it takes from the next command too. A bad token is never downgraded to a name.
func TestExecIsForItsHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.seed(secretOf("db", ""))
	token, _ := w.token("ci")
	other, _ := w.token("ci")
	prover := w.agentOf(spec{client: "x", env: []string{"KEYLEASE_TOKEN=" + token}})
	proven, plain, byValue := lendExec(t, prover, "db"), "", ""
	a := w.agent("alice")
	plain, byValue = lendExec(t, a, "db"), lend(t, a, "db", "delivery", "value")
	with := func(token string, argv ...string) outcome {
		cmd := exec.Command(w.bin, append([]string{"exec"}, argv...)...)
		if cmd.Env = w.env(); token != "none" {
			cmd.Env = w.env("KEYLEASE_TOKEN=" + token)
		}
		return w.run(cmd, "")
	}
	const neutral = "no such credential or lease is available to you"
	for name, c := range map[string]struct {
		token, lease, as string
		says             string // "": it runs
	}{
		"the token's own lease":          {token, proven, "", ""},
		"without it":                     {"none", proven, "", neutral},
		"by its name alone":              {"none", proven, "ci", neutral},
		"with another of that name":      {other, proven, "", neutral},
		"with one that is none":          {"kl_fake", proven, "", "the token of this command is not valid"},
		"with an empty one":              {"", plain, "alice", "the token of this command is not valid"},
		"with one that is none, by name": {"kl_fake", plain, "alice", "the token of this command is not valid"},
		"a declared one's own":           {"none", plain, "alice", ""},
		"any process of its uid":         {"none", plain, "bob", ""},
		"one that was given by value":    {"none", byValue, "alice", "not granted for delivery by exec"},
	} {
		argv := []string{"--lease", c.lease}
		if c.as != "" {
			argv = append(argv, "--as", c.as)
		}
		o := with(c.token, append(argv, "--", "printenv", "DB")...)
		if ran := o.code == 0 && o.out == "[secret]\n"; ran != (c.says == "") || !strings.Contains(o.err, c.says) {
			t.Errorf("%s: %s", name, o)
		}
	}
	w.policy("version: 1\nrules:\n  - {name: values, identities: [\"*\"], credentials: [\"*\"], delivery: [value]}\n")
	if o := with("none", "--lease", plain, "--as", "alice", "--", "true"); o.code != 125 || !strings.Contains(o.err, neutral) {
		t.Errorf("after the policy was edited: %s", o)
	}
	if len(denied(w.audit(), proven)) == 0 {
		t.Error("the trail has nothing of who was refused")
	}
}

// TestExecOfAnotherUser: a lease's id is worth nothing to another uid.
func TestExecOfAnotherUser(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.up()
	s.seed(secretOf("db", ""))
	alice := s.agentAs(agentUID, "claude-code")
	id := lendExec(t, alice, "db")
	prefix, _ := call(t, alice, "lease_credential", args{"credential": "db", "delivery": "exec"}).body["use"].(map[string]any)
	if text := fmt.Sprint(prefix["command_prefix"]); !strings.Contains(text, "--socket "+s.agents()+" exec --as claude-code --lease ls_") {
		t.Errorf("the agent is told %s", text)
	}
	for uid, runs := range map[int]bool{agentUID: true, groupUID: false, otherUID: false, adminUID: false} {
		o := s.as(uid, s.bin, "exec", "--socket", s.agents(), "--as", "claude-code", "--lease", id, "--", "printenv", "DB")
		if ran := o.code == 0 && o.out == "[secret]\n"; ran != runs || !ran && o.code != 125 {
			t.Errorf("uid %d: %s", uid, o)
		}
	}
	if o := s.as(adminUID, s.bin, "exec", "--socket", s.admins(), "--credential", "db", "--", "true"); o.code != 125 || !strings.Contains(o.err, "this is the admin's socket") {
		t.Errorf("by the admin's socket: %s", o)
	}
}

// TestExecOutlivesItsSessionAndTheDaemon: a command that runs holds its lease, whatever becomes of the MCP session that
// opened it, and of the daemon: killed, stopped or handed over, the lease goes on and is there to be ended.
func TestExecOutlivesItsSessionAndTheDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	id := lendExec(t, a, "db")
	long := w.startExec(append([]string{"--lease", id}, heedful...)...)
	long.says("ready")
	opened := w.startExec("--as", "bob", "--credential", "db", "--", "sh", "-c", `echo ready; while ! [ -e finish ]; do sleep 0.02; done; printenv DB`)
	opened.says("ready")
	a.leave()
	for _, end := range []func(){func() { w.killDaemon() }, w.stopDaemon, func() { w.killDaemon() }} {
		end()
		w.eventually("both commands are back at a daemon", func() error {
			live := w.leases()
			for _, l := range live {
				if l.Orphaned {
					return fmt.Errorf("%+v", live)
				}
			}
			if len(live) != 2 {
				return fmt.Errorf("%+v", live)
			}
			return nil
		})
	}
	select {
	case <-long.ended:
		t.Fatalf("it was stopped: %q %q", long.out, long.err)
	default:
	}
	w.write(filepath.Join(w.home, "finish"), "")
	opened.ends(0)
	if live := w.leases(); len(live) != 1 || live[id].LeaseID != id {
		t.Errorf("the lease that was opened for a command did not end with it: %v", live)
	}
	w.ok("release", id)
	long.ends(9)
	w.verified()
}

// TestExecLeavesWhenItsCommandHas: what the command left behind may go on, but holds nobody up; what the command printed
// is passed on whole, however much, and without being kept.
func TestExecLeavesWhenItsCommandHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	began := time.Now()
	o := w.cli("exec", "--credential", "db", "--", "sh", "-c", `sleep 30 & (while sleep 0.1; do echo noise; done) & echo $!; exit 3`)
	if took := time.Since(began); o.code != 3 || took > 15*time.Second {
		t.Errorf("after %s: %s", took, o)
	}
	pid, err := strconv.Atoi(strings.Fields(o.out)[0])
	w.must(err)
	group, err := syscall.Getpgid(pid)
	w.must(err) // it goes on
	w.must(syscall.Kill(-group, syscall.SIGKILL))

	o = w.cli("exec", "--credential", "db", "--", "sh", "-c", `exec >&- 2>&-; sleep 0.1; exit 4`)
	if o.code != 4 || o.out+o.err != "" {
		t.Errorf("a command that closes its stdout: %s", o)
	}
	const mebibytes = 200
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`"$0" exec --credential db -- sh -c 'head -c %dM /dev/zero; grep VmHWM /proc/$PPID/status >&2' | wc -c`, mebibytes), w.bin)
	o = w.run(cmd, "")
	fields := strings.Fields(o.err)
	if len(fields) != 3 || strings.TrimSpace(o.out) != strconv.Itoa(mebibytes<<20) {
		t.Fatalf("much output: %s", o)
	}
	if most, _ := strconv.Atoi(fields[1]); most > 64<<10 {
		t.Errorf("keylease exec grew to %d KiB", most)
	}
	// Who reads it leaves: the command ends as it would without us.
	o = w.run(exec.Command("sh", "-c", `("$0" exec --credential db -- sh -c 'yes; echo $? >&2') | head -n 1`, w.bin), "")
	if o.out != "y\n" || strings.Contains(o.err, "keylease") {
		t.Errorf("yes | head: %s", o)
	}
}

// TestExecFileIsInMemoryAndGoesAway: 0600 in a 0700 folder on a file system in memory; gone after the command, however
// that ends.
func TestExecFileIsInMemoryAndGoesAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	var fs syscall.Statfs_t
	if syscall.Statfs("/dev/shm", &fs) != nil || fs.Type != 0x01021994 {
		o := w.cli("exec", "--credential", "db", "--file", "KEY", "--", "true")
		if o.code != 125 || !strings.Contains(o.err, "no place in memory") {
			t.Errorf("%s", o)
		}
		t.Skip("/dev/shm is not in memory here")
	}
	disk, place := t.TempDir(), "/dev/shm/keylease-"
	if syscall.Statfs(disk, &fs) == nil && fs.Type == 0x01021994 {
		place = filepath.Join(disk, "keylease-")
	}
	for name, how := range map[string]string{"it ends": "", "SIGTERM": `kill -TERM $PPID; sleep 20`, "SIGINT": `kill -INT $PPID; sleep 20`} {
		cmd := exec.Command(w.bin, "exec", "--credential", "db", "--file", "KEY", "--", "sh", "-c", `stat -c %a "$KEY" "$(dirname "$KEY")"; sha256sum < "$KEY"; echo "$KEY"; env | grep -c ^DB=; `+how)
		cmd.Env = w.env("XDG_RUNTIME_DIR=" + disk)
		o := w.run(cmd, "")
		lines := strings.Split(o.out, "\n")
		if len(lines) < 5 || lines[0] != "600" || lines[1] != "700" || !strings.HasPrefix(lines[2], shaOf(valueOf("db"))) || !strings.HasPrefix(lines[3], place) || lines[4] != "0" {
			t.Fatalf("%s: %s", name, o)
		}
		if exists(filepath.Dir(lines[3])) {
			t.Errorf("%s: %s is still there", name, lines[3])
		}
	}
}

// TestExecWaitsForAPersonsYes: a command on a credential that wants an approval waits for it, and runs after a yes alone.
func TestExecWaitsForAPersonsYes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy("version: 1\nrules:\n  - {name: asked, identities: [\"*\"], credentials: [\"*\"], approval: operator}\n")
	w.seed(secretOf("db", ""))
	waits := func() (*running, string) {
		r := w.startExec("--credential", "db", "--", "sh", "-c", "echo ran; printenv DB")
		w.eventually("it says what has to be approved", func() error {
			if !strings.Contains(r.err.String(), "keylease approve ap_") {
				return fmt.Errorf("%q", r.err)
			}
			return nil
		})
		_, id, _ := strings.Cut(r.err.String(), "keylease approve ")
		return r, strings.Fields(id)[0]
	}
	r, id := waits()
	w.ok("approve", id)
	r.ends(0)
	if r.out.String() != "ran\n[secret]\n" {
		t.Errorf("%q", r.out)
	}
	r, id = waits()
	w.ok("deny", id)
	r.ends(125)
	if r.out.String() != "" || !strings.Contains(r.err.String(), "a person said no") {
		t.Errorf("%q, %q", r.out, r.err)
	}
	r, id = waits()
	w.must(r.Process.Signal(syscall.SIGINT)) // whoever waits gives up
	r.ends(130)
	r, same := waits()
	if id != same {
		t.Errorf("%s became %s", id, same)
	}
	_ = r.Process.Kill() // it is the same question to whoever comes next
	again, next := waits()
	w.stopDaemon() // and at the next daemon
	w.ok("approve", next)
	again.ends(0)
	if id != next {
		t.Errorf("%s became %s", id, next)
	}
}

// TestRunRunsWhatTheAdminFixed: the argv of expose.commands and nothing else, under its credential's variable.
func TestRunRunsWhatTheAdminFixed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const commands = `expose: {env: MY_KEY, commands: {greet: [/bin/sh, -c, 'echo "$0 $MY_KEY"', hello], gone: [/no/such/program]}}`
	w.seed(secretOf("db", commands), secretOf("other", strings.Replace(commands, "greet", "part", 1)))
	if o := w.cli("run", "greet"); o.code != 0 || o.out != "hello [secret]\n" {
		t.Errorf("%s", o)
	}
	for name, c := range map[string]struct {
		code int
		says string
		argv []string
	}{
		"of a credential":          {0, "hello [secret]", []string{"db/greet"}},
		"of two":                   {125, "several credentials have a command of this name", []string{"gone"}},
		"a program that is gone":   {127, "there is no such program: /no/such/program", []string{"other/gone"}},
		"of another credential":    {125, "is available to you", []string{"other/greet"}},
		"with an argument":         {125, "takes 1 argument(s)", []string{"greet", "more"}},
		"with an argument for it":  {125, "takes 1 argument(s)", []string{"greet", "--", "more"}},
		"with a flag that is none": {125, "unknown flag", []string{"--lease", "ls_x", "greet"}},
	} {
		if o := w.cli(append([]string{"run"}, c.argv...)...); o.code != c.code || !strings.Contains(o.out+o.err, c.says) {
			t.Errorf("%s: %s", name, o)
		}
	}
	if live := w.leases(); len(live) != 0 {
		t.Errorf("left over: %v", live)
	}
}

// TestExecConnectionsThatMisbehave: what is no begin gets an error or nothing, and lends nothing; who says nonsense
// later, or only leaves, has ended; who does not acknowledge a lease's end holds nobody up; a bad token begins nothing.
func TestExecConnectionsThatMisbehave(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve("--http", "off")
	w.seed(secretOf("db", ""))
	const hello = `{"keylease":1,"kind":"exec","version":"1","as":"raw"}`
	dial := func(hello string) *raw {
		c, err := w.rawLocal(hello)
		w.must(err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.r.ReadString('\n')
		w.must(err)
		return c
	}
	for _, line := range []string{`{}`, `nonsense`, `[]`, `{"begin":null}`, `{"begin":{}}`, `{"begin":7}`, `{"begin":{"credential":"db","lease_id":"ls_x"}}`, `{"begin":{"credential":"db","ttl":-5}}`,
		`{"begin":{"credential":"db","credential":"db"}}`, `{"exit":0}`, `{"stopping":true}`, `{"begin":{"credential":"` + strings.Repeat("x", 9000) + `"}}`, `{"begin":{"credential":"../db"}}`,
		`{"begin":{"credential":"db","purpose":"` + strings.Repeat("x", 201) + `"}}`} {
		c := dial(hello)
		if answer, err := c.ask(line); err != nil || !strings.HasPrefix(answer, `{"error":{"code":"`) {
			t.Errorf("%.60s: %q, %v", line, answer, err)
		}
		if _, err := c.r.ReadByte(); err == nil {
			t.Errorf("%.60s: the connection goes on", line)
		}
	}
	c := dial(strings.Replace(hello, `"as":"raw"`, `"as":"raw","token":"kl_fake"`, 1))
	if answer, err := c.ask(`{"begin":{"credential":"db"}}`); err != nil || !strings.Contains(answer, `"code":"unauthenticated"`) {
		t.Errorf("a bad token: %q, %v", answer, err)
	}
	begin := func() *raw {
		c := dial(hello)
		if answer, err := c.ask(`{"begin":{"credential":"db","program":"raw"}}`); err != nil || !strings.HasPrefix(answer, `{"granted":{"lease_id":"ls_`) {
			t.Fatalf("%q, %v", answer, err)
		}
		return c
	}
	for name, end := range map[string]func(*raw) error{
		"leaves":        func(c *raw) error { return c.Close() },
		"says nonsense": func(c *raw) error { _, err := c.Write([]byte("nonsense\n")); return err },
		"says too much": func(c *raw) error { _, err := c.Write([]byte(strings.Repeat("x", 20_000))); return err },
		"has ended":     func(c *raw) error { _, err := c.Write([]byte(`{"exit":0}` + "\n")); return err },
	} {
		w.must(end(begin()))
		w.eventually("who "+name+" holds nothing", func() error {
			if live := w.leases(); len(live) != 0 {
				return fmt.Errorf("%v", live)
			}
			return nil
		})
	}
	c = begin()
	began := time.Now()
	w.ok("revoke-leases", "--all")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("who acknowledges nothing held it up for %s", took)
	}
	if told, err := c.r.ReadString('\n'); err != nil || told != `{"ended":"revoked by an admin"}`+"\n" {
		t.Errorf("%q, %v", told, err)
	}
	w.verified()
}
