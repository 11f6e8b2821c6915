package server

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"keylease/internal/identity"
)

// accept lets local connections in by one door until that is closed.
func (d *daemon) accept(at door) {
	for {
		conn, err := at.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, most likely: some will come back
			d.Log.Error().Err(err).Msg("accepting a local connection")
			time.Sleep(50 * time.Millisecond)
			continue
		}
		d.wg.Go(func() { d.welcome(conn, at) })
	}
}

// welcome finds out who came and what for.
func (d *daemon) welcome(conn net.Conn, at door) {
	defer func() {
		if p := recover(); p != nil {
			d.Log.Error().Str("panic", panicText(p)).Bytes("stack", debug.Stack()).Msg("serving a local connection")
			_ = conn.Close()
		}
	}()
	peer, err := peerAt(conn)
	if err == nil {
		defer peer.letGo()
		d.lives.Do(func() {
			if !knowsLives(peer) {
				d.Log.Debug().Msg("this kernel has no SO_PEERPIDFD: a process that takes the number of one that ended is not told from it")
			}
		})
		err = at.admits(peer)
	}
	if err != nil {
		if d.worthSaying(peer) {
			d.Log.Warn().Err(err).Msg("refused a local connection")
		}
		d.refuse(conn, err)
		return
	}
	asked := make(chan struct{}) // to leave, before it said what it wants
	leave := sync.OnceFunc(func() { close(asked); _ = conn.Close() })
	newcomer := at.hall.enter(d.party(peer), leave) // never nil: nobody there is at work
	defer newcomer.exit()
	if !d.greet(conn, leave) {
		leave()
		return
	}
	var r *bufio.Reader
	var h hello
	err = &HelloError{"rate_limited", "this process or user opens too many connections in too short a time: wait a second"}
	if d.bounds.await(asked, helloTime, peer.process(), peer.user()) { // before a byte of it is parsed
		r = bufio.NewReaderSize(conn, lineBuffer)
		h, err = readHello(conn, r)
	}
	d.greet(conn, nil)
	if err == nil {
		err = checkHello(h)
	}
	if err == nil {
		err = at.opens(h.Kind)
	}
	if err != nil {
		d.refuse(conn, err)
		return
	}
	g := at.roomOf(h.Kind).enter(d.party(peer), leave)
	newcomer.exit()
	if g == nil {
		d.refuse(conn, &HelloError{"rate_limited", "the daemon has as many local connections as it may, and all of yours are in use: close some"})
		return
	}
	defer g.exit()
	switch h.Kind {
	case kindMCP:
		d.serveMCP(conn, r, h, peer, g)
	case kindExec:
		d.serveExec(conn, r, h, peer, g)
	case kindAdmin:
		d.serveAdmin(conn, r, peer, g)
	case kindHandover:
		g.begin()
		d.serveHandover(conn)
	}
}

// party is who makes room for whom on the local socket: where more than one user may come, users; else processes.
func (d *daemon) party(peer *localPeer) string {
	if d.System != nil {
		return peer.user()
	}
	return peer.process()
}

// greet keeps the connections that have not said hello yet, and how to end them (nil: it has): a daemon that stops
// does not wait for them. It reports false once the daemon stops.
func (d *daemon) greet(conn net.Conn, leave func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if leave != nil && !d.ending {
		d.greeting[conn] = leave
	} else {
		delete(d.greeting, conn)
	}
	return !d.ending
}

func checkHello(h hello) error {
	if !slices.Contains([]string{kindMCP, kindExec, kindAdmin, kindHandover}, h.Kind) {
		return &HelloError{"invalid_argument", "the hello asks for something that this daemon does not know"}
	}
	if (h.Kind == kindMCP || h.Kind == kindExec) && h.Token == "" && h.As != "" {
		if err := identity.CheckName(h.As); err != nil {
			return &HelloError{"invalid_argument", cleanText(err.Error(), 400)}
		}
	}
	return nil
}

func (d *daemon) serveMCP(conn net.Conn, r *bufio.Reader, h hello, peer *localPeer, g *guest) {
	c := newMCPConn(d.local, d.bounds, conn, r, h, peer)
	c.kin, c.guest = kin(peer, d.peers.look), g
	c.prove()
	g.asked(c.putAside)
	d.mu.Lock()
	d.conns[c] = struct{}{}
	if d.ending {
		c.stop(controlStop)
	}
	d.mu.Unlock()
	leave := d.peers.join(peer)
	defer func() {
		leave()
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
	}()
	d.answer(conn, c.badToken)
	c.serve()
}

func (d *daemon) serveAdmin(conn net.Conn, r *bufio.Reader, peer *localPeer, g *guest) {
	d.answer(conn, false)
	d.admins.Add(1)
	d.touch()
	admin := &adminConn{readConn: readConn{conn, r}, peer: peer, guest: g, closed: make(chan struct{})}
	select {
	case d.adminIn <- admin:
		<-admin.closed
	case <-d.over:
		_ = conn.Close()
	}
	d.admins.Add(-1)
	d.touch()
}

// serveHandover ends a daemon that a relay started, for a newer one or for one that a person starts. The connection
// stays until the process is gone, so that its end can be waited for.
func (d *daemon) serveHandover(conn net.Conn) {
	defer conn.Close()
	if !d.Auto {
		d.refuse(conn, &HelloError{"conflict", "this daemon was started by hand and does not hand over"})
		return
	}
	d.answer(conn, false)
	d.end("handover")
}

func (d *daemon) answer(conn net.Conn, badToken bool) {
	_ = conn.SetWriteDeadline(time.Now().Add(helloTime))
	_, _ = conn.Write(append(mustJSON(helloAnswer{Keylease: helloVersion, OK: true, Version: d.Version,
		PID: os.Getpid(), Auto: d.Auto, BadToken: badToken}), '\n'))
	_ = conn.SetWriteDeadline(time.Time{})
}

// refuse says why and closes. A peer that left or said nothing is not answered.
func (d *daemon) refuse(conn net.Conn, err error) {
	defer conn.Close()
	var why *HelloError
	if !errors.As(err, &why) {
		if !errors.Is(err, io.EOF) {
			d.Log.Debug().Err(err).Msg("a local connection ended before its hello")
		}
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write(append(mustJSON(helloAnswer{Keylease: helloVersion, Version: d.Version, Error: why}), '\n'))
}

// adminConn is a local connection that speaks HTTP from here on.
type adminConn struct {
	readConn
	peer   *localPeer
	guest  *guest
	once   sync.Once
	closed chan struct{}
}

func (c *adminConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.readConn.Close()
}

// inUse keeps an admin connection that a request runs on from being closed to make room.
func (c *adminConn) inUse(state http.ConnState) {
	switch state {
	case http.StateActive:
		c.guest.begin()
	case http.StateIdle:
		c.guest.end()
	}
}

// chanListener hands an http.Server the connections that said they are for it.
type chanListener struct {
	in     <-chan net.Conn
	addr   net.Addr
	once   sync.Once
	closed chan struct{}
}

func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.in:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *chanListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *chanListener) Addr() net.Addr { return l.addr }
