package lease

import (
	"fmt"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"keylease/internal/boottime"
	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
)

// driven is a world and the model that it is held against.
type driven struct {
	*world
	m   model
	ids []string // every lease there was
}

var (
	mPrincipals = []identity.Principal{
		{Type: identity.Agent, Name: "a", By: "uid:1000"},
		{Type: identity.Agent, Name: "a", By: "uid:2000"}, // the same name, another principal: limits count them together
		{Type: identity.Agent, Name: "b", By: "uid:1000"},
	}
	mStart = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	mNames = []string{"db", "web"}
	mTTLs  = rapid.SampledFrom([]time.Duration{0, time.Second, 30 * time.Second, 5 * time.Minute, 20 * time.Minute, 24 * time.Hour})
	mSteps = rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, time.Hour})
)

func newDriven(t *testing.T, rt *rapid.T) *driven {
	dir, err := os.MkdirTemp("/dev/shm", "keylease-model-") // what a sync means is tested elsewhere; here it costs five sixths of the time
	if err != nil {
		dir = t.TempDir()
	}
	w := &world{t: t, dir: dir, now: mStart, boot: boottime.ID{1}}
	d := &driven{world: w, m: model{live: map[string]*mLease{}, over: map[string]*mEnded{}, creds: map[string]*mCred{},
		sessions: map[identity.Principal]identity.Caller{}, attached: map[string]bool{}}}
	d.edit(mRule{"*", 4, time.Hour})
	w.open()
	rt.Cleanup(func() { w.lastUses(); _ = w.store.Close(); _ = os.RemoveAll(dir) })
	for _, name := range mNames {
		d.create(rt, name)
	}
	for _, p := range mPrincipals {
		d.m.sessions[p] = identity.Caller{Principal: p, Session: newID("s_")}
	}
	d.m.now = w.Broker.now()
	return d
}

func (d *driven) edit(r mRule) {
	d.m.rule, d.m.broken = r, false
	d.setPolicy(fmt.Sprintf("version: 1\nlimits: {leaseRate: 0}\nrules:\n  - {name: r, identities: [%q], credentials: [\"*\"], maxLeases: %d, maxLeaseTTL: %s}\n",
		r.who, r.max, fmt.Sprintf("%ds", int(r.ttl.Seconds()))))
}

func (d *driven) create(t *rapid.T, name string) {
	c := &mCred{max: rapid.IntRange(1, 4).Draw(t, "maxLeases"), version: 1, values: []string{newID("fake-")}}
	_, err := d.Put(ctx, operator, NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte(c.values[0])), Policy: policy.CredentialPolicy{MaxLeases: c.max}})
	if err != nil {
		t.Fatal(err)
	}
	d.m.creds[name] = c
}

func (d *driven) somebody(t *rapid.T) identity.Caller {
	return d.m.sessions[rapid.SampledFrom(mPrincipals).Draw(t, "who")]
}

// someLease is any lease there ever was, the newest more often.
func (d *driven) someLease(t *rapid.T) string {
	if len(d.ids) == 0 {
		return newID("ls_")
	}
	return d.ids[len(d.ids)-1-rapid.IntRange(0, min(len(d.ids)-1, 7)).Draw(t, "lease")]
}

// holder is who has or had a lease, or anybody.
func (d *driven) holder(t *rapid.T, id string) identity.Caller {
	c := d.somebody(t)
	if rapid.IntRange(0, 3).Draw(t, "whoever") == 0 {
		return c
	}
	if l := d.m.live[id]; l != nil {
		return d.m.sessions[l.owner]
	}
	if e := d.m.over[id]; e != nil {
		return d.m.sessions[e.owner]
	}
	return c
}

func wantAnswer(t *rapid.T, what string, err error, want Code) {
	if got := codeOf(err); got != want || (err != nil) != (want != "") {
		t.Fatalf("%s: %v, want %q", what, err, want)
	}
}

func (d *driven) take(g Grant, c identity.Caller, t *rapid.T) {
	cred := d.m.creds[g.Credential]
	l := &mLease{owner: c.Principal, cred: g.Credential, value: cred.values[cred.version-1], session: c.Session, issued: g.IssuedAt, expires: g.ExpiresAt}
	d.m.bind(l)
	d.m.live[g.LeaseID] = l
	d.ids = append(d.ids, g.LeaseID)
}

func (d *driven) lend(t *rapid.T) {
	c, name, asked := d.somebody(t), rapid.SampledFrom(mNames).Draw(t, "credential"), mTTLs.Draw(t, "ttl")
	want := d.m.mayLease(c.Principal, name)
	g, err := d.Lease(ctx, c, Request{Credential: name, TTL: asked})
	wantAnswer(t, "lease", err, want)
	if err != nil {
		return
	}
	if !g.IssuedAt.Equal(d.m.now) || !g.ExpiresAt.Equal(d.m.now.Add(d.m.ttl(asked))) {
		t.Fatalf("asked for %v at %v, got %v to %v", asked, d.m.now, g.IssuedAt, g.ExpiresAt)
	}
	d.take(g, c, t)
}

func (d *driven) extendOne(t *rapid.T) {
	id, asked := d.someLease(t), mTTLs.Draw(t, "ttl")
	c := d.holder(t, id)
	want := d.m.mayRenew(c.Principal, id)
	_, err := d.Renew(ctx, c, RenewRequest{LeaseID: id, TTL: asked})
	wantAnswer(t, "renew", err, want)
	if err == nil {
		d.m.renew(c, id, asked)
	}
}

func (d *driven) release(t *rapid.T) {
	id, want := d.someLease(t), NotAvailable
	c := d.holder(t, id)
	if l := d.m.live[id]; l != nil && l.owner == c.Principal {
		want = ""
		d.m.end(Released, func(i string, _ *mLease) bool { return i == id })
	} else if e := d.m.over[id]; e != nil && e.owner == c.Principal {
		want = ""
	}
	got, err := d.Release(ctx, c, id)
	wantAnswer(t, "release", err, want)
	if err != nil {
		return
	}
	e := d.m.over[id]
	if got.Status != e.state || !e.at.IsZero() && !got.EndedAt.Equal(e.at) {
		t.Fatalf("release says %+v, want %+v", got, e)
	}
	e.at = got.EndedAt
}

func (d *driven) revoke(t *rapid.T) {
	f, id := Filter{}, ""
	switch rapid.IntRange(0, 2).Draw(t, "by") {
	case 0:
		f.Credential = rapid.SampledFrom(mNames).Draw(t, "credential")
	case 1:
		f.Identity = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "identity")
	case 2:
		id = d.someLease(t)
		f.LeaseID = id
	}
	want := d.m.end(Revoked, func(i string, l *mLease) bool {
		return (f.Credential == "" || f.Credential == l.cred) && (f.Identity == "" || f.Identity == l.owner.Name) && (id == "" || id == i)
	})
	if n, err := d.RevokeLeases(ctx, operator, f); err != nil || n != want {
		t.Fatalf("revoked %d, want %d, %v", n, want, err)
	}
}

func (d *driven) changeCredential(t *rapid.T) {
	name := rapid.SampledFrom(mNames).Draw(t, "credential")
	c, of := d.m.creds[name], func(_ string, l *mLease) bool { return l.cred == name }
	var err error
	switch what := rapid.SampledFrom([]string{"rotate", "rotate and revoke", "revoke", "recreate"}).Draw(t, "what"); {
	case what == "recreate":
		d.m.end(Revoked, of)
		if err = d.Remove(ctx, operator, name); err == nil {
			d.create(t, name)
		}
	case c.revoked:
		t.Skip("it is revoked")
	case what == "revoke":
		d.m.end(Revoked, of)
		c.revoked = true
		_, err = d.RevokeCredential(ctx, operator, name)
	default:
		c.version++
		c.values = append(c.values, newID("fake-"))
		if what != "rotate" {
			d.m.end(Revoked, of)
		}
		_, err = d.Rotate(ctx, operator, name, secret.New([]byte(c.values[c.version-1])), what != "rotate")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// turn steps the wall clock, and by it the Broker's, which never goes back.
func (d *driven) turn(t *rapid.T, step time.Duration) {
	d.pass(step)
	now := d.m.now
	d.m.tick(d.Broker.now())
	if want := now.Add(max(step, 0)); !d.m.now.Equal(want) {
		t.Fatalf("the wall clock goes %v and the Broker's from %v to %v", step, now, d.m.now)
	}
}

func (d *driven) clockStep(t *rapid.T) {
	step := mSteps.Draw(t, "step")
	if d.m.now.Sub(mStart) > endedFor-2*time.Hour {
		t.Skip("what ended is soon forgotten")
	}
	switch l := d.m.live[d.someLease(t)]; rapid.IntRange(0, 3).Draw(t, "how") {
	case 0:
		step = -step
	case 1: // to the nanosecond of a deadline, or the one before
		if l != nil {
			step = l.deadline().Sub(d.m.now) - time.Duration(rapid.IntRange(0, 1).Draw(t, "short of"))
		}
	}
	d.turn(t, step)
	if rapid.Bool().Draw(t, "sweep") {
		d.sweep(ctx)
	}
}

func (d *driven) session(t *rapid.T) {
	c := d.somebody(t)
	if d.m.attached[c.Session] {
		d.m.leave(c.Session)
		d.Detach(ctx, c.Session)
		return
	}
	c.Session = newID("s_")
	d.m.meet(c)
	d.Attach(ctx, c)
}

func (d *driven) freezeOrThaw(t *rapid.T) {
	var err error
	if d.m.frozen {
		_, err = d.Thaw(ctx, operator)
	} else {
		_, err = d.Freeze(ctx, operator, "test")
	}
	if d.m.frozen = !d.m.frozen; err != nil {
		t.Fatal(err)
	}
}

func (d *driven) editPolicy(t *rapid.T) {
	if d.m.broken = rapid.IntRange(0, 4).Draw(t, "malformed") == 0; d.m.broken {
		d.setPolicy("version: 9")
		return
	}
	d.edit(mRule{rapid.SampledFrom([]string{"*", "*", "b"}).Draw(t, "admits"), rapid.IntRange(1, 4).Draw(t, "maxLeases"),
		rapid.SampledFrom([]time.Duration{2 * time.Minute, 20 * time.Minute, time.Hour}).Draw(t, "maxLeaseTTL")})
}

func (d *driven) stopAndStart(t *rapid.T) {
	clean := rapid.Bool().Draw(t, "clean")
	if d.m.broken {
		d.edit(d.m.rule) // it does not start with one it can't read
	}
	if wall := d.clock(); !clean && wall.Before(d.m.now) {
		d.pass(d.m.now.Sub(wall)) // nothing tells a killed daemon's successor how far ahead the clock was of the newest Entry
	}
	d.restart(clean)
	d.m.tick(d.Broker.now())
	for session := range d.m.attached {
		d.m.leave(session)
	}
}

// storeError makes the next group fail that is written, on the disk or not, under one verb.
func (d *driven) storeError(t *rapid.T) {
	d.turn(t, 2*rebuildPause)
	d.sweep(ctx)
	c, name, id := d.somebody(t), rapid.SampledFrom(mNames).Draw(t, "credential"), d.someLease(t)
	kept, verb := rapid.Bool().Draw(t, "kept"), rapid.IntRange(0, 2).Draw(t, "verb")
	l := d.m.live[id]
	if verb == 0 && d.m.mayLease(c.Principal, name) != "" || verb > 0 && l == nil {
		t.Skip("nothing to write")
	}
	d.disk.failNext(kept)
	var err error
	as := Revoked
	switch verb {
	case 0:
		_, err = d.Lease(ctx, c, Request{Credential: name})
	case 1:
		as = Released
		_, err = d.Release(ctx, d.m.sessions[l.owner], id)
	case 2:
		_, err = d.RevokeLeases(ctx, operator, Filter{LeaseID: id})
	}
	d.disk.heal()
	wantAnswer(t, "with a failing disk", err, Unavailable)
	d.turn(t, 2*rebuildPause)
	d.sweep(ctx)
	found := map[string]bool{}
	for _, i := range d.Leases(Filter{}) {
		found[i.LeaseID] = true
		if d.m.live[i.LeaseID] == nil && verb == 0 && kept && i.Credential == name && i.Identity.By == c.By && i.Identity.Name == c.Name {
			cred := d.m.creds[name]
			n := &mLease{owner: c.Principal, cred: name, value: cred.values[cred.version-1], session: i.Identity.Session, issued: i.IssuedAt, expires: i.IssuedAt.Add(d.m.ttl(0))}
			if i.Orphaned {
				n.orphan = i.IssuedAt.Add(DefaultGrace)
			}
			d.m.live[i.LeaseID], d.ids = n, append(d.ids, i.LeaseID)
		}
	}
	if verb > 0 && kept && !found[id] {
		d.m.end(as, func(i string, _ *mLease) bool { return i == id })
	}
}
