package lease

import (
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

// model says in as few words as possible what a Broker does: who holds what until when. It has no trail, no index, no
// sweeper and no disk. Its rules are those of promises G2 to G5.
type model struct {
	now      time.Time
	live     map[string]*mLease
	over     map[string]*mEnded
	creds    map[string]*mCred
	sessions map[identity.Principal]identity.Caller // each principal's session
	attached map[string]bool                        // sessions that live
	frozen   bool
	rule     mRule
	broken   bool // the policy file can't be read: rule goes on
}

type mRule struct {
	who string        // whom it admits
	max int           // live leases of one identity
	ttl time.Duration // cap
}

type mCred struct {
	max     int
	version int
	values  []string // by version-1
	revoked bool
}

type mLease struct {
	owner           identity.Principal
	cred            string
	value           string // what it gives
	session         string
	issued, expires time.Time
	orphan          time.Time // zero: not orphaned
}

type mEnded struct {
	owner identity.Principal
	state State
	at    time.Time // as it was first told; zero: nobody asked yet
}

func (l *mLease) deadline() time.Time {
	if !l.orphan.IsZero() && l.orphan.Before(l.expires) {
		return l.orphan
	}
	return l.expires
}

// tick ends what is over at now.
func (m *model) tick(now time.Time) {
	m.now = now
	m.end(Expired, func(_ string, l *mLease) bool { return !now.Before(l.deadline()) })
}

func (m *model) end(as State, which func(string, *mLease) bool) (n int) {
	for id, l := range m.live {
		if which(id, l) {
			m.over[id] = &mEnded{owner: l.owner, state: as}
			delete(m.live, id)
			n++
		}
	}
	return n
}

// leave orphans what is bound to a session.
func (m *model) leave(session string) {
	delete(m.attached, session)
	for _, l := range m.live {
		if l.session == session {
			l.session, l.orphan = "", m.now.Add(DefaultGrace)
		}
	}
}

func (m *model) meet(c identity.Caller) {
	m.sessions[c.Principal], m.attached[c.Session] = c, true
	for _, l := range m.live {
		if l.owner == c.Principal && !l.orphan.IsZero() {
			l.session, l.orphan = c.Session, time.Time{}
		}
	}
}

func (m *model) count(which func(*mLease) bool) (n int) {
	for _, l := range m.live {
		if which(l) {
			n++
		}
	}
	return n
}

func (m *model) admits(p identity.Principal) bool { return m.rule.who == "*" || m.rule.who == p.Name }

// mayLease is the answer to a request: "" is yes.
func (m *model) mayLease(p identity.Principal, name string) Code {
	c := m.creds[name]
	switch {
	case m.frozen:
		return Unavailable
	case c == nil || c.revoked || !m.admits(p):
		return NotAvailable
	case m.count(func(l *mLease) bool { return l.cred == name }) >= c.max,
		m.count(func(l *mLease) bool { return l.owner.Holder() == p.Holder() }) >= m.rule.max:
		return LeaseLimit
	}
	return ""
}

func (m *model) ttl(asked time.Duration) time.Duration {
	if asked == 0 {
		asked = policy.DefaultLeaseTTL
	}
	return min(asked, m.rule.ttl, policy.DefaultMaxTTL)
}

func (m *model) mayRenew(p identity.Principal, id string) Code {
	l, e := m.live[id], m.over[id]
	switch {
	case m.frozen:
		return Unavailable
	case e != nil && e.owner == p:
		return LeaseEnded
	case l == nil || l.owner != p || !m.admits(p):
		return NotAvailable
	case l.issued.Add(m.ttl(1000*time.Hour)).Sub(m.now) < time.Second:
		return LeaseEnded
	}
	return ""
}

func (m *model) renew(c identity.Caller, id string, asked time.Duration) {
	l := m.live[id]
	until := m.now.Add(m.ttl(asked))
	if ceiling := l.issued.Add(m.ttl(1000 * time.Hour)); ceiling.Before(until) {
		until = ceiling
	}
	if asked != 0 || until.After(l.expires) {
		l.expires = until
	}
	if !l.orphan.IsZero() {
		l.session, l.orphan = c.Session, time.Time{}
		m.bind(l)
	}
}

// bind orphans a lease whose session is not there.
func (m *model) bind(l *mLease) {
	if !m.attached[l.session] {
		l.session, l.orphan = "", m.now.Add(DefaultGrace)
	}
}
