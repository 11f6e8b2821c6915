package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"keylease/internal/identity"
	"keylease/internal/pace"
)

const (
	maxPartyWaiting = 64              // requests of one principal that wait for their turn; more are refused
	httpWait        = 2 * time.Second // how long they wait, and how long a refusal takes where it would be asked for again at once
	restTime        = 500 * time.Millisecond
	httpWriteTime   = 10 * time.Second // a client that takes nothing of an answer for so long is gone
)

// webBounds keeps the callers of the HTTP side from taking it from each other.
type webBounds struct {
	*tempo
	crowd    *crowd
	failures *pace.Paces // requests without a valid token, by address
	wait     time.Duration
	guests   sync.Map // net.Conn → *webGuest, while it is open
	last     atomic.Int64
}

// webGuest is one connection. Until a request on it has proved to be somebody's it is its network's, and quiet whatever
// it is at.
type webGuest struct {
	*guest
	name string // for its rate
}

type webGuestKey struct{}

func newWebBounds(l Limits, now func() time.Time) *webBounds {
	return &webBounds{tempo: newTempo(l, now), crowd: newCrowd(l.HTTPConnections), wait: httpWait,
		failures: pace.New(l.FailureRate, l.FailureBurst)}
}

// opened is an http.Server's ConnContext: it lets the connection in, or closes it where there is no room.
func (b *webBounds) opened(ctx context.Context, conn net.Conn) context.Context {
	below := conn
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok { // closing TLS in order would wait for the peer
		below = over.NetConn()
	}
	g := b.crowd.enter("nobody at "+network(conn.RemoteAddr().String()), func() { _ = below.Close() })
	if g == nil {
		_ = below.Close()
		return ctx
	}
	w := &webGuest{g, fmt.Sprintf("conn:%d", b.last.Add(1))}
	b.guests.Store(conn, w)
	return context.WithValue(ctx, webGuestKey{}, w)
}

// changed is an http.Server's ConnState.
func (b *webBounds) changed(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	if w, ok := b.guests.LoadAndDelete(conn); ok {
		w.(*webGuest).exit()
		b.each.Forget(w.(*webGuest).name)
	}
}

func webGuestOf(r *http.Request) *webGuest {
	if w, ok := r.Context().Value(webGuestKey{}).(*webGuest); ok {
		return w
	}
	return &webGuest{} // a request that came by no connection: a test's
}

// network is whom a peer's address belongs to, as far as counting and the trail go (what a header says does not):
// whoever has one IPv6 address has 2^64, and whoever is on this machine has all of 127.0.0.0/8.
func network(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	ip, err := netip.ParseAddr(addr)
	switch {
	case err != nil:
		return addr
	case ip.Unmap().IsLoopback():
		return "loopback"
	case ip.Unmap().Is4():
		return ip.Unmap().String()
	}
	prefix, _ := ip.WithZone("").Prefix(64)
	return prefix.String()
}

// turnAway answers a request that proved nobody, whatever is wrong with it. An address that has sent too many of them
// waits for each further one, so that tokens are tried slowly; what comes with a valid token from there is not held up.
func (h *httpHandler) turnAway(w http.ResponseWriter, r *http.Request, f *fault) {
	if h.bounds.failures.Take(network(r.RemoteAddr), h.Now(), 0) > 0 {
		sleep(r.Context(), h.bounds.wait)
		if f.status < 500 { // else it is we who can't tell, and who asks is to know
			f = rateLimited("too many requests without a valid token came from this address", h.bounds.wait)
		}
	}
	f.refuse(w, r)
}

// refuse is write for a request whose body was not read. What is left of it is not waited for, but for a moment: what
// lies unread when a connection is closed makes the kernel take the answer back.
func (f *fault) refuse(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		f.close = true
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restTime))
	}
	f.write(w)
}

// unhurried lets what anybody may ask be asked at the rate of one caller by all of an address together, whatever its
// connections. It reports whether the turn came.
func (h *httpHandler) unhurried(r *http.Request) bool {
	return h.bounds.await(r.Context().Done(), h.bounds.wait, webGuestOf(r).name, "nobody at "+network(r.RemoteAddr))
}

// inTurn lets p make one more request, now or a little later, and marks its connection as used until done is called.
func (h *httpHandler) inTurn(r *http.Request, p identity.Principal) (done func(), f *fault) {
	g := webGuestOf(r)
	g.belong(p.RateKey())
	if h.bounds.turn(g.name, p.RateKey()) > 0 {
		if f := h.queue(r, p, func() bool { return h.bounds.await(r.Context().Done(), h.bounds.wait, g.name, p.RateKey()) }); f != nil {
			return nil, f
		}
	}
	g.begin()
	return g.end, nil
}

// queue has a request of p wait until come says that its turn has come, or that it never will. A connection that waits
// may be closed to make room.
func (h *httpHandler) queue(r *http.Request, p identity.Principal, come func() bool) *fault {
	leave, f := h.sessions.wait(p)
	if f == nil {
		came := come()
		leave()
		if came {
			return nil
		}
	} else {
		sleep(r.Context(), h.bounds.wait)
	}
	f = rateLimited("too many calls under this token in too short a time", time.Second)
	f.close = true
	return f
}

// call admits one more call of p, now or when another one of its calls ends; done must follow.
func (h *httpHandler) call(r *http.Request, p identity.Principal) (done func(), f *fault) {
	if done, f = h.sessions.call(p); f == nil {
		return done, nil
	}
	g := webGuestOf(r)
	g.end()
	defer g.begin()
	ctx, cancel := context.WithTimeout(r.Context(), h.bounds.wait)
	defer cancel()
	f = h.queue(r, p, func() bool {
		done = h.sessions.callLater(ctx, p)
		return done != nil
	})
	return done, f
}
