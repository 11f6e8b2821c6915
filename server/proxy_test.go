package server

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"keylease/internal/use"
)

// TestD6TheDialerAsksForTheAddressItself: a public service's name that leads to this machine, or to a cloud's metadata,
// is not connected to, whatever the resolver said a moment ago.
func TestD6TheDialerAsksForTheAddressItself(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	plan := func(u use.Upstream) *use.Plan {
		p, err := u.Plan()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	public := plan(use.Upstream{Service: "openai"})
	local := plan(use.Upstream{URL: "http://" + l.Addr().String(), Header: "X-Key: {value}", Allow: []string{"* /**"}})
	w := ways{upstreams: newUpstreams(nil, nil)}
	dial := func(p *use.Plan, to string) error {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := w.to(u, p)
		if err != nil {
			t.Skip(err) // no authorities on this machine
		}
		if tr.Proxy != nil {
			t.Error("there is a proxy")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := tr.DialContext(ctx, "tcp", l.Addr().String()) // as if the name had been resolved to it
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := dial(public, "https://api.openai.com"); !errors.Is(err, errAddress) {
		t.Errorf("a public name that leads to loopback: %v", err)
	}
	if err := dial(local, "http://"+l.Addr().String()); err != nil {
		t.Errorf("the address that stands in the url: %v", err)
	}
	for addr, ok := range map[string]bool{"169.254.169.254:80": false, "10.0.0.1:443": false, "[::1]:443": false, "[::ffff:127.0.0.1]:443": false, "[fe80::1%lo]:443": false,
		"0.0.0.0:443": false, "93.184.216.34:443": true, "[2606:2800:220:1::1]:443": true, "nonsense": false} {
		if err := allowed(public, addr); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestTheHandlesInAHeader(t *testing.T) {
	const a, b = "klh_ABCDEFGHIJKLMNOPQRSTUVWXY2", "klh_ZZZZZZZZZZZZZZZZZZZZZZZZZ7"
	for v, want := range map[string]string{
		a: a, "Bearer " + a: a, "token " + a: a, "key=" + a + ";x": a, "Basic a2xoXw==": "", "Basic " + "!": "",
		"Basic eDprbGhfQUJDREVGR0hJSktMTU5PUFFSU1RVVldYWTI=": a, "basic eDprbGhfQUJDREVGR0hJSktMTU5PUFFSU1RVVldYWTI": a,
		a + "x": "", a[:29]: "", strings.ToLower(a): "", "klh_" + a: a, a + ", " + b: a + " " + b, "": "",
	} {
		if got := strings.Join(handlesIn(v), " "); got != want {
			t.Errorf("%q: %q, want %q", v, got, want)
		}
	}
}

func TestHeadersThatServersReadAsOthersDoNotPass(t *testing.T) {
	for name, ok := range map[string]bool{"Content-Type": true, "X-Mine": true, "Anthropic-Version": true, "Idempotency-Key": true, "X_forwarded_for": false, "X-Http-Method-Override": false,
		"x-http-method": false, "Cookie": false, "Range": false, "Proxy-Authorization": false, "X-Original-Url": false, "X.Y": false, "Referer": false, "X-Forwarded-Anything": false} {
		if passesOn(name) != ok {
			t.Errorf("%s: %v", name, !ok)
		}
	}
}

func TestTheProxySocketLiesBesideTheAgents(t *testing.T) {
	for in, want := range map[Paths]string{{Data: "/d"}: "/d/proxy.sock", {Socket: "/run/keylease/agent.sock"}: "/run/keylease/proxy.sock",
		{Socket: "/x/mine.sock"}: "/x/mine-proxy.sock"} {
		if got := in.ProxySocketPath(); got != want {
			t.Errorf("%+v: %s", in, got)
		}
	}
	long := Paths{Data: "/" + strings.Repeat("x", 200)}
	if got := long.ProxySocketPath(); len(got) > MaxSocketPath || got == long.SocketPath() {
		t.Errorf("%s", got)
	}
	if long := (Paths{Socket: "/" + strings.Repeat("x", 94) + ".sock"}); len(long.ProxySocketPath()) > 107 {
		t.Errorf("%d bytes", len(long.ProxySocketPath()))
	}
}

// TestBothWaysToAskWhoseAConnectionIsAgree: sock_diag and the table in /proc.
func TestBothWaysToAskWhoseAConnectionIsAgree(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, "localhost:0")
		if err != nil {
			continue
		}
		defer l.Close()
		near, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		check := func(want int) {
			t.Helper()
			for name, got := range bothUIDs(netip.MustParseAddrPort(far.RemoteAddr().String()), netip.MustParseAddrPort(far.LocalAddr().String())) {
				if got != want {
					t.Errorf("%s by %s: %d, want %d", network, name, got, want)
				}
			}
		}
		check(ourUID)
		_ = near.Close()
		check(-1)
	}
}
