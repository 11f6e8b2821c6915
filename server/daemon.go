// Package server is how agents and operators reach keylease: the relay on a client's stdio, the daemon's local socket,
// Streamable HTTP and SSE, and the admin API. Its rule: who is calling is settled here, from what the transport
// proves, before mcp-go or a tool sees a byte; nothing inside a request changes it.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/federation"
	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/passphrase"
	"keylease/store"
	"keylease/tools"
)

// Options is what a daemon is made of.
type Options struct {
	// Open gives the broker once this process holds the data folder, hence after another daemon has let go of it; the
	// func it returns closes broker and store. Broker is used instead where it is open already.
	Open   func(context.Context) (*lease.Broker, func() error, error)
	Broker *lease.Broker
	// MCP is served in the place of the three tools, behind the same doors: the conformance suite wants tools of its
	// own. nil: the three tools.
	MCP     *mcpserver.MCPServer
	Proxy   ProxyOptions
	Command []string // for the tools: see tools.Options

	Log            zerolog.Logger
	Version        string
	Paths          Paths
	HTTPAddr       string   // "": no HTTP
	AllowedHosts   []string // names beside the address's own by which HTTP may be called
	AllowedOrigins []string // for HTTP
	Resource       string   // what HTTP is called in tokens of other issuers; "": there are none
	Foreign        *federation.Directory
	TLS            *TLSFiles // the files of HTTP's certificate; nil: plain HTTP, on loopback alone
	System         *System   // nil: own-user mode
	Auto           bool      // started by a relay or a command, not by a person: hands over, and stops when idle
	IdleStop       time.Duration
	Reload         <-chan struct{} // read the policy again (SIGHUP)
	Ready          func(Listening) // called once when everything listens
	Now            func() time.Time
	Limits         Limits
	Passphrase     passphrase.Hash // what approving wants to be given; zero: nothing

	inProcess bool          // Standalone: takes no daemon's place
	hurry     time.Duration // tests: instead of lineTime and writeTime
}

// Listening is where a daemon can be reached.
type Listening struct {
	Socket string `json:"socket"`
	Proxy  string `json:"proxy,omitempty"` // the proxy's socket; its port is opened with the first lease
	Admin  string `json:"admin,omitempty"` // the admin's socket, where that is another
	HTTP   string `json:"http,omitempty"`  // host:port, the host as it was asked for
	TLS    bool   `json:"tls,omitempty"`   // HTTP is https
}

const (
	defaultIdleStop = 30 * time.Minute
	stopTime        = 2 * time.Second
	takeoverTime    = 15 * time.Second
	serverStopped   = "stopped"
)

// backend is what the daemon serves. Serve makes it of a Broker.
type backend struct {
	local
	admin    http.Handler
	exec     func(context.Context, identity.Caller, lease.ExecRequest) (*lease.Use, error)
	await    func(ctx context.Context, caller identity.Caller, approval string) // until that question was answered
	web      *httpHandler                                                       // nil: no HTTP
	proxy    *proxy                                                             // nil: none
	activity func() lease.Activity
	started  func(context.Context, Listening) error
	run      func(context.Context) error
	reload   func(context.Context)
	stopped  func(ctx context.Context, reason string) error
	close    func() error
}

// daemon is one running server.
type daemon struct {
	Options
	backend
	listening Listening
	peers     *mcpPeers
	bounds    *bounds
	tls       *tlsKeeper   // nil: plain HTTP
	lastCall  atomic.Int64 // unix nanoseconds
	admins    atomic.Int64 // open admin connections
	stop      chan string  // a reason; the first one counts
	adminIn   chan net.Conn
	over      chan struct{} // closed when the daemon begins to stop
	verbs     gate
	lives     sync.Once // whether the kernel knows lives was said

	mu        sync.Mutex        // guards the next four
	strangers map[int]time.Time // uid → when the log named it last
	ending    bool
	greeting  map[net.Conn]func() // have not said hello yet: what ends them
	conns     map[interface{ stop(why string) }]struct{}
	wg        sync.WaitGroup // the doors, and the connections being served
}

// Serve runs the daemon until ctx ends, it is asked to hand over, or (Auto) nobody needs it. It holds Data/lock all
// the while, which makes it the only one on its data folder. Where a daemon that was started by a relay holds it, that
// one is asked to hand over first. Errors: *RunningError, *PortError, ErrUntrusted, ErrUnsupported, or what Open gave.
func Serve(ctx context.Context, o Options) error {
	return serve(ctx, o, func(ctx context.Context, d *daemon) (backend, error) {
		b, closeAll := o.Broker, func() error { return nil }
		if b == nil {
			var err error
			if b, closeAll, err = o.Open(ctx); err != nil {
				return backend{}, err
			}
		}
		return d.backendOf(b, closeAll), nil
	})
}

func (d *daemon) backendOf(b *lease.Broker, closeAll func() error) backend {
	px := newProxy(proxySetup{ProxyOptions: d.Proxy, Broker: b, Log: d.Log, Limits: d.Limits, System: d.System, Data: d.Paths.Data, Called: d.touch, Now: d.Now})
	mcp := d.MCP
	if mcp == nil {
		mcp = tools.NewServer(tools.Options{Broker: b, Log: d.Log, Version: d.Version, Proxy: px.Origin, ProxySocket: d.listening.Proxy, Command: d.Command})
	}
	return backend{
		proxy: px,
		local: local{mcp: mcp, attach: b.Attach, detach: b.Detach, lapse: b.Lapse,
			authenticate: b.Authenticate, log: d.Log, called: d.touch},
		admin: newAdminHandler(adminOptions{Broker: b, Log: d.Log, Version: d.Version, Peers: d.peers, Auto: d.Auto,
			Handover: func() { d.end("handover") }, Listening: func() Listening { return d.listening }, Now: d.Now, Passphrase: d.Passphrase}),
		exec: b.Exec, await: b.Await,
		web: newHTTPHandler(httpOptions{Broker: b, Log: d.Log, MCP: mcp, Addr: d.listening.HTTP,
			AllowedHosts: d.AllowedHosts, AllowedOrigins: d.AllowedOrigins, Resource: d.Resource, Foreign: d.Foreign, TLS: d.tls,
			Limits: d.Limits, Called: d.touch, Now: d.Now}),
		activity: b.Activity,
		started: func(ctx context.Context, l Listening) error {
			return b.Started(ctx, store.DetailsOf("address", l.HTTP, "version", d.Version, "auto", strconv.FormatBool(d.Auto)))
		},
		run: b.Run, reload: b.ReloadPolicy, stopped: b.Stopped, close: closeAll,
	}
}

// serve is Serve over any backend.
func serve(ctx context.Context, o Options, open func(context.Context, *daemon) (backend, error)) (err error) {
	if !supported {
		return ErrUnsupported
	}
	if o.System != nil {
		if err := o.System.check(o.Paths); err != nil {
			return err
		}
	}
	if err := ownFolder(o.Paths.Data); err != nil {
		return err
	}
	lock, err := holdData(ctx, o)
	if err != nil {
		return err
	}
	defer lock.Close() // last: only now may another daemon have the folder
	if err := (lockNote{os.Getpid(), o.Version, o.Auto}).sign(lock); err != nil {
		return fmt.Errorf("writing the lock: %w", err)
	}
	d := newDaemon(o)
	var web net.Listener // first: a port in use is found before anything is opened
	if o.HTTPAddr != "" {
		if o.TLS != nil {
			if d.tls, err = newTLSKeeper(*o.TLS, d.Now, d.Log); err != nil {
				return err
			}
			d.listening.TLS = true
		}
		web, err = listenHTTP(ctx, o.HTTPAddr, d.tls != nil)
		if errors.Is(err, syscall.EADDRINUSE) {
			return &PortError{o.HTTPAddr, err}
		}
		if err != nil {
			return err
		}
		defer web.Close()
		d.listening.HTTP = asAsked(o.HTTPAddr, web)
	}
	if d.backend, err = open(ctx, d); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	doors, err := openDoors(o)
	if err != nil {
		return err
	}
	return d.run(ctx, doors, web)
}

func newDaemon(o Options) *daemon {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.IdleStop <= 0 {
		o.IdleStop = defaultIdleStop
	}
	exe, _ := os.Executable() // unknown: no process counts as keylease, which refuses more
	d := &daemon{Options: o, peers: newMCPPeers(lookProcess, exe), stop: make(chan string, 1),
		adminIn: make(chan net.Conn), over: make(chan struct{}), conns: map[interface{ stop(string) }]struct{}{}, greeting: map[net.Conn]func(){}}
	d.listening.Socket, d.listening.Proxy = o.Paths.SocketPath(), o.Paths.ProxySocketPath()
	if o.System != nil {
		d.listening.Admin = o.System.AdminSocket
	}
	d.touch()
	d.bounds = newBounds(o.Limits, o.Now)
	if o.hurry > 0 {
		d.bounds.lineTime, d.bounds.writeTime = o.hurry, o.hurry
	}
	return d
}

// run serves until there is a reason to stop, and then stops within stopTime.
func (d *daemon) run(ctx context.Context, doors []door, web net.Listener) error {
	closeDoors := func() { // removes their files too: who comes now starts another daemon, which waits for the lock
		for _, at := range doors {
			_ = at.Close()
		}
	}
	defer closeDoors()
	if err := d.started(ctx, d.listening); err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	if d.proxy != nil {
		defer d.proxy.closed()
		if err := d.proxy.start(ctx, d.Options); err != nil {
			return err
		}
	}
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	verbs, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	admin := &http.Server{Handler: d.verbs.around(d.admin), BaseContext: func(net.Listener) context.Context { return verbs }, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: silent(d.Log)} // no WriteTimeout: a trail that is followed stays open
	admin.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return withPeer(ctx, conn.(*adminConn).peer)
	}
	admin.ConnState = func(conn net.Conn, state http.ConnState) { conn.(*adminConn).inUse(state) }
	servers := []*http.Server{admin}
	background.Go(func() {
		_ = admin.Serve(&chanListener{in: d.adminIn, addr: doors[0].Addr(), closed: make(chan struct{})})
	})
	if web != nil {
		s := newHTTPServer(d.web)
		servers = append(servers, s)
		background.Go(func() { _ = s.Serve(d.tls.over(web)) })
	}
	if d.proxy != nil {
		servers = append(servers, d.proxy.http)
	}
	background.Go(func() {
		if err := d.backend.run(bg); err != nil && bg.Err() == nil {
			d.Log.Error().Err(err).Msg("the sweeper stopped")
		}
	})
	background.Go(func() { d.watch(bg) })
	for _, at := range doors {
		d.wg.Go(func() { d.accept(at) }) // counted too: whom it lets in at the last moment is waited for
	}
	if d.Ready != nil {
		d.Ready(d.listening)
	}
	reason := serverStopped
	select {
	case <-ctx.Done():
	case reason = <-d.stop:
	}
	closeDoors()
	hangUp() // on whoever follows the trail
	d.shutdown(reason, servers)
	d.verbs.shut() // a verb may still be at work after its connection was closed, and the store closes next
	return d.stopped(context.WithoutCancel(ctx), reason)
}

// end asks the daemon to stop. It does not wait.
func (d *daemon) end(reason string) {
	select {
	case d.stop <- reason:
	default:
	}
}

func (d *daemon) touch() { d.lastCall.Store(d.Now().UnixNano()) }

// watch reloads the policy when told, and ends an idle daemon that nobody started by hand.
func (d *daemon) watch(ctx context.Context) {
	tick := time.NewTicker(min(d.IdleStop/10, 30*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.Reload:
			d.reload(ctx)
		case <-tick.C:
			if d.Auto && d.idle() {
				d.end(controlIdle)
			}
		}
	}
}

func (d *daemon) idle() bool {
	a := d.activity()
	quiet := min(d.Now().Sub(time.Unix(0, d.lastCall.Load())), a.Quiet)
	return a.LiveLeases == 0 && a.Waiting == 0 && d.admins.Load() == 0 && quiet >= d.IdleStop
}

// shutdown ends every connection: what was read is answered, what was not read had no effect.
func (d *daemon) shutdown(reason string, servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopDrain)
	defer cancel()
	word := controlStop
	if reason == controlIdle {
		word = controlIdle
	}
	var ending sync.WaitGroup
	for _, s := range servers {
		ending.Go(func() {
			if s.Shutdown(ctx) != nil {
				_ = s.Close()
			}
		})
	}
	close(d.over)
	d.mu.Lock()
	d.ending = true
	for _, leave := range d.greeting {
		leave()
	}
	for c := range d.conns {
		c.stop(word)
	}
	d.mu.Unlock()
	ending.Go(func() {
		select {
		case <-d.served():
		case <-time.After(stopTime):
		}
	})
	ending.Wait()
}

func (d *daemon) served() <-chan struct{} {
	done := make(chan struct{})
	go func() { d.wg.Wait(); close(done) }()
	return done
}

// gate lets requests through until it is shut, which waits for those inside.
type gate struct {
	mu     sync.RWMutex // held by each request for as long as it runs
	closed bool         // guarded by mu
}

func (g *gate) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.RLock()
		defer g.mu.RUnlock()
		if g.closed {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}
