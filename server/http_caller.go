package server

import (
	"net"
	"net/http"
	"net/netip"

	"keylease/internal/identity"
)

// sender is caller as the one who sent r: what its token is good for, and whether it is on this machine.
func sender(r *http.Request, caller identity.Caller) identity.Caller {
	caller.Scopes = entrantOf(r.Context()).Scopes
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	caller.Remote = elsewhere(r.RemoteAddr, local)
	return caller
}

// elsewhere reports whether peer is on another machine than the end local of its connection, and so can't reach what
// listens on loopback here: who connects to an address of their own machine comes from it. Whom a proxy in front of us
// stands for is not known, and taken for here: what they are offered then does not work, and gives nothing away.
func elsewhere(peer string, local net.Addr) bool {
	from, err := netip.ParseAddrPort(peer)
	if err != nil {
		return true
	}
	ip := from.Addr().Unmap()
	if ip.IsLoopback() {
		return false
	}
	if local == nil {
		return true
	}
	to, err := netip.ParseAddrPort(local.String())
	return err != nil || ip.WithZone("") != to.Addr().Unmap().WithZone("")
}
