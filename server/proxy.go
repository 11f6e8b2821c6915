package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/lease"
	"keylease/internal/use"
)

// ProxyOptions is about where the proxy listens, and how it gets out.
type ProxyOptions struct {
	Listen string   // a loopback address as 127.0.0.1:8701; "": a port that is chosen once and kept in Data
	Roots  []byte   // PEM of authorities beside the system's
	Egress *url.URL // the HTTP proxy by which upstreams are reached; nil: directly
}

const (
	proxyWriteTime = 60 * time.Second // a client that takes nothing of an answer for so long is gone
	proxyBodyTime  = 60 * time.Second // a client that sends nothing of a body for so long is, too
)

// proxy is where programs use a key that they never see. A request has the handle of a lease where the service's key
// would be; it goes on to the upstream that the admin named, with the key in the handle's place, and what comes back is
// masked. Nothing of it is decided here but this: who sends the request, which handle it carries, and that nothing else
// of it can pass for one that the broker was not asked about.
type proxy struct {
	ProxyOptions
	broker *lease.Broker
	log    zerolog.Logger
	admits func(uid int) bool // who may come by TCP, where the system can tell
	system bool               // several users may come
	door   func(*localPeer) error
	called func()
	data   string

	bounds  *webBounds
	leases  *passages
	http    *http.Server
	closing context.Context // ends when the daemon stops, and all uses with it
	stop    context.CancelFunc
	told    sync.WaitGroup // failures being recorded
	now     func() time.Time

	writeTime, bodyTime time.Duration

	mu     sync.Mutex // guards what follows
	origin string     // "": not open
	over   bool
	serves sync.WaitGroup
}

type proxySetup struct {
	ProxyOptions
	Broker *lease.Broker
	Log    zerolog.Logger
	Limits Limits
	System *System
	Data   string
	Called func()
	Now    func() time.Time
}

func newProxy(o proxySetup) *proxy {
	p := &proxy{ProxyOptions: o.ProxyOptions, broker: o.Broker, log: o.Log, called: o.Called, data: o.Data, now: o.Now, system: o.System != nil,
		bounds: newWebBounds(o.Limits, o.Now), leases: newPassages(newUpstreams(o.Roots, o.Egress)), writeTime: proxyWriteTime, bodyTime: proxyBodyTime}
	p.admits, p.door = proxyDoors(o.System)
	p.closing, p.stop = context.WithCancel(context.Background())
	p.http = &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true, ErrorLog: silent(o.Log), ConnContext: p.opened, ConnState: p.bounds.changed}
	p.http.RegisterOnShutdown(p.stop)
	return p
}

// passing is one request on its way.
type passing struct {
	*lease.Use
	*passage
	call   proxyCall
	in     *http.Request
	w      *proxyWriter
	body   *inBody // nil: none
	small  []byte  // the answer's masked body, where that is there as a whole
	reason string  // why it did not go well, in words that hold nothing of the request or the answer
}

func (p *proxy) ServeHTTP(inner http.ResponseWriter, r *http.Request) {
	w := newProxyWriter(inner, p.writeTime)
	defer p.recovered(w)
	peer := proxyPeerOf(r.Context())
	if f := admissibleToProxy(r, peer); f != nil {
		f.refuse(w, r)
		return
	}
	c, f := readCall(r)
	if f != nil {
		f.refuse(w, r)
		return
	}
	if c.handle == "" || peer.stranger {
		p.turnAway(w, r, peer, c)
		return
	}
	u, err := p.broker.BeginUse(r.Context(), c.handle, peer.uid, r.Method, c.path)
	if err != nil {
		p.refused(w, r, peer, c, err)
		return
	}
	p.called()
	peer.guest.begin()
	defer peer.guest.end()
	p.passOn(w, r, c, u)
}

// passOn sends the request on, and what is answered back, for as long as the lease lives.
func (p *proxy) passOn(w *proxyWriter, r *http.Request, c proxyCall, u *lease.Use) {
	t := &passing{Use: u, call: c, in: r, w: w}
	defer func() { t.body.over() }() // last: whoever ends the lease does not wait for it
	defer func() {
		u.End(lease.Outcome{Status: w.status, In: t.body.count(), Out: w.out.Load(), Reason: t.reason})
	}()
	if err := use.CheckQuery(c.query); err != nil {
		t.reason = err.Error()
		notAllowed(err).refuse(w, r)
		return
	}
	key := u.Value.Bytes()
	var done func(ended bool)
	t.passage, done = p.leases.get(u.Lease.LeaseID, key)
	defer func() { done(u.Why() != "") }()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if r.ContentLength != 0 { // before anything can cut it off
		t.body = &inBody{ReadCloser: r.Body, use: u, w: w, longest: p.bodyTime}
	}
	cut := func() { cancel(); w.cutOff(t.body) }
	defer context.AfterFunc(u.Context(), cut)()
	defer context.AfterFunc(p.closing, cut)()
	p.forward(ctx, t)
}

// refused answers a request that the broker did not let through.
func (p *proxy) refused(w *proxyWriter, r *http.Request, peer *proxyPeer, c proxyCall, err error) {
	var no *use.Refused
	if errors.As(err, &no) {
		notAllowed(no).refuse(w, r)
		return
	}
	refusal := lease.AsRefusal(err)
	switch {
	case refusal == nil:
		p.log.Error().Err(err).Msg("a request to the proxy could not be decided about")
		internalFault("").refuse(w, r)
	case refusal.Code == lease.RateLimited:
		refusing(http.StatusTooManyRequests, *refusal).refuse(w, r)
	case refusal.Code == lease.Unavailable:
		refusing(http.StatusServiceUnavailable, *refusal).refuse(w, r)
	case refusal.Code == lease.Internal:
		refusing(http.StatusInternalServerError, *refusal).refuse(w, r)
	default: // unknown, ended, another user's, of a token that is no more: one answer
		p.turnAway(w, r, peer, c)
	}
}

// turnAway gives the one answer to all that no live lease of the sender's answers to. Who has had too many of them
// gets each further one late, so that handles are tried slowly.
func (p *proxy) turnAway(w *proxyWriter, r *http.Request, peer *proxyPeer, c proxyCall) {
	late := p.bounds.failures.Take(peer.source, p.now(), 0) > 0
	if c.handle != "" || peer.stranger {
		f := lease.AuthFailure{Source: peer.source, Reason: "no live lease of the sender's has this handle"}
		if peer.stranger {
			f.Reason = "this user is not served by the proxy"
		}
		if !late { // what comes late is told of in the numbers
			p.told.Go(func() { p.broker.AuthFailed(context.Background(), f) })
		} else {
			p.broker.AuthFailed(context.Background(), f)
		}
	}
	if late {
		sleep(r.Context(), p.bounds.wait)
	}
	f := noLease()
	if c.handle == "" && !peer.stranger && isGit(c.path) {
		f = gitChallenge()
	}
	f.refuse(w, r)
}

func (p *proxy) recovered(w *proxyWriter) {
	v := recover()
	if v == nil {
		return
	}
	if v != http.ErrAbortHandler { //nolint:errorlint // a value, as net/http compares it
		p.log.Error().Str("panic", panicText(v)).Msg("a request to the proxy panicked")
	}
	if v == http.ErrAbortHandler || w.begun() {
		panic(http.ErrAbortHandler) // half an answer is out: cut it rather than pass it off as whole
	}
	internalFault("").write(w)
}

// proxyWriter gives its reader so long for each piece of an answer, counts, and can be cut off.
type proxyWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	longest time.Duration
	out     atomic.Int64
	status  int  // 0: nothing was sent
	whole   bool // the answer is there as a whole: nobody waits for a piece of it

	mu    sync.Mutex // guards what follows
	wrote bool
	cut   bool
	since time.Time // when the deadline was set
}

func newProxyWriter(w http.ResponseWriter, longest time.Duration) *proxyWriter {
	return &proxyWriter{ResponseWriter: w, control: http.NewResponseController(w), longest: longest}
}

// next is asked before each piece.
func (w *proxyWriter) next() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut && w.wrote {
		return false
	}
	w.wrote = true
	if now := time.Now(); now.Sub(w.since) > w.longest/10 { // setting it costs more than looking
		w.since = now
		_ = w.control.SetWriteDeadline(now.Add(w.longest))
	}
	return true
}

func (w *proxyWriter) begun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrote
}

// cutOff ends an answer that has begun, also where its reader takes nothing, and a body that does not come. What has not
// begun can still be refused.
func (w *proxyWriter) cutOff(body *inBody) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	past := time.Unix(1, 0)
	if w.wrote {
		_ = w.control.SetWriteDeadline(past)
	}
	body.interrupt(past)
}

func (w *proxyWriter) WriteHeader(status int) {
	if !w.next() {
		panic(http.ErrAbortHandler)
	}
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *proxyWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if !w.next() {
		return 0, http.ErrAbortHandler
	}
	n, err := w.ResponseWriter.Write(b)
	w.out.Add(int64(n))
	return n, err
}

func (w *proxyWriter) FlushError() error {
	if w.whole {
		return nil
	}
	if !w.next() {
		return http.ErrAbortHandler
	}
	return w.control.Flush()
}

func (w *proxyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
