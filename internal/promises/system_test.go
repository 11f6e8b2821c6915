//go:build linux

package promises

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestB8SystemMode: agents of the users and groups that are let in lease, each as its own uid; other users get nothing;
// and nothing that the daemon keeps can be read by an agent's user.
func TestB8SystemMode(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.up()
	s.seed(secretOf("db", ""))
	alice, bob := s.agentAs(agentUID, "claude-code"), s.agentAs(groupUID, "claude-code")
	hers, his := lend(t, alice, "db"), lend(t, bob, "db")

	// One declared name, two users: two principals.
	wantCode(t, bob, "not_available", "release_lease", args{"lease_id": hers})
	wantCode(t, bob, "not_available", "lease_credential", args{"lease_id": hers})
	if list := call(t, bob, "list_credentials", args{}); strings.Contains(list.raw, hers) || !strings.Contains(list.raw, his) {
		t.Errorf("bob sees %s", list.raw)
	}
	for _, e := range find(s.audit(), "lease.created") {
		uid := map[string]int{hers: agentUID, his: groupUID}[e.LeaseID]
		if e.Identity.By != fmt.Sprintf("uid:%d", uid) || e.Identity.Proof != "declared" || !strings.Contains(e.Details["peer"], " keylease < ") {
			t.Errorf("recorded as %+v", e)
		}
	}

	// Who is not let in, and who administers, is nobody there.
	for _, uid := range []int{otherUID, adminUID, daemonUID} {
		a, err := s.start(spec{client: "x", flags: []string{"--socket", s.agents()}, user: s.users[uid]})
		s.must(err)
		if err := a.handshake(legacy); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("uid %d", uid)) {
			t.Errorf("uid %d at the agents' socket: %v", uid, err)
		}
		a.leave()
	}
	// A token says who it is over this socket too.
	text, record := s.token("ci")
	id := lend(t, s.agentAs(agentUID, "claude-code", "KEYLEASE_TOKEN="+text), "db")
	if by := s.leases()[id].Identity; by.Name != "ci" || by.Proof != "token" {
		t.Errorf("with the token %s it is %+v", record, by)
	}

	for _, path := range []string{s.data(), filepath.Join(s.data(), "store"), filepath.Join(s.config(), "policy.yaml"),
		filepath.Join(s.config(), "root.key"), s.anchors()} {
		for _, uid := range []int{agentUID, groupUID, otherUID} {
			if o := s.as(uid, "/bin/ls", path+"/."); o.code == 0 {
				t.Errorf("uid %d lists %s", uid, path)
			}
			if o := s.as(uid, "/bin/cat", path); o.code == 0 || !strings.Contains(o.err, "Permission denied") && !strings.Contains(o.err, "Is a directory") {
				t.Errorf("uid %d reads %s: %s", uid, path, o)
			}
		}
	}
	if text := s.ok("audit"); !strings.Contains(text, "claude-code (declared, uid:61002)") || !strings.Contains(text, "claude-code (declared, uid:61005)") {
		t.Errorf("the two are not told apart: %s", text)
	}
	if len(s.processes("serve")) != 1 {
		t.Error("somebody started another daemon")
	}
}

// TestA12SystemModeKeepsAdminsApart: admin verbs are for root, the daemon's user and admin.uids, on their own socket; an
// agent's user gets none of them on either.
func TestA12SystemModeKeepsAdminsApart(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.up()
	s.seed(secretOf("db", ""))
	lend(t, s.agentAs(agentUID, "claude-code"), "db")
	verbs := []string{"ls", "leases", "audit", "token create --identity eve", "revoke-leases --all", "rm db", "show db"}
	for _, uid := range []int{agentUID, groupUID, otherUID} {
		for _, socket := range []string{s.agents(), s.admins()} {
			for _, verb := range verbs {
				o := s.as(uid, append([]string{s.bin, "--socket", socket}, strings.Fields(verb)...)...)
				if o.code != 4 || strings.Contains(o.String(), "db") {
					t.Errorf("uid %d, %s at %s: %s", uid, verb, filepath.Base(socket), o)
				}
			}
		}
	}
	for _, uid := range []int{adminUID, daemonUID} {
		if o := s.as(uid, s.bin, "--socket", s.admins(), "leases"); o.code != 0 || !strings.Contains(o.out, "claude-code (declared, uid:61002)") {
			t.Errorf("uid %d administers: %s", uid, o)
		}
		if o := s.as(uid, s.bin, "--socket", s.agents(), "leases"); o.code != 4 {
			t.Errorf("uid %d at the agents' socket: %s", uid, o)
		}
	}
	a, err := s.start(spec{client: "x", flags: []string{"--socket", s.admins()}, user: s.users[adminUID]})
	s.must(err)
	if err := a.handshake(legacy); err == nil || !strings.Contains(err.Error(), "agents connect to") {
		t.Errorf("MCP at the admin's socket: %v", err)
	}
	a.leave()
	if o := s.as(adminUID, s.bin, "--socket", s.admins(), "revoke-leases", "--all"); o.code != 0 {
		t.Error(o)
	}
	revoked := find(s.audit(), "lease.revoked")
	if len(revoked) != 1 || revoked[0].Identity.By != fmt.Sprintf("uid:%d", adminUID) || revoked[0].Identity.Type != "human" {
		t.Errorf("in the trail: %+v", revoked)
	}
}

// TestB8SystemModeRefusesToStart: where an agent's user could change what decides, or be an admin, nothing starts.
func TestB8SystemModeRefusesToStart(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	good, err := os.ReadFile(filepath.Join(s.config(), "keylease.yaml"))
	s.must(err)
	inConfig := func(from, to string) func() {
		return func() { s.file("keylease.yaml", strings.Replace(string(good), from, to, 1)) }
	}
	chown := func(path string, uid, gid int) func() { return func() { s.must(os.Chown(path, uid, gid)) } }
	chmod := func(path string, mode os.FileMode) func() { return func() { s.must(os.Chmod(path, mode)) } }
	policy, key := filepath.Join(s.config(), "policy.yaml"), filepath.Join(s.config(), "root.key")
	for name, c := range map[string]struct {
		break_, mend func()
		says         string
	}{
		"an agent's policy":            {chown(policy, agentUID, daemonUID), chown(policy, 0, daemonUID), policy},
		"no policy":                    {func() { s.must(os.Remove(policy)) }, func() { s.file("policy.yaml", openPolicy) }, "system mode needs a policy, and there is no " + policy},
		"a policy of an agents' group": {func() { chown(policy, 0, agentGID)(); chmod(policy, 0o660)() }, func() { chown(policy, 0, daemonUID)(); chmod(policy, 0o640)() }, policy},
		"a stranger's configuration":   {chown(s.config(), otherUID, daemonUID), chown(s.config(), 0, daemonUID), s.config()},
		"a folder for everybody":       {chmod(s.config(), 0o777), chmod(s.config(), 0o750), s.config()},
		"an agent's key":               {chown(key, agentUID, agentUID), chown(key, daemonUID, daemonUID), key},
		"an agent's folder far above":  {chown(filepath.Join(s.home, ".config"), agentUID, 0), chown(filepath.Join(s.home, ".config"), 0, 0), filepath.Join(s.home, ".config") + " belongs"},
		"an agent's anchors":           {chown(s.anchors(), agentUID, agentUID), chown(s.anchors(), daemonUID, daemonUID), s.anchors()},
		"an agent's socket folder":     {chown(s.run(), agentUID, agentUID), chown(s.run(), daemonUID, daemonUID), s.run()},
		"the daemon as agent":          {inConfig("[61002]", "[61002, 61001]"), inConfig("", ""), "uid 61001 is both"},
		"root as agent":                {inConfig("[61002]", "[root]"), inConfig("", ""), "uid 0 is both"},
		"root's group as agents'":      {inConfig("[61012]", "[61012, 0]"), inConfig("", ""), "group 0 is root's own"},
		"an admin as agent":            {inConfig("[61002]", "[61004]"), inConfig("", ""), "uid 61004 is both"},
		"nobody of that name":          {inConfig("[61002]", "[no-such-user]"), inConfig("", ""), `socket.allow.uids: there is no "no-such-user"`},
		"no group of that name":        {inConfig("[61012]", "[no-such-group]"), inConfig("", ""), `socket.allow.groups: there is no "no-such-group"`},
		"one socket for both":          {inConfig("admin.sock", "agent.sock"), inConfig("", ""), "share the socket"},
		"admins who can't get there":   {inConfig("  admin: "+s.admins()+"\n", ""), inConfig("", ""), "set socket.admin"},
		"nobody let in":                {inConfig("allow: {uids: [61002], groups: [61012]}", "allow: {}"), inConfig("", ""), "nobody is named in socket.allow"},
	} {
		c.break_()
		if o := s.as(daemonUID, s.bin, "serve"); o.code == 0 || !strings.Contains(o.err, c.says) || !strings.Contains(o.err, "keylease: hint: ") {
			t.Errorf("%s: %s", name, o)
		}
		c.mend()
	}
	if o := s.cli("serve"); o.code != 1 || !strings.Contains(o.err, "this is root") {
		t.Errorf("as root: %s", o)
	}
	if _, err := os.Stat(filepath.Join(s.data(), "keycheck")); err == nil {
		t.Error("a store was made")
	}
	s.up() // all is mended
}

// TestB8bSquattedSystemSocket: a socket that somebody else could have put where one is looked for is sent nothing, not
// even a hello, and the exit code is 7.
func TestB8bSquattedSystemSocket(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	everybodys := filepath.Join(s.home, "tmp") // as /tmp is
	s.folder(everybodys, 0, 0o777|os.ModeSticky)
	s.folder(filepath.Join(everybodys, "keylease"), otherUID, 0o755) // the squatter was there first
	s.folder(filepath.Join(s.home, "shared"), 0, 0o777)
	s.folder(filepath.Join(s.home, "shared", "keylease"), otherUID, 0o755)
	s.folder(filepath.Join(s.home, "mixed"), daemonUID, 0o755)
	for name, path := range map[string]string{
		"in a folder of everybody's":      filepath.Join(everybodys, "agent.sock"),
		"in a squatter's folder":          filepath.Join(everybodys, "keylease", "agent.sock"),
		"below a folder that others open": filepath.Join(s.home, "shared", "keylease", "agent.sock"),
		"in another daemon's folder":      filepath.Join(s.home, "mixed", "agent.sock"),
	} {
		if strings.HasPrefix(path, filepath.Join(s.home, "mixed")) {
			s.must(os.Chmod(filepath.Dir(path), 0o777)) // for a moment
		}
		heard := squat(t, otherUID, path)
		if strings.HasPrefix(path, filepath.Join(s.home, "mixed")) {
			s.must(os.Chmod(filepath.Dir(path), 0o755))
		}
		if o := s.as(agentUID, s.bin, "--socket", path, "leases"); o.code != 7 || !strings.Contains(o.err, "cannot be trusted") {
			t.Errorf("%s: the CLI: %s", name, o)
		}
		a, err := s.start(spec{client: "x", flags: []string{"--socket", path}, env: []string{"KEYLEASE_TOKEN=kl_fake"}, user: s.users[agentUID]})
		s.must(err)
		if err := a.handshake(legacy); err == nil || !strings.Contains(err.Error(), "cannot be trusted") {
			t.Errorf("%s: the relay: %v", name, err)
		}
		a.leave()
		// A socket with another owner than the process behind it.
		s.must(os.Chown(path, agentUID, agentUID))
		if o := s.as(agentUID, s.bin, "--socket", path, "leases"); o.code != 7 {
			t.Errorf("%s, with another's name on it: %s", name, o)
		}
		select {
		case text := <-heard:
			t.Errorf("%s: the squatter heard %q", name, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
	// All looks right, but who is behind it is not the socket's owner.
	path := filepath.Join(s.home, "rooted", "agent.sock")
	s.folder(filepath.Dir(path), 0, 0o777)
	heard := squat(t, otherUID, path)
	s.folder(filepath.Dir(path), 0, 0o755)
	s.must(os.Chown(path, daemonUID, daemonUID))
	if o := s.as(agentUID, s.bin, "--socket", path, "leases"); o.code != 7 || !strings.Contains(o.err, "belongs to uid 61003") {
		t.Errorf("another process than the socket's owner's: %s", o)
	}
	select {
	case text := <-heard:
		t.Errorf("it heard %q", text)
	case <-time.After(20 * time.Millisecond):
	}
}
