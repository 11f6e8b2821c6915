package lease

import (
	"maps"
	"sync"
	"time"

	"pgregory.net/rapid"

	"keylease/internal/identity"
)

// mVerb is one of several that are asked for at once.
type mVerb struct {
	what  string // lease, renew, release, revoke
	c     identity.Caller
	name  string
	id    string
	asked time.Duration

	code  Code // what came of it
	grant Grant
	ended Ended
	n     int
}

func (d *driven) someVerb(t *rapid.T) *mVerb {
	v := &mVerb{what: rapid.SampledFrom([]string{"lease", "lease", "renew", "release", "revoke"}).Draw(t, "verb"),
		name: rapid.SampledFrom(mNames).Draw(t, "credential"), id: d.someLease(t), asked: mTTLs.Draw(t, "ttl")}
	v.c = d.holder(t, v.id)
	return v
}

func (d *driven) ask(v *mVerb) {
	var err error
	switch v.what {
	case "lease":
		v.grant, err = d.Lease(ctx, v.c, Request{Credential: v.name, TTL: v.asked})
	case "renew":
		_, err = d.Renew(ctx, v.c, RenewRequest{LeaseID: v.id, TTL: v.asked})
	case "release":
		v.ended, err = d.Release(ctx, v.c, v.id)
	case "revoke":
		v.n, err = d.RevokeLeases(ctx, operator, Filter{LeaseID: v.id})
	}
	v.code = codeOf(err)
}

// explains does v to the model, and reports whether what came of it is what the model says.
func (m *model) explains(v *mVerb) bool {
	switch v.what {
	case "lease":
		if v.code != m.mayLease(v.c.Principal, v.name) {
			return false
		}
		if v.code == "" {
			cred := m.creds[v.name]
			l := &mLease{owner: v.c.Principal, cred: v.name, value: cred.values[cred.version-1], session: v.c.Session, issued: m.now, expires: m.now.Add(m.ttl(v.asked))}
			m.bind(l)
			m.live[v.grant.LeaseID] = l
			return v.grant.ExpiresAt.Equal(l.expires)
		}
	case "renew":
		if v.code != m.mayRenew(v.c.Principal, v.id) {
			return false
		}
		if v.code == "" {
			m.renew(v.c, v.id, v.asked)
		}
	case "release":
		want := NotAvailable
		if l, e := m.live[v.id], m.over[v.id]; l != nil && l.owner == v.c.Principal || e != nil && e.owner == v.c.Principal {
			want = ""
		}
		if v.code != want {
			return false
		}
		if want == "" {
			m.end(Released, func(id string, _ *mLease) bool { return id == v.id })
			return v.ended.Status == m.over[v.id].state
		}
	case "revoke":
		return v.n == m.end(Revoked, func(id string, _ *mLease) bool { return id == v.id })
	}
	return true
}

func (m *model) clone() model {
	c := *m
	c.live, c.over = map[string]*mLease{}, map[string]*mEnded{}
	for id, l := range m.live {
		one := *l
		c.live[id] = &one
	}
	for id, e := range m.over {
		one := *e
		c.over[id] = &one
	}
	c.sessions, c.attached = maps.Clone(m.sessions), maps.Clone(m.attached)
	return c
}

// burst has several callers ask at once. What they are told, and what is live then, has to be what the model says of
// the same verbs in some order.
func (d *driven) burst(t *rapid.T) {
	verbs := make([]*mVerb, rapid.IntRange(2, 4).Draw(t, "verbs"))
	for i := range verbs {
		verbs[i] = d.someVerb(t)
	}
	if rapid.IntRange(0, 2).Draw(t, "about one lease") > 0 {
		for _, v := range verbs[1:] {
			v.id = verbs[0].id
		}
	}
	var all sync.WaitGroup
	for _, v := range verbs {
		all.Go(func() { d.ask(v) })
	}
	all.Wait()
	live := map[string]mLease{}
	d.Broker.mu.Lock() // what an orphan's end would be without that is shown to nobody
	for id, l := range d.ix.leases {
		if l.live(d.m.now) {
			live[id] = mLease{session: l.session, expires: l.expires, orphan: l.orphanEnd}
		}
	}
	d.Broker.mu.Unlock()
	if m := inSomeOrder(d.m, verbs, live); m != nil {
		d.m = *m
	} else {
		t.Fatalf("no order of these verbs explains what came of them: %+v %+v", verbs[0], verbs[1:])
	}
	for _, v := range verbs {
		if v.grant.LeaseID != "" {
			d.ids = append(d.ids, v.grant.LeaseID)
		}
	}
}

// inSomeOrder returns the model after an order of verbs that explains all of them and what is live; nil if none does.
func inSomeOrder(m model, verbs []*mVerb, live map[string]mLease) *model {
	if len(verbs) == 0 {
		for id, l := range m.live {
			if is, ok := live[id]; !ok || is.session != l.session || !is.expires.Equal(l.expires) || !is.orphan.Equal(l.orphan) {
				return nil
			}
		}
		if len(live) != len(m.live) {
			return nil
		}
		return &m
	}
	for i := range verbs {
		next := m.clone()
		if !next.explains(verbs[i]) {
			continue
		}
		rest := append(append([]*mVerb{}, verbs[:i]...), verbs[i+1:]...)
		if end := inSomeOrder(next, rest, live); end != nil {
			return end
		}
	}
	return nil
}
