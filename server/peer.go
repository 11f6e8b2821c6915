package server

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// localPeer is the process at the other end of a local connection, as the kernel says.
type localPeer struct{ UID, PID int }

type localPeerKey struct{}

// peerFrom returns the local process behind an admin request.
func peerFrom(ctx context.Context) (localPeer, bool) {
	p, ok := ctx.Value(localPeerKey{}).(localPeer)
	return p, ok
}

func withPeer(ctx context.Context, p localPeer) context.Context {
	return context.WithValue(ctx, localPeerKey{}, p)
}

// samePeer returns who is at the other end, or ErrUntrusted where that is not our own user.
func samePeer(conn net.Conn) (localPeer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return localPeer{}, fmt.Errorf("%w: not a local socket", ErrUntrusted)
	}
	peer, err := peerOf(uc)
	if err != nil {
		return localPeer{}, fmt.Errorf("asking the kernel for the socket's peer: %w", err)
	}
	if peer.UID != os.Geteuid() {
		return peer, fmt.Errorf("%w: the process behind it belongs to uid %d, not %d", ErrUntrusted, peer.UID, os.Geteuid())
	}
	return peer, nil
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
	live map[int]int // pid of a relay → its open connections
}

func newMCPPeers(look func(int) (process, bool), self string) *mcpPeers {
	return &mcpPeers{look: look, self: self, live: map[int]int{}}
}

// join notes a connection of pid and returns what undoes it.
func (m *mcpPeers) join(pid int) (leave func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[pid]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.live[pid]--; m.live[pid] <= 0 {
			delete(m.live, pid)
		}
	}
}

// descends reports whether pid is a relay, runs below one, or runs below the program that started one (the agent's
// client), and which. A session leader (a person's shell), init and keylease itself do not make their children agents.
func (m *mcpPeers) descends(pid int) (why string, yes bool) {
	m.mu.Lock()
	suspects := make(map[int]string, 2*len(m.live))
	relays := make([]int, 0, len(m.live))
	for relay := range m.live {
		suspects[relay] = "an MCP connection"
		relays = append(relays, relay)
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
	if !ok || p.session == pid {
		return false
	}
	return !m.isKeylease(p.exe)
}

func (m *mcpPeers) isKeylease(exe string) bool {
	exe = strings.TrimSuffix(exe, " (deleted)")
	return exe != "" && (exe == m.self || filepath.Base(exe) == "keylease")
}
