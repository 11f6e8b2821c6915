package server

import (
	"context"
	"crypto/rand"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"keylease/internal/identity"
	"keylease/internal/lease"
)

// What one principal, and all of them together, may hold open over HTTP.
const (
	maxHTTPSessions = 1000
	maxPartySession = 100
	maxPartyStreams = 100
	maxPartyCalls   = 64
	manyParties     = 10_000

	// A session that nobody used for so long is forgotten; its client is told 404 and begins anew. That is not a
	// disconnect: the leases of a quiet agent go on.
	httpSessionIdle = 30 * time.Minute

	// Opening sessions is limited over time too, so that churning them wins nothing.
	sessionOpenRate  = 50 // per second
	sessionOpenBurst = 200
)

// claim is what a client says it is: recorded, never believed.
type claim struct {
	Name, Version string
}

func (c claim) cleaned() claim {
	return claim{cleanText(c.Name, maxClaim), cleanText(c.Version, maxClaim)}
}

// httpSession is a handshake session (revisions up to 2025-11-25) over Streamable HTTP or SSE. It belongs to the
// principal that opened it for all of its life.
type httpSession struct {
	id        string // 130 random bits; travels in Mcp-Session-Id or sessionId; authenticates nothing
	name      string // what leases and the trail call it: drawn apart, so that a record does not hold the id
	principal identity.Principal
	transport string
	opened    time.Time
	table     *sessionTable

	ctx context.Context // ends with the session; its streams hang on it
	end context.CancelFunc

	// life guards what follows and is held while the broker is told, so that coming and going reach it in order.
	life    sync.Mutex
	client  claim
	used    time.Time
	calls   int
	streams int
	leaving bool // its last stream closed, or it was ended, while calls ran: the last of them tells the broker
	there   bool // as the broker knows it
	ended   bool
}

func (s *httpSession) caller() identity.Caller {
	return identity.Caller{Principal: s.principal, Session: s.name, Transport: s.transport,
		ClientName: s.client.Name, ClientVersion: s.client.Version}
}

// enter begins a call: the session is alive. False if it has ended.
func (s *httpSession) enter(ctx context.Context) (identity.Caller, bool) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.ended {
		return identity.Caller{}, false
	}
	s.calls++
	return s.seen(ctx), true
}

func (s *httpSession) seen(ctx context.Context) identity.Caller {
	s.used, s.leaving, s.there = s.table.now(), false, true
	c := s.caller()
	s.table.attach(ctx, c)
	return c
}

// leave ends a call.
func (s *httpSession) leave() {
	s.life.Lock()
	defer s.life.Unlock()
	s.calls--
	s.used = s.table.now()
	if s.calls == 0 && s.leaving {
		s.gone()
	}
}

// openStream marks a stream from server to client as open; closeStream must follow. False if the session has ended.
func (s *httpSession) openStream(ctx context.Context) bool {
	s.life.Lock()
	defer s.life.Unlock()
	if s.ended {
		return false
	}
	s.streams++
	s.seen(ctx)
	return true
}

// closeStream tells the broker that the holder left when this was the session's last stream. Calls in flight come
// first: what they lease must belong to a session of which the broker then hears that it is gone.
func (s *httpSession) closeStream() {
	s.life.Lock()
	defer s.life.Unlock()
	s.streams--
	s.used = s.table.now()
	if s.streams == 0 {
		s.goOnceIdle()
	}
}

// finish ends the session for good: its streams are cut, later requests find nothing.
func (s *httpSession) finish() {
	s.table.forget(s)
	s.end()
	s.life.Lock()
	defer s.life.Unlock()
	if !s.ended {
		s.ended = true
		s.goOnceIdle()
	}
}

func (s *httpSession) goOnceIdle() {
	s.leaving = true
	if s.calls == 0 {
		s.gone()
	}
}

func (s *httpSession) gone() {
	s.leaving = false
	if s.there {
		s.there = false
		s.table.detach(s.name)
	}
}

func (s *httpSession) introduce(c claim) {
	s.life.Lock()
	defer s.life.Unlock()
	s.client = c.cleaned()
}

// idleSince reports since when nobody uses the session; one that is just coming or going is in use.
func (s *httpSession) idleSince() (time.Time, bool) {
	if !s.life.TryLock() {
		return time.Time{}, false
	}
	defer s.life.Unlock()
	return s.used, s.calls == 0 && s.streams == 0
}

// lapse ends a session that its client did not end. The broker is not told: being quiet is not leaving. A session in
// which a call runs is not quiet and ends as if its client had left, once that call is done; its streams' end says nothing.
func (s *httpSession) lapse() (quiet bool) {
	s.life.Lock()
	defer s.life.Unlock()
	s.ended = true
	s.end()
	s.leaving = s.calls > 0
	if s.streams > 0 && !s.leaving { // they close next, which is our doing
		s.there = false
	}
	return s.calls == 0
}

// party is what one principal holds open. One that holds nothing and could open all that it may is like one that was
// never seen, and is forgotten where there are many: an issuer has subjects without number.
type party struct {
	sessions, streams, waiting int
	calls                      chan struct{}
	opens                      *rate.Limiter
}

func (m *party) unused(now time.Time) bool {
	return m.sessions+m.streams+m.waiting+len(m.calls) == 0 && m.opens.TokensAt(now) >= sessionOpenBurst
}

// sessionTable knows every live session over HTTP and who owns it.
type sessionTable struct {
	now    func() time.Time
	attach func(context.Context, identity.Caller)
	detach func(session string)
	lapsed func(*httpSession) // a session was forgotten without its client asking
	base   context.Context    // every session's ctx hangs on it

	mu      sync.Mutex // guards what follows
	byID    map[string]*httpSession
	parties map[string]*party // by identity.RateKey: a subject more must not be a party more
}

func (t *sessionTable) party(p identity.Principal) *party {
	key := p.RateKey()
	known := t.parties[key]
	if known == nil {
		if len(t.parties) >= manyParties {
			maps.DeleteFunc(t.parties, func(_ string, m *party) bool { return m.unused(t.now()) })
		}
		known = &party{calls: make(chan struct{}, maxPartyCalls), opens: rate.NewLimiter(sessionOpenRate, sessionOpenBurst)}
		t.parties[key] = known
	}
	return known
}

// open makes a session of p. Where p holds as many as it may, its own that was quiet longest makes room: a client that
// never says goodbye must not lock its team out. Where the server does, see makesRoom.
func (t *sessionTable) open(p identity.Principal, transport string, c claim) (*httpSession, *fault) {
	s := &httpSession{id: rand.Text(), name: newSessionID(), principal: p,
		transport: transport, table: t, client: c.cleaned(), opened: t.now(), used: t.now()}
	s.ctx, s.end = context.WithCancel(t.base)

	evicted, f := t.admit(s)
	for _, old := range evicted {
		if old.lapse() {
			t.lapsed(old)
		}
	}
	if f != nil {
		s.end()
		return nil, f
	}
	return s, nil
}

func (t *sessionTable) admit(s *httpSession) (evicted []*httpSession, f *fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, mine := t.now(), t.party(s.principal)
	if !mine.opens.AllowN(now, 1) {
		return nil, rateLimited("sessions are being opened too fast", time.Second)
	}
	evict := func(out *httpSession) bool {
		if out == nil {
			return false
		}
		t.remove(out)
		evicted = append(evicted, out)
		return true
	}
	for _, other := range t.byID {
		if at, idle := other.idleSince(); idle && now.Sub(at) >= httpSessionIdle {
			evict(other)
		}
	}
	if mine.sessions >= maxPartySession && !evict(t.quietest(mine)) {
		return evicted, rateLimited("too many sessions are open under this token", 30*time.Second)
	}
	if len(t.byID) >= maxHTTPSessions && !evict(t.makesRoom(mine)) {
		return evicted, refusing(503, lease.Refusal{Code: lease.Unavailable, RetryAfter: 30 * time.Second,
			Message: "the server has as many sessions as it can hold", Hint: "Wait and try again; tell the operator if it goes on."})
	}
	t.byID[s.id] = s
	mine.sessions++
	return evicted, nil
}

// quietest is the session of m that was idle for longest; nil: all are in use.
func (t *sessionTable) quietest(m *party) *httpSession {
	out, _ := t.longest(func(other *party) int { return map[bool]int{true: 1}[other == m] })
	return out
}

// makesRoom says whose session ends for one more of mine where the server has as many as it can hold, by the rule of
// crowd: an idle one of those who have the most, and no fewer than mine; one in use only of who has more than twice as
// many as those, and more than mine would then. nil: nobody's.
func (t *sessionTable) makesRoom(mine *party) *httpSession {
	idle, used := t.longest(func(other *party) int { return other.sessions })
	size := func(s *httpSession) int { return t.party(s.principal).sessions }
	if idle != nil && size(idle) < mine.sessions {
		idle = nil
	}
	if used != nil && size(used) >= mine.sessions+2 && (idle == nil || size(used) > 2*size(idle)) {
		return used
	}
	return idle
}

// longest finds, of the parties that weigh the most and more than nothing, what has been idle for longest and, apart
// from that, what of those in use is the oldest.
func (t *sessionTable) longest(weight func(*party) int) (idle, used *httpSession) {
	var mostIdle, mostUsed int
	var since time.Time
	for _, s := range t.byID {
		at, quiet := s.idleSince()
		switch w := weight(t.party(s.principal)); {
		case w == 0:
		case quiet && (w > mostIdle || w == mostIdle && at.Before(since)):
			idle, mostIdle, since = s, w, at
		case !quiet && (w > mostUsed || w == mostUsed && s.opened.Before(used.opened)):
			used, mostUsed = s, w
		}
	}
	return idle, used
}

// find returns p's session of that id. Where it is somebody else's, foreign says so, for the record alone: to the
// caller an unknown session and another's are one.
func (t *sessionTable) find(id string, p identity.Principal) (s *httpSession, foreign bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s = t.byID[id]
	if s != nil && s.principal != p {
		return nil, true
	}
	return s, false
}

func (t *sessionTable) forget(s *httpSession) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(s)
}

// remove wants mu held.
func (t *sessionTable) remove(s *httpSession) {
	if t.byID[s.id] == s {
		delete(t.byID, s.id)
		t.party(s.principal).sessions--
	}
}

// call admits one more call of p; done must follow.
func (t *sessionTable) call(p identity.Principal) (done func(), f *fault) {
	calls := t.callsOf(p)
	select {
	case calls <- struct{}{}:
		return func() { <-calls }, nil
	default:
		return nil, rateLimited("too many calls are in flight under this token", time.Second)
	}
}

// callLater waits for one of p's calls to end; nil: none did before ctx.
func (t *sessionTable) callLater(ctx context.Context, p identity.Principal) (done func()) {
	calls := t.callsOf(p)
	select {
	case calls <- struct{}{}:
		return func() { <-calls }
	case <-ctx.Done():
		return nil
	}
}

func (t *sessionTable) callsOf(p identity.Principal) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.party(p).calls
}

// wait admits one more request of p to those that wait for their turn.
func (t *sessionTable) wait(p identity.Principal) (done func(), f *fault) {
	return t.take(p, func(m *party) *int { return &m.waiting }, maxPartyWaiting, "too many calls wait under this token")
}

// stream admits one more stream of p that is no session of its own.
func (t *sessionTable) stream(p identity.Principal) (done func(), f *fault) {
	return t.take(p, func(m *party) *int { return &m.streams }, maxPartyStreams, "too many streams are open under this token")
}

func (t *sessionTable) take(p identity.Principal, count func(*party) *int, limit int, message string) (func(), *fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := count(t.party(p))
	if *n >= limit {
		return nil, rateLimited(message, time.Second)
	}
	*n++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		*n--
	}, nil
}
