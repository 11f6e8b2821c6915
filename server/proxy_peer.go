package server

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
)

// proxyPeer is who is at the other end of a connection to the proxy, as far as the system tells.
type proxyPeer struct {
	uid      string // "": the system can't tell
	local    bool   // came by the unix socket
	stranger bool   // nobody that the proxy serves
	source   string // for counting failures, and the trail
	guest    *webGuest
}

type proxyPeerKey struct{}

func proxyPeerOf(ctx context.Context) *proxyPeer {
	p, _ := ctx.Value(proxyPeerKey{}).(*proxyPeer)
	if p == nil {
		return &proxyPeer{stranger: true}
	}
	return p
}

// proxyDoors says whom the proxy serves: the daemon's own uid and, in system mode, those to whom the agents' door is
// open. TCP tells of no groups; where agents come by one, everybody but an admin may try, and the lease's own uid decides.
func proxyDoors(s *System) (byTCP func(uid int) bool, bySocket func(*localPeer) error) {
	if s == nil {
		return func(uid int) bool { return uid == os.Geteuid() }, ourselves
	}
	return func(uid int) bool {
		return !s.administers(uid) && (len(s.AgentGroups) > 0 || slices.Contains(s.AgentUIDs, uid))
	}, s.agent
}

// opened is the http.Server's ConnContext: it finds out who came, once for each connection.
func (p *proxy) opened(ctx context.Context, conn net.Conn) context.Context {
	peer := p.peerOf(conn)
	g := p.bounds.crowd.enter(peer.source, func() { _ = conn.Close() })
	if g == nil {
		_ = conn.Close()
		return ctx
	}
	peer.guest = &webGuest{g, fmt.Sprintf("conn:%d", p.bounds.last.Add(1))}
	p.bounds.guests.Store(conn, peer.guest)
	return context.WithValue(ctx, proxyPeerKey{}, peer)
}

func (p *proxy) peerOf(conn net.Conn) *proxyPeer {
	if at, ok := conn.(*net.TCPConn); ok {
		uid, tells := uidBehind(at)
		if !tells {
			return &proxyPeer{stranger: p.system, source: "proxy"} // where several users come, who is unknown is a stranger
		}
		if uid < 0 { // there is no such socket any more: nobody is there to take an answer
			return &proxyPeer{stranger: true, source: "proxy"}
		}
		return &proxyPeer{uid: strconv.Itoa(uid), stranger: !p.admits(uid), source: fmt.Sprintf("proxy uid:%d", uid)}
	}
	peer, err := peerAt(conn)
	if err != nil {
		return &proxyPeer{local: true, stranger: true, source: "proxy"}
	}
	defer peer.letGo()
	return &proxyPeer{uid: strconv.Itoa(peer.UID), local: true, stranger: p.door(peer) != nil, source: fmt.Sprintf("proxy uid:%d", peer.UID)}
}
