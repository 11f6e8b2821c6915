//go:build linux

package promises

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEightAtOnce: eight relays that start in the same instant in an empty home, and again over a store whose daemon is
// gone, all get their answers, from one daemon.
func TestEightAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := func() {
		t.Helper()
		if pids := w.processes("serve"); len(pids) != 1 || pids[0] != w.holder() {
			t.Fatalf("daemons: %v; in the lock: %d", pids, w.holder())
		}
	}
	eight := func(tool string, a args) {
		t.Helper()
		together(t, 8, func(i int) error {
			agent, err := w.start(spec{client: fmt.Sprintf("agent-%d", i), modern: i%2 == 1})
			if err == nil && !agent.spec.modern {
				err = agent.handshake(legacy)
			}
			if err != nil {
				return err
			}
			got, err := agent.try(tool, a)
			if err == nil && got.refused {
				err = errors.New(got.raw)
			}
			return err
		})
		one()
	}
	eight("list_credentials", args{})
	w.seed(secretOf("db", ""))
	for _, pid := range w.processes("mcp") {
		w.must(syscall.Kill(pid, syscall.SIGKILL))
	}
	w.killDaemon()
	eight("lease_credential", args{"credential": "db"})
	if n := len(w.leases()); n != 8 {
		t.Fatalf("%d of eight have a lease", n)
	}
	if n := len(find(w.audit(), "server.started")); n != 2 {
		t.Fatalf("two starts, %d in the trail", n)
	}
	w.verified()
}

// TestB10NothingOfAnAgentsFolderReachesTheDaemon: what a repository's .mcp.json can set — environment, working folder,
// files in it — touches the relay, and nothing of the daemon that everybody shares.
func TestB10NothingOfAnAgentsFolderReachesTheDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := filepath.Join(w.home, "project")
	elsewhere := filepath.Join(w.home, "hostile")
	const config = "data: /hostile\nhttp: 0.0.0.0:1\nlog: {level: debug}\nidleStop: 1s\n"
	for _, name := range []string{"keylease.yaml", ".config/keylease/keylease.yaml", "policy.yaml", "root.key"} {
		w.write(filepath.Join(project, name), config)
	}
	hostile := []string{"HTTPS_PROXY=http://hostile:1", "HTTP_PROXY=http://hostile:1", "ALL_PROXY=http://hostile:1", "SSL_CERT_FILE=/hostile.pem",
		"SSL_CERT_DIR=/hostile", "GODEBUG=netdns=hostile", "GOTRACEBACK=crash", "GOMEMLIMIT=1", "GOGC=1", "LD_PRELOAD=/hostile.so", "TMPDIR=" + elsewhere,
		"XDG_CONFIG_HOME=" + elsewhere, "XDG_DATA_HOME=" + elsewhere, "KEYLEASE_HTTP=0.0.0.0:1", "KEYLEASE_LOG__LEVEL=debug", "KEYLEASE_DATA=" + elsewhere,
		"KEYLEASE_POLICY_FILE=" + elsewhere, "KEYLEASE_ROOT_KEY_FILE=" + elsewhere, "KEYLEASE_ROOT_KEY=" + strings.Repeat("ab", 32), "KEYLEASE_IDLE_STOP=1s",
		"KEYLEASE_NO_SUCH=1", "PWD=" + project}
	a := w.agentOf(spec{client: "claude-code", env: hostile, dir: project})
	call(t, a, "list_credentials", args{})
	pids := w.processes("serve")
	if len(pids) != 1 || pids[0] != w.holder() {
		t.Fatalf("daemons: %v; holder of the data folder in HOME: %d", pids, w.holder())
	}
	proc := func(file string) string { return fmt.Sprintf("/proc/%d/%s", pids[0], file) }
	cmdline, err := os.ReadFile(proc("cmdline"))
	w.must(err)
	if bytes.Contains(cmdline, []byte("project")) || bytes.Contains(cmdline, []byte("hostile")) {
		t.Errorf("its arguments: %q", cmdline)
	}
	if _, err := os.Stat(elsewhere); err == nil {
		t.Errorf("%s was made", elsewhere)
	}
	if _, err := os.Stat(filepath.Join(w.config(), "root.key")); err != nil {
		t.Errorf("the root key is not where HOME says: %v", err)
	}
	environ, err := os.ReadFile(proc("environ"))
	if errors.Is(err, os.ErrPermission) {
		t.Skip("only root may read the environment of a process that can't be dumped")
	}
	w.must(err)
	var names []string
	for _, pair := range strings.Split(strings.TrimRight(string(environ), "\x00"), "\x00") {
		name, _, _ := strings.Cut(pair, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"HOME", "LANG", "LOGNAME", "PATH", "USER"}; !slices.Equal(names, want) {
		t.Errorf("its environment has %v, want %v", names, want)
	}
	if bytes.Contains(environ, []byte("hostile")) || bytes.Contains(environ, []byte("project")) {
		t.Errorf("its environment: %q", environ)
	}
	if cwd, err := os.Readlink(proc("cwd")); err != nil || cwd != "/" {
		t.Errorf("it works in %q: %v", cwd, err)
	}
}

// TestB10NoDescriptorIsInherited: what a client left open for its children does not stay open in a daemon that outlives
// it: somebody would wait for the end of that pipe.
func TestB10NoDescriptorIsInherited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	call(t, w.agent("alice"), "list_credentials", args{}) // below a shell that leaves it a pipe as descriptor 4
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.holder()))
	if w.must(err); len(open) == 0 {
		t.Skip("only root may look at the descriptors of a process that can't be dumped")
	}
	for _, fd := range open {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, "pipe:") {
			t.Errorf("the daemon inherited %s as descriptor %s", to, filepath.Base(fd))
		}
	}
}

// TestF9WhenTheHolderDies: a client killed without a word leaves its leases behind; they end after the grace, unless the
// same principal comes back within it. A lease that has no session stays.
func TestF9WhenTheHolderDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("grace: 2s\n")
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("web")
	a, b, other := w.agent("alice"), w.agent("bob"), w.agent("carol")
	stream := w.sse(s.addr, token)
	hers, his, unbound := lend(t, a, "db"), lend(t, b, "db"), lend(t, w.web(s.addr, token, true), "db")
	hung := lend(t, stream, "db")
	left := time.Now()
	a.die()
	b.die()
	stream.close()
	w.eventually("three leases are orphaned", func() error {
		if n := len(find(w.audit(), "lease.orphaned")); n != 3 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	w.agent("alice") // comes back
	if live := w.leases(); len(live) != 4 || live[hers].Orphaned || !live[his].Orphaned || !live[hung].Orphaned {
		t.Fatalf("within the grace: %+v", live)
	}
	call(t, other, "list_credentials", args{}) // somebody else's coming adopts nothing
	w.eventually("bob's leases end", func() error {
		if live := w.leases(); len(live) != 2 {
			return fmt.Errorf("%v", live)
		}
		return nil
	})
	if after := time.Since(left); after < 2*time.Second {
		t.Errorf("they ended after %s, within the grace", after)
	}
	books, live := w.books(), w.leases()
	if books.ended[his] != "lease.expired" || books.ended[hung] != "lease.expired" || live[hers].LeaseID == "" || live[unbound].LeaseID == "" {
		t.Errorf("ended: %v, live: %v", books.ended, live)
	}
	for _, e := range find(w.audit(), "lease.adopted") {
		if e.Identity.Name != "alice" || e.LeaseID != hers {
			t.Errorf("adopted: %+v", e)
		}
	}
}

// TestF10ASeedFileLeftInPlace: running it again after rotate, rm, revoke and edits brings nothing back that leaked and
// undoes nothing; each thing that it would have undone is reported and recorded.
func TestF10ASeedFileLeftInPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	items := []string{secretOf("rotated", ""), secretOf("removed", ""), secretOf("revoked", ""), secretOf("edited", "metadata: {team: a}")}
	file := w.seedFile(items...)
	s := w.serve("--seed", file)
	a := w.agent("alice")
	has := func(name, value string) {
		t.Helper()
		if got := call(t, a, "lease_credential", args{"credential": name}); got.get("value") != value {
			t.Errorf("%s: want %q, got %s", name, value, got.raw)
		}
	}
	if o := w.cliIn("fake-new-value", "rotate", "rotated"); o.code != 0 {
		t.Fatal(o)
	}
	w.ok("rm", "removed")
	w.ok("revoke", "revoked")
	items[3] = strings.Replace(secretOf("edited", "metadata: {team: b}"), valueOf("edited"), "fake-second-value", 1)
	w.ok("seed", w.seedFile(items[3]))
	check := func(why string) {
		t.Helper()
		has("rotated", "fake-new-value")
		has("edited", "fake-second-value")
		wantCode(t, a, "not_available", "lease_credential", args{"credential": "removed"})
		wantCode(t, a, "not_available", "lease_credential", args{"credential": "revoked"})
		w.refused(3, "show", "removed")
		if got := call(t, a, "list_credentials", args{"match": "edited"}); !strings.Contains(got.raw, `"team":"b"`) {
			t.Errorf("%s: the edit is undone: %s", why, got.raw)
		}
	}
	check("before")
	var report struct {
		Results []struct{ Name, Action string } `json:"results"`
	}
	o := w.cli("seed", w.seedFile(items...), "--json")
	if err := json.Unmarshal([]byte(o.out), &report); err != nil || o.code != 8 {
		t.Fatalf("%v: %s", err, o)
	}
	if got := fmt.Sprint(report.Results); got != "[{rotated unchanged} {removed conflict} {revoked conflict} {edited unchanged}]" {
		t.Errorf("a second run: %s", got)
	}
	check("after a second run")
	items[0] = secretOf("rotated", "metadata: {new: thing}")
	old := secretOf("edited", "metadata: {team: b}") // with the value that was rotated out
	o = w.cli("seed", w.seedFile(items[0], old))
	if o.code != 8 {
		t.Errorf("a value that was rotated out: %s", o)
	}
	check("after a run with an old value")
	if code := s.stop(); code != 0 {
		t.Fatal(s.log)
	}
	w.serve("--seed", w.seedFile(items...))
	a.reconnected()
	check("after a restart with --seed")
	if n := len(find(w.audit(), "seed.conflict")); n < 5 {
		t.Errorf("%d conflicts are in the trail", n)
	}
	if n := len(find(w.audit(), "credential.rotated")); n != 2 {
		t.Errorf("two rotations, %d in the trail", n)
	}
}

// skewed puts another version's binary in the place of this world's, as a package manager does.
func (w *world) skewed() {
	w.t.Helper()
	data, err := os.ReadFile(w.bin)
	w.must(err)
	was := []byte("mod\tkeylease\t(devel)")
	if !bytes.Contains(data, was) {
		w.t.Fatal("the binary does not say its version where this test looks for it")
	}
	data = bytes.ReplaceAll(data, was, []byte("mod\tkeylease\tv9.9.99"))
	w.must(writeProgram(w.bin+".new", data))
	w.must(os.Rename(w.bin+".new", w.bin))
	if v := w.ok("version"); !strings.Contains(v, "v9.9.99") {
		w.t.Fatalf("the new binary calls itself %s", v)
	}
}

// TestF11ClientsStayOpen: stdio and HTTP clients of each era stay open through a kill -9 of the daemon, its idle stop, a
// seed re-run, a policy edit, and a newer binary in its place; each leases after each, and is never restarted.
func TestF11ClientsStayOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("idleStop: 1s\n")
	w.policy(openPolicy)
	file := w.seedFile(secretOf("db", ""))
	s := w.serve("--seed", file)
	token, _ := w.token("web")
	local := map[string]caller{"stdio": w.agent("alice"), "modern stdio": w.agentOf(spec{client: "bob", modern: true})}
	all := map[string]caller{"http": w.web(s.addr, token, false), "modern http": w.web(s.addr, token, true)}
	for name, c := range local {
		all[name] = c
	}
	lease := func(after string, clients map[string]caller) {
		t.Helper()
		for name, c := range clients {
			got, err := c.try("lease_credential", args{"credential": "db"})
			if err != nil || got.get("value") != valueOf("db") {
				t.Fatalf("%s, after %s: %v %s", name, after, err, got.raw)
			}
			if got := call(t, c, "release_lease", args{"lease_id": got.lease()}); got.get("status") != "released" {
				t.Fatalf("%s, after %s: %s", name, after, got.raw)
			}
		}
	}
	again := func() { t.Helper(); s = w.serve("--http", s.addr, "--seed", file) }
	lease("the start", all)

	s.kill()
	lease("kill -9", local) // the relays start a daemon
	again()                 // which gives way to this one
	lease("kill -9 and a restart", all)

	w.must(s.Process.Signal(syscall.SIGTERM))
	<-s.exited
	lease("the daemon was stopped", local)
	w.eventually("the daemon stops, being idle", func() error {
		if pids := w.processes("serve"); len(pids) > 0 {
			return fmt.Errorf("%v run", pids)
		}
		return nil
	})
	lease("idle stop", local)
	again()
	lease("idle stop and a restart", all)

	w.ok("seed", file)
	lease("a seed re-run", all)
	w.policy(openPolicy + "    maxLeaseTTL: 5m\n")
	lease("a policy edit", all)

	s.stop()
	lease("another stop", local)
	before := w.holder()
	w.skewed()
	newer := w.agent("carol") // its relay is of the new version and has the old daemon replaced
	lease("a newer relay came", map[string]caller{"new stdio": newer})
	if now := w.holder(); now == before {
		t.Errorf("the daemon of the old version stays: pid %d", now)
	}
	lease("the binary was replaced", local)
	again()
	lease("the binary was replaced and the daemon restarted", all)
	w.books()
	w.verified()
}
