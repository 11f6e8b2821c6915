package lease

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

// ExecRequest is a command that wants to run with a credential.
type ExecRequest struct {
	LeaseID    string // of an exec lease; "": by Credential or Command
	Credential string // one that the caller may lease by exec: a live lease of its own on it is joined, else one is opened
	Command    string // NAME or CREDENTIAL/NAME, as the admin fixed it in the credential's expose
	TTL        time.Duration
	Purpose    string
	Program    string // what will run, for the record
	Opened     bool   // with LeaseID: the lease was opened for this command, before the daemon was restarted
	ApprovalID string // of what an earlier NeedsApproval said has to be approved

	// For a program that asks keylease for a key and is not started by it, as git and the AWS tools do.
	Origin string // the program signs in there: the credential must be one for it, and without Credential is found by it
	Keep   bool   // the program goes on with the value when keylease has answered: a lease that is opened for it lasts its time
}

// NeedsApproval is the error of a command that nobody has agreed to yet: it may be asked again with the question's id.
type NeedsApproval struct{ Waiting }

func (*NeedsApproval) Error() string { return "a person has to agree to this first" }

// Exec lends a value to a command's environment, never to the agent: on a lease that was granted for delivery by exec,
// to its owner or, where nothing but a uid proved the owner, to any process of that uid. While the Use lasts
// caller.Session holds the lease, which so outlives the session that it was opened in. A lease that was opened for a
// command is released when the last command on it has ended. When Exec returns without error its lease.used is on disk.
func (b *Broker) Exec(ctx context.Context, caller identity.Caller, r ExecRequest) (*Use, error) {
	named := r.LeaseID
	u, at, err := b.admitExec(ctx, caller, &r)
	for range 2 { // two commands at once: the other one opened the lease meanwhile, or ended it
		if code := codeOf(err); named != "" || code != LeaseLimit && code != LeaseEnded {
			break
		}
		r.LeaseID = ""
		u, at, err = b.admitExec(ctx, caller, &r)
	}
	if err != nil {
		b.mu.Lock()
		delete(b.sessions, caller.Session)
		b.mu.Unlock()
		if errors.As(err, new(*NeedsApproval)) {
			return nil, err
		}
		return nil, b.denied(caller, r.Credential, r.LeaseID, "exec", r.Purpose, policy.Exec, err)
	}
	e := u.with(store.DetailsOf("phase", "begun"))
	if err := b.submitAndSettle(e); err != nil {
		b.drop(u)
		return nil, err
	}
	u.told.Store(true)
	if u, err = b.handOver(u, at); err == nil && r.Keep {
		u.freshen(ctx)
	}
	return u, err
}

func (b *Broker) submitAndSettle(e store.Entry) error {
	b.mu.Lock()
	e.Time = b.now()
	w, err := b.submit(store.Change{Entry: e}, nil)
	b.mu.Unlock()
	if err == nil {
		_, err = b.settle(w)
	}
	return err
}

func (b *Broker) admitExec(ctx context.Context, caller identity.Caller, r *ExecRequest) (*Use, sealedAt, error) {
	if caller.Transport != "local" {
		return nil, sealedAt{}, refuse(DeliveryUnavailable, "commands run with a credential on keylease's own machine only", "Ask for another delivery.")
	}
	argv, opens, err := b.meant(caller, r)
	if err != nil {
		return nil, sealedAt{}, err
	}
	if opens {
		holder := caller
		if r.Keep {
			holder.Session = "" // bound to none
		}
		g, err := b.Lease(ctx, holder, Request{Credential: r.Credential, TTL: r.TTL, Purpose: r.Purpose, Delivery: policy.Exec, ApprovalID: r.ApprovalID})
		if err != nil {
			return nil, sealedAt{}, err
		}
		if g.Waiting != nil {
			return nil, sealedAt{}, &NeedsApproval{*g.Waiting}
		}
		r.LeaseID, r.Opened = g.LeaseID, !r.Keep
	}
	u, at, err := b.startExec(caller, r, argv)
	if err != nil && opens { // nobody else knows of it
		if _, err := b.Release(ctx, caller, r.LeaseID); err != nil {
			b.cfg.Log.Warn().Err(err).Str("lease_id", r.LeaseID).Msg("a lease that was opened for a command that may not begin could not be released; it ends with its time")
		}
	}
	return u, at, err
}

func (b *Broker) startExec(caller identity.Caller, r *ExecRequest, argv []string) (*Use, sealedAt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	l, err := b.runnable(caller, r.LeaseID, now)
	if err != nil {
		return nil, sealedAt{}, err
	}
	if err := cmp.Or(b.usable(l, now), b.hold(l, caller, now)); err != nil {
		return nil, sealedAt{}, err
	}
	details := store.DetailsOf("program", CleanText(r.Program, 100))
	if r.Origin != "" {
		details.Set("origin", CleanText(r.Origin, 300))
	}
	u := b.startUse(l, caller, details, now)
	notePeer(&u.entry, caller)
	u.session, u.Argv = caller.Session, argv
	if origin, err := use.ParseOrigin(r.Origin); err == nil {
		u.User, _ = l.cred.signInAt(origin)
	}
	b.uses.opened(l.id, r.Opened)
	u.Opened = b.uses.wasOpened(l.id)
	return u, l.sealedAt(), nil
}

// meant finds out which lease r is about: the one that it names, one of the caller's own on the credential, or (opens)
// one that has yet to be opened. argv is that of a command that the admin fixed.
func (b *Broker) meant(caller identity.Caller, r *ExecRequest) (argv []string, opens bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if err := b.begin(caller, now); err != nil {
		return nil, false, err
	}
	if r.Command != "" {
		if r.Credential, argv, err = b.command(caller, r.Command); err != nil {
			return nil, false, err
		}
	}
	if err := b.signsIn(caller, r); err != nil {
		return nil, false, err
	}
	if r.LeaseID != "" {
		return argv, false, nil
	}
	c := b.ix.creds[r.Credential]
	if c == nil {
		return nil, false, notAvailable()
	}
	d := b.policy.current.Decide(b.question(caller.Principal, c))
	var last *lease // the one that ends last
	for _, l := range c.leases {
		// One that the policy of now stopped is passed by: what it wants instead, such as a person's yes, a new one can get.
		// So is, for a program that goes on with the value, one that ends with a command.
		mine := l.owner == caller.Principal && l.delivery == policy.Exec && l.version == c.current()
		if mine && l.live(now) && goesOn(l, d) && !(r.Keep && b.uses.wasOpened(l.id)) && (last == nil || sooner(last, l) < 0) {
			last = l
		}
	}
	if last != nil {
		r.LeaseID = last.id
		return argv, false, nil
	}
	b.sessions[caller.Session] = caller.Principal // before the lease that is bound to it
	return argv, true, nil
}

// command finds what the admin fixed under a name, among the credentials that the caller may lease by exec.
// Caller holds mu.
func (b *Broker) command(caller identity.Caller, name string) (credential string, argv []string, err error) {
	of, name := "", name
	if before, after, ok := strings.Cut(name, "/"); ok {
		of, name = before, after
	}
	var found []string
	for _, c := range b.ix.names {
		c := b.ix.creds[c]
		if of != "" && of != c.rec.Name || c.state() != stateActive || c.rec.Expose == nil || c.rec.Expose.Commands[name] == nil {
			continue
		}
		if d := b.policy.current.Decide(b.question(caller.Principal, c)); d.Allow && slices.Contains(d.Deliveries, policy.Exec) {
			found = append(found, c.rec.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", nil, notAvailable()
	case 1:
		return found[0], b.ix.creds[found[0]].rec.Expose.Commands[name], nil
	}
	return "", nil, refuse(InvalidArgument, "several credentials have a command of this name",
		"Say which: "+strings.Join(found, "/"+name+", ")+"/"+name+".")
}

// runnable returns the live exec lease that caller may run a command on. A lease whose owner is only the word of some
// process is as much that of any other process of the same uid: its id together with the uid is enough. Caller holds mu.
func (b *Broker) runnable(caller identity.Caller, id string, now time.Time) (*lease, error) {
	owner := caller.Principal
	if l := b.ix.leases[id]; l != nil && l.owner.Proof == identity.Declared && l.owner.By == "uid:"+caller.UID {
		owner = l.owner
	}
	l, err := b.find(owner, id, now)
	if err != nil {
		return nil, err
	}
	if l.delivery != policy.Exec {
		return nil, refuse(DeliveryUnavailable, "this lease was not granted for delivery by exec",
			`Lease the credential with delivery "exec", or run keylease exec --credential NAME.`)
	}
	return l, nil
}

// hold binds a lease that no session holds any more to the one that runs the command. Caller holds mu.
func (b *Broker) hold(l *lease, caller identity.Caller, now time.Time) error {
	b.sessions[caller.Session] = l.owner
	if b.attached(l) && l.orphanEnd.IsZero() {
		return nil
	}
	_, err := b.adoptInto(l, caller.Session, now)
	return err
}

func (b *Broker) adoptInto(l *lease, session string, now time.Time) (written, error) {
	e := l.entry(store.EventLeaseAdopted, identity.Caller{Principal: l.owner, Session: session}, now)
	e.Details = store.DetailsOf("session", session)
	return b.submit(store.Change{Entry: e}, nil)
}

// ran is what follows the end of a command: the lease that was opened for it is released with the last one, any other
// goes back to whoever held it, or to nobody.
func (b *Broker) ran(u *Use) {
	id := u.Lease.LeaseID
	b.mu.Lock()
	var w written
	var err error
	if b.uses.idle(id) { // under the lock under which commands join: none gets a lease that is on its way out
		_, w, err = b.giveBack(identity.Caller{Principal: u.owner, Session: u.session, Transport: "local"}, id)
	}
	b.mu.Unlock()
	if err == nil && w.pending != nil {
		_, err = b.settle(w)
	}
	if codeOf(err) != "" && codeOf(err) != LeaseEnded {
		b.cfg.Log.Warn().Err(err).Str("lease_id", id).Msg("a lease that was opened for a command could not be released; it ends with its time")
	}
	b.Detach(context.Background(), u.session)
}

// Renew extends the lease of a use, as its holder would: policy is asked, and the ceiling stays. It returns when the
// lease ends now.
func (u *Use) Renew(ctx context.Context) (time.Time, error) {
	g, err := u.b.Renew(ctx, identity.Caller{Principal: u.owner, Session: u.session, Transport: "local"}, RenewRequest{LeaseID: u.Lease.LeaseID})
	return g.ExpiresAt, err
}

// envName is the variable in which a command finds the value.
func (c *credential) envName() string { return use.EnvName(c.rec.Expose, c.rec.Upstream, c.rec.Name) }
