package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// System makes a daemon one that other users' agents share (system mode): it has a user of its own, and two sockets.
// On the agents' socket (Paths.Socket) only "mcp" is spoken, on the admin's everything else. Who may come in is decided
// by the uid that the kernel names; a socket's mode only lets everybody try.
type System struct {
	AgentUIDs   []int
	AgentGroups []int // gids, primary or supplementary; never 0
	AdminUIDs   []int // beside root and the daemon's own
	AdminSocket string
	Guarded     []string // what decides over the daemon: configuration, policy, root key
}

// UnsafeError: system mode would not keep agents and admins apart, so the daemon does not start.
type UnsafeError struct{ What, Remedy string }

func (e *UnsafeError) Error() string { return e.What }

// check refuses a start that would give an agent what is an admin's.
func (s *System) check(p Paths) error {
	if slices.Contains(s.AgentGroups, 0) {
		return &UnsafeError{"group 0 is root's own, and can't be an agents' group: who is in it may write what is closed to all but root",
			"take it out of socket.allow.groups, and make a group for those whose agents may lease"}
	}
	me := os.Geteuid()
	if me == 0 {
		return &UnsafeError{"system mode needs a user of its own, and this is root",
			"run it as its own user, as the systemd unit does (User=keylease), so that a fault of it is not root's"}
	}
	for _, uid := range s.AgentUIDs {
		if s.administers(uid) {
			return &UnsafeError{fmt.Sprintf("an agent's uid can't be an admin's, and uid %d is both", uid),
				"take it out of socket.allow.uids; the daemon's own uid, root and admin.uids administer"}
		}
	}
	if s.AdminSocket == p.SocketPath() {
		return &UnsafeError{"agents and admins would share the socket " + s.AdminSocket, "give them two: socket.path and socket.admin"}
	}
	if len(s.AdminUIDs) > 0 && filepath.Dir(s.AdminSocket) == filepath.Clean(p.Data) {
		return &UnsafeError{"admin.uids can't reach the admin's socket in the data folder " + p.Data, "set socket.admin, as in /run/keylease/admin.sock"}
	}
	guarded := append([]string{p.Data, filepath.Dir(p.SocketPath()), filepath.Dir(s.AdminSocket)}, s.Guarded...)
	for _, path := range guarded {
		if err := onlyRootAnd(me, path); err != nil {
			return &UnsafeError{"system mode is not safe: " + err.Error(),
				fmt.Sprintf("%s, and every folder above it, must be root's or uid %d's and closed to the writing of others (chown, chmod go-w): whoever can change it is the admin", path, me)}
		}
	}
	return nil
}

func (s *System) administers(uid int) bool {
	return uid == 0 || uid == os.Geteuid() || slices.Contains(s.AdminUIDs, uid)
}

// agent refuses a peer on the agents' socket. Who administers is no agent there, whatever groups it is in.
func (s *System) agent(p *localPeer) error {
	switch {
	case s.administers(p.UID):
		return &HelloError{string(CodeDenied), fmt.Sprintf("uid %d administers this keylease: an agent needs another user, and admin commands another socket (%s)", p.UID, s.AdminSocket)}
	case slices.Contains(s.AgentUIDs, p.UID), slices.ContainsFunc(s.AgentGroups, func(gid int) bool { return gid != 0 && p.in(gid) }): // 0: see check
		return nil
	}
	return &HelloError{string(CodeDenied), fmt.Sprintf("this keylease does not lend to uid %d: ask the operator to add it to socket.allow", p.UID)}
}

func (s *System) operator(p *localPeer) error {
	if s.administers(p.UID) {
		return nil
	}
	return &HelloError{string(CodeDenied), fmt.Sprintf("uid %d does not administer this keylease", p.UID)}
}

// ourselves is the rule of own-user mode.
func ourselves(p *localPeer) error {
	if p.UID != os.Geteuid() {
		return fmt.Errorf("%w: the process behind it belongs to uid %d, not %d", ErrUntrusted, p.UID, os.Geteuid())
	}
	return nil
}

// door is one local socket: who may come in by it, and what for.
type door struct {
	net.Listener
	admits func(*localPeer) error
	kinds  []string
	other  string // where to go for another kind; "" where there is nothing else
	crowds
}

// crowds are those who came by one door: in the hall until they said what they want, and then by that. What fills one of
// them leaves the others alone: agents can't lock the admin out, not even where one socket is for both.
type crowds struct{ hall, agents, admins *crowd }

const (
	hallRoom  = 128 // connections that have not said hello
	adminRoom = 32  // connections of admin commands
)

func newCrowds(agents int) crowds {
	c := crowds{newCrowd(hallRoom), newCrowd(agents), newCrowd(adminRoom)}
	c.admins.never = true // a trail that somebody follows must not keep "keylease freeze" out
	return c
}

func (c crowds) roomOf(kind string) *crowd {
	if kind == kindMCP || kind == kindExec {
		return c.agents
	}
	return c.admins
}

// worthSaying lets the log name a stranger once a minute: in system mode anybody may knock, and as often as he likes.
func (d *daemon) worthSaying(p *localPeer) bool {
	if p == nil {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.Now()
	if last, known := d.strangers[p.UID]; known && now.Sub(last) < time.Minute {
		return false
	}
	if len(d.strangers) >= 1000 || d.strangers == nil {
		d.strangers = map[int]time.Time{}
	}
	d.strangers[p.UID] = now
	return true
}

func (d door) opens(kind string) error {
	if slices.Contains(d.kinds, kind) {
		return nil
	}
	if kind == kindMCP || kind == kindExec {
		return &HelloError{string(CodeDenied), "this is the admin's socket: agents connect to " + d.other}
	}
	return &HelloError{string(CodeDenied), "this is the agents' socket: no admin command is taken here"}
}

// openDoors opens the local sockets. The lock on the data folder is ours, so what lies at their paths and answers
// nobody is left over.
func openDoors(o Options) ([]door, error) {
	path := o.Paths.SocketPath()
	if o.System == nil {
		if err := ownFolder(filepath.Dir(path)); err != nil {
			return nil, err
		}
		sock, err := listenSocket(path, 0o600)
		return []door{{Listener: sock, admits: ourselves, kinds: []string{kindMCP, kindExec, kindAdmin, kindHandover}, crowds: newCrowds(o.Limits.LocalConnections)}}, err
	}
	agents, err := listenSocket(path, 0o666)
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600) // for our own uid, and root
	if len(o.System.AdminUIDs) > 0 {
		mode = 0o666
	}
	admins, err := listenSocket(o.System.AdminSocket, mode)
	if err != nil {
		_ = agents.Close()
		return nil, err
	}
	return []door{
		{Listener: agents, admits: o.System.agent, kinds: []string{kindMCP, kindExec}, crowds: newCrowds(o.Limits.LocalConnections)},
		{Listener: admins, admits: o.System.operator, kinds: []string{kindAdmin, kindHandover}, other: path, crowds: newCrowds(0)},
	}, nil
}

func listenSocket(path string, mode os.FileMode) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil { // of a daemon on another data folder
		_ = conn.Close()
		return nil, &PortError{path, syscall.EADDRINUSE}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %w", err)
	}
	sock, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil { // until here the umask, or the folder's mode, kept others out
		_ = sock.Close()
		return nil, fmt.Errorf("setting who may connect to the socket %s: %w", path, err)
	}
	return sock, nil
}
