package server

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// localPeer is the process at the other end of a local connection, as the kernel says.
type localPeer struct {
	UID, GID, PID int
	Groups        []int // beside GID, which may be among them

	// life is the kernel's own handle on that process, for as long as the connection is served: a pid is only a number,
	// which another process has once this one is gone. nil where the kernel has no such thing.
	life interface {
		over() bool
		close()
	}
	lost bool // it had ended before it could be asked about
}

// gone reports whether the process that connected has ended. Where the kernel can't tell, it has not.
func (p *localPeer) gone() bool { return p.lost || p.life != nil && p.life.over() }

// letGo gives back what is held of the process. gone is true from then on.
func (p *localPeer) letGo() {
	if p.life != nil {
		p.life.close()
	}
}

// in reports whether the process runs in the group.
func (p *localPeer) in(gid int) bool { return p.GID == gid || slices.Contains(p.Groups, gid) }

type localPeerKey struct{}

// peerFrom returns the local process behind an admin request; nil where there is none.
func peerFrom(ctx context.Context) *localPeer {
	p, _ := ctx.Value(localPeerKey{}).(*localPeer)
	return p
}

func withPeer(ctx context.Context, p *localPeer) context.Context {
	return context.WithValue(ctx, localPeerKey{}, p)
}

// peerAt asks the kernel who is at the other end. The caller lets go of the answer.
func peerAt(conn net.Conn) (*localPeer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%w: not a local socket", ErrUntrusted)
	}
	peer, err := peerOf(uc)
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for the socket's peer: %w", err)
	}
	return peer, nil
}

// checkPeer reports ErrUntrusted unless the process at the other end belongs to uid.
func checkPeer(conn net.Conn, uid int) error {
	peer, err := peerAt(conn)
	if err != nil {
		return err
	}
	defer peer.letGo()
	if peer.UID != uid {
		return fmt.Errorf("%w: the process behind it belongs to uid %d, not %d", ErrUntrusted, peer.UID, uid)
	}
	return nil
}

// process is what the process table says of one pid.
type process struct {
	parent  int
	session int    // the session leader's pid
	exe     string // "" where unknown
}

// mcpPeers is the set of processes that hold an MCP connection. It is a hurdle for an agent that reaches for the admin
// verbs through its shell, not a wall: who wants to can leave the process tree.
type mcpPeers struct {
	look func(pid int) (process, bool)
	self string // our own executable: a keylease command may start relays and administer

	mu   sync.Mutex
	live map[*localPeer]struct{} // one for each open connection
}

func newMCPPeers(look func(int) (process, bool), self string) *mcpPeers {
	return &mcpPeers{look: look, self: self, live: map[*localPeer]struct{}{}}
}

// join notes a connection of relay and returns what undoes it.
func (m *mcpPeers) join(relay *localPeer) (leave func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[relay] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.live, relay)
	}
}

// descends reports whether pid is a relay, runs below one, or runs below the program that started one (the agent's
// client), and which. A shell that leads its session (a person's), what sessions are started by, init and keylease itself
// do not make their children agents.
func (m *mcpPeers) descends(pid int) (why string, yes bool) {
	m.mu.Lock()
	suspects := make(map[int]string, 2*len(m.live))
	relays := make([]int, 0, len(m.live))
	for relay := range m.live {
		if !relay.gone() { // or whoever has its number now would be taken for it
			suspects[relay.PID] = "an MCP connection"
			relays = append(relays, relay.PID)
		}
	}
	m.mu.Unlock()
	for _, relay := range relays {
		if p, ok := m.look(relay); ok && m.isClient(p.parent) {
			if _, also := suspects[p.parent]; !also {
				suspects[p.parent] = "an MCP client"
			}
		}
	}
	for hops := 0; pid > 1 && hops < 64; hops++ {
		if what, ok := suspects[pid]; ok {
			return fmt.Sprintf("process %d is %s", pid, what), true
		}
		p, ok := m.look(pid)
		if !ok {
			break
		}
		pid = p.parent
	}
	return "", false
}

func (m *mcpPeers) isClient(pid int) bool {
	if pid <= 1 {
		return false
	}
	p, ok := m.look(pid)
	if !ok || p.session == pid && leads(p.exe) {
		return false
	}
	return !m.isKeylease(p.exe)
}

// leads reports whether a program that leads a session is a person's shell, or has sessions of people below it. A client
// may lead one too: where a terminal, tmux or ssh starts it without a shell. exe is "" for what another user runs.
func leads(exe string) bool {
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return exe == "" || slices.Contains(leaders[:], name)
}

var leaders = [...]string{"sh", "ash", "bash", "busybox", "csh", "dash", "elvish", "fish", "ksh", "ksh93", "mksh", "nu", "oksh", "pwsh", "rbash", "tcsh", "xonsh", "yash", "zsh",
	"init", "systemd", "launchd", "runit", "s6-svscan", "tini", "dumb-init", "docker-init", "catatonit", "login", "sshd", "sshd-session", "su", "sudo", "tmux", "screen", "SCREEN", "zellij", "dtach"}

func (m *mcpPeers) isKeylease(exe string) bool {
	exe = strings.TrimSuffix(exe, " (deleted)")
	return exe != "" && (exe == m.self || filepath.Base(exe) == "keylease")
}

const (
	maxKinHops  = 8
	maxKinBytes = 300
)

// kin is the process and those above it, as "812 keylease < 790 /usr/bin/node < 611 /usr/bin/bash". It is an attribute
// for the record: every process chooses its own name and, to a degree, its parents, so nothing is decided by it. ""
// where the process is gone.
func kin(peer *localPeer, look func(int) (process, bool)) string {
	var b strings.Builder
	for pid, hops := peer.PID, 0; pid > 1; hops++ {
		p, ok := look(pid)
		if !ok {
			break
		}
		next := fmt.Sprintf("%d %s", pid, kinName(p.exe))
		if hops > 0 {
			next = " < " + next
		}
		if hops == maxKinHops || b.Len()+len(next) > maxKinBytes-len(kinMore) {
			b.WriteString(kinMore)
			break
		}
		b.WriteString(next)
		pid = p.parent
	}
	if peer.gone() { // while we looked: it may have been another's kin
		return ""
	}
	return b.String()
}

const kinMore = " < …"

// kinName quotes what could be read as more than one name.
func kinName(exe string) string {
	exe = cleanText(strings.TrimSuffix(exe, " (deleted)"), 120)
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._+-@:", r)
	}
	if exe == "" || strings.ContainsFunc(exe, func(r rune) bool { return !plain(r) }) {
		return strconv.Quote(exe)
	}
	return exe
}
