package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"keylease/internal/lease"
)

// ProxySocketPath returns where the proxy's socket is: beside the agents' socket, with proxy in its name.
func (p Paths) ProxySocketPath() string {
	dir, name := filepath.Split(p.SocketPath())
	if name = strings.TrimSuffix(name, ".sock"); name == "keylease" || name == "agent" {
		return dir + "proxy.sock"
	}
	return dir + name + "-proxy.sock"
}

// proxyPortFile holds the address that the proxy chose, so that base URLs outlive the daemon.
func (p *proxy) portFile() string { return filepath.Join(p.data, "proxy.address") }

// start opens the socket, and the port where it is looked for.
func (p *proxy) start(ctx context.Context, o Options) error {
	if err := p.openSocket(o); err != nil {
		return err
	}
	err := p.reopen(ctx)
	if err == nil && !o.Auto && p.Listen != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		err = p.open(p.Listen)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = &PortError{p.Listen, err}
	}
	return err
}

// openSocket listens on the unix socket, which is open for as long as the daemon is.
func (p *proxy) openSocket(o Options) error {
	mode := os.FileMode(0o600)
	if o.System != nil {
		mode = 0o666 // the kernel names who comes
	}
	l, err := listenSocket(o.Paths.ProxySocketPath(), mode)
	if err != nil {
		return err
	}
	p.serve(l)
	return nil
}

func (p *proxy) serve(l net.Listener) {
	p.serves.Go(func() { _ = p.http.Serve(l) })
}

// reopen listens again where live leases are looked for. A port that somebody else has by now may be sent their handles,
// so it ends them.
func (p *proxy) reopen(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broker.Proxied() == 0 {
		return nil
	}
	if err := p.open(p.kept()); !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return p.lost(ctx)
}

// lost ends the leases of a port that somebody else has. Caller holds mu.
func (p *proxy) lost(ctx context.Context) error {
	n, err := p.broker.RevokeProxied(ctx, "another program has the proxy's port")
	if err != nil {
		return fmt.Errorf("revoking the leases of a proxy whose port another program has: %w", err)
	}
	p.log.Warn().Str("address", p.kept()).Int("revoked", n).Msg("another program has the proxy's port: what leases by proxy were live is revoked, because it may have been sent their handles")
	return nil
}

// Origin is where the proxy is reached from this machine, as http://127.0.0.1:8701. It listens there from the first call
// on; the port is chosen once and kept.
func (p *proxy) Origin(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.origin != "" {
		return p.origin, nil
	}
	err := p.open(p.kept())
	if errors.Is(err, syscall.EADDRINUSE) && p.Listen == "" {
		if p.broker.Proxied() > 1 { // one is whose delivery asks
			if err := p.lost(ctx); err != nil {
				return "", err
			}
		}
		err = p.open("127.0.0.1:0")
	}
	if err != nil {
		p.log.Error().Err(err).Msg("the proxy can't listen")
		return "", &lease.Refusal{Code: lease.DeliveryUnavailable, Message: "the proxy can't listen on this machine right now",
			Hint: "Take another of the credential's deliveries, or tell the operator: the daemon's log says why."}
	}
	return p.origin, nil
}

// open listens on addr. Caller holds mu.
func (p *proxy) open(addr string) error {
	if p.over || p.origin != "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	at := l.Addr().String()
	if p.Listen == "" && at != p.kept() {
		if err := p.keep(at); err != nil {
			_ = l.Close()
			return err
		}
	}
	p.origin = "http://" + at
	p.serve(l)
	p.log.Info().Str("address", at).Msg("the proxy listens")
	return nil
}

// kept is the address to listen on.
func (p *proxy) kept() string {
	if p.Listen != "" {
		return p.Listen
	}
	text, err := os.ReadFile(p.portFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.log.Warn().Err(err).Msg("the proxy's old address can't be read; it chooses another")
	}
	at, err := netip.ParseAddrPort(strings.TrimSpace(string(text)))
	if err != nil || !at.Addr().IsLoopback() {
		return "127.0.0.1:0"
	}
	return at.String()
}

func (p *proxy) keep(at string) error {
	next := p.portFile() + ".new"
	if err := os.WriteFile(next, []byte(at+"\n"), 0o600); err != nil {
		return fmt.Errorf("keeping the proxy's address: %w", err)
	}
	return os.Rename(next, p.portFile())
}

// closed waits for what goes on after the server was shut down, which it is by then.
func (p *proxy) closed() {
	_ = p.http.Close()
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.serves.Wait()
	p.told.Wait()
	p.leases.close()
}
