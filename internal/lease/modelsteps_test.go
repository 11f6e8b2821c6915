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
	m    model
	ids  []string // every lease there was
	dirs []string // to be removed
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
	rt.Cleanup(func() {
		w.lastUses()
		_ = w.store.Close()
		for _, dir := range append(d.dirs, dir) {
			_ = os.RemoveAll(dir)
		}
	})
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

// turn lets the wall clock and the machine's own go on, or back, by so much, and by them the Broker's, which never
// goes back.
func (d *driven) turn(t *rapid.T, wall, up time.Duration) {
	d.turnClocks(wall, up)
	want := d.m.now.Add(up)
	if now := d.clock(); now.After(want) {
		want = now
	}
	if d.m.tick(d.Broker.now()); !d.m.now.Equal(want) {
		t.Fatalf("the clocks went on by %v and %v, and the Broker's to %v, want %v", wall, up, d.m.now, want)
	}
}

// clockStep lets time pass, in which the machine may sleep, or only sets the wall clock.
func (d *driven) clockStep(t *rapid.T) {
	step := mSteps.Draw(t, "step")
	if d.m.now.Sub(mStart) > endedFor-3*time.Hour {
		t.Skip("what ended is soon forgotten")
	}
	wall, up := step, step
	switch l := d.m.live[d.someLease(t)]; rapid.IntRange(0, 7).Draw(t, "how") {
	case 0, 1: // set back
		wall, up = -step, 0
	case 2: // set ahead, and that was noticed
		d.turn(t, d.m.now.Sub(d.clock())+max(step, time.Second), 0) // less than a second a kill may take back
		d.sweep(ctx)
		return
	case 3: // suspend, and a wall clock that stood still meanwhile
		wall = 0
	case 4, 5: // to the nanosecond of a deadline, or the one before
		if l != nil {
			up = l.deadline().Sub(d.m.now) - time.Duration(rapid.IntRange(0, 1).Draw(t, "short of"))
			wall = min(up, max(up-d.m.now.Sub(d.clock()), 0)) // whatever it is behind by
		}
	}
	d.turn(t, wall, up)
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
	if rapid.IntRange(0, 3).Draw(t, "rarely") > 0 {
		t.Skip("opening a store takes as long as twenty verbs")
	}
	d.reopen(t, func() { d.stop(rapid.Bool().Draw(t, "clean")) })
}

// reopen ends the daemon and starts another, while the clocks may be turned.
func (d *driven) reopen(t *rapid.T, end func()) {
	if d.m.broken {
		d.edit(d.m.rule) // it does not start with one it can't read
	}
	end()
	wall, up := time.Duration(0), rapid.SampledFrom([]time.Duration{0, time.Second, 10 * time.Minute}).Draw(t, "down")
	if rapid.Bool().Draw(t, "set back") {
		wall = -time.Hour
	}
	d.turnClocks(wall+up, up)
	d.open()
	d.begun(t, d.m.now.Add(up))
}

// begun is for after a start, when it is at least that late.
func (d *driven) begun(t *rapid.T, least time.Time) {
	if now := d.clock(); now.After(least) {
		least = now
	}
	if d.m.tick(d.Broker.now()); !d.m.now.Equal(least) {
		t.Fatalf("started at %v, want %v", d.m.now, least)
	}
	for session := range d.m.attached {
		d.m.leave(session)
	}
}

// undecided is a verb whose outcome nobody is told: a lease by c (as is Active), or the end of one.
type undecided struct {
	c        identity.Caller
	name, id string
	as       State
	do       func() error
}

func (d *driven) someUndecided(t *rapid.T) undecided {
	d.turn(t, 2*rebuildPause, 2*rebuildPause)
	d.sweep(ctx)
	u := undecided{c: d.somebody(t), name: rapid.SampledFrom(mNames).Draw(t, "credential"), id: d.someLease(t),
		as: rapid.SampledFrom([]State{Active, Released, Revoked}).Draw(t, "verb")}
	l := d.m.live[u.id]
	if u.as == Active && d.m.mayLease(u.c.Principal, u.name) != "" || u.as != Active && (l == nil || l.deadline().Sub(d.m.now) < 5*rebuildPause) {
		t.Skip("nothing to write")
	}
	u.do = map[State]func() error{
		Active:   func() error { _, err := d.Lease(ctx, u.c, Request{Credential: u.name}); return err },
		Released: func() error { _, err := d.Release(ctx, d.m.sessions[l.owner], u.id); return err },
		Revoked:  func() error { _, err := d.RevokeLeases(ctx, operator, Filter{LeaseID: u.id}); return err },
	}[u.as]
	return u
}

// storeError makes the next group fail that is written, on the disk or not, under one verb.
func (d *driven) storeError(t *rapid.T) {
	u, kept := d.someUndecided(t), rapid.Bool().Draw(t, "kept")
	d.disk.failNext(kept)
	err := u.do()
	d.disk.heal()
	if err != nil { // else it was the store's own checkpoint that failed, which comes each second
		wantAnswer(t, "with a failing disk", err, Unavailable)
	}
	if ends := u.as != Active; ends { // on the disk or not, it is over
		d.m.end(u.as, func(id string, _ *mLease) bool { return id == u.id })
		if len(d.Leases(Filter{LeaseID: u.id})) > 0 {
			t.Fatal("a lease that was ended under a failing disk is live")
		}
		d.turn(t, 2*rebuildPause, 2*rebuildPause)
		d.sweep(ctx)
		d.check(t)
		return
	}
	d.turn(t, 2*rebuildPause, 2*rebuildPause)
	d.sweep(ctx)
	if happened := d.learn(u); happened && !kept && err != nil || !happened && err == nil {
		t.Fatalf("the disk kept it: %v; it happened: %v; told: %v", kept, happened, err)
	}
}

// learn finds out whether u happened.
func (d *driven) learn(u undecided) (happened bool) {
	found := map[string]bool{}
	for _, i := range d.Leases(Filter{}) {
		found[i.LeaseID] = true
		if d.m.live[i.LeaseID] != nil || u.as != Active || happened || i.Credential != u.name || i.Identity.By != u.c.By || i.Identity.Name != u.c.Name {
			continue
		}
		cred := d.m.creds[u.name]
		l := &mLease{owner: u.c.Principal, cred: u.name, value: cred.values[cred.version-1], session: i.Identity.Session, issued: i.IssuedAt, expires: i.IssuedAt.Add(d.m.ttl(0))}
		if i.Orphaned {
			l.orphan = i.ExpiresAt
		}
		d.m.live[i.LeaseID], d.ids, happened = l, append(d.ids, i.LeaseID), true
	}
	if u.as != Active && !found[u.id] {
		happened = d.m.end(u.as, func(id string, _ *mLease) bool { return id == u.id }) > 0
	}
	return happened
}
