package lease

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/internal/ttl"
	"keylease/policy"
	"keylease/store"
)

// Lease opens a lease for caller, or says in a Refusal why not. When it returns without error the grant is on disk.
func (b *Broker) Lease(_ context.Context, caller identity.Caller, r Request) (Grant, error) {
	if utf8.RuneCountInString(r.Purpose) > MaxPurpose {
		return Grant{}, invalid("purpose is longer than %d characters", MaxPurpose)
	}
	b.mu.Lock()
	in, err := b.admit(caller, &r)
	b.mu.Unlock()
	if err != nil {
		return Grant{}, b.denied(caller, r.Credential, "", "lease", r.Purpose, r.Delivery, err)
	}
	if in.lease == nil {
		return b.tell(in)
	}
	if _, err := b.settle(in.written); err != nil {
		return Grant{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	in.lease.durable = true
	b.pokeFor(in.lease)
	g := grant(in.lease, in.lease.issued, in.capped)
	g.Handle, g.Open = in.handle, in.open
	return g, nil
}

// admit decides and, where the answer is yes, makes the lease. What is resumed takes the place of r. Caller holds mu.
func (b *Broker) admit(caller identity.Caller, r *Request) (admitted, error) {
	now := b.now()
	var none admitted
	if err := cmp.Or(b.begin(caller, now), b.thawed()); err != nil {
		return none, err
	}
	if err := inScope(caller, identity.MayLease); err != nil {
		return none, err
	}
	if r.ApprovalID != "" {
		if err := b.resume(caller, r, now); err != nil {
			return none, err
		}
		if r.of.State == Pending {
			return admitted{asked: r.of, written: b.newest}, nil
		}
	}
	c := b.ix.creds[r.Credential]
	if c == nil || c.state() != stateActive {
		return none, notAvailable()
	}
	q := b.question(caller.Principal, c)
	q.TTL, q.Purpose, q.Delivery = r.TTL, r.Purpose, r.Delivery
	d := b.policy.current.Decide(q)
	open := deliverable(d, c, caller)
	delivery, err := permitted(d, *r, c, caller, open)
	if err != nil {
		return none, err
	}
	if err := b.unspent(caller.Principal, c, now); err != nil {
		return none, err
	}
	if err := b.room(c, caller.Principal, d, now); err != nil {
		return none, err
	}
	if b.store.Full() { // what is left is for releasing, ending and recording
		return none, storeFull()
	}
	if err := b.affords(caller.Principal, now); err != nil {
		return none, err
	}
	yes, ask, err := b.agreed(caller, r, c, d, delivery, now)
	if err != nil || ask.asked != nil {
		return ask, err
	}
	e := entry(store.EventLeaseCreated, caller)
	e.Time, e.LeaseID, e.Credential, e.CredentialID = now, newID("ls_"), c.rec.Name, c.rec.ID
	e.Version, e.Purpose = c.current(), CleanText(r.Purpose, MaxPurpose)
	e.Details = append(make(store.Details, 0, 13), // by field; 13 are all it can have
		store.Detail{Field: "delivery", Value: string(delivery)},
		store.Detail{Field: "expires_at", Value: stamp(now.Add(d.TTL))},
		store.Detail{Field: "keep_on_disconnect", Value: formatBool(d.KeepOnDisconnect)},
		store.Detail{Field: "max_expires_at", Value: stamp(now.Add(d.MaxTTL))},
		store.Detail{Field: "rule", Value: d.Rule},
		store.Detail{Field: "transport", Value: caller.Transport},
		store.Detail{Field: "ttl", Value: ttl.Format(d.TTL)},
		store.Detail{Field: "ttl_capped", Value: formatBool(d.Capped)})
	if b.policy.current != nil {
		e.Details.Set("policy_hash", b.policy.current.Hash())
	}
	if yes != nil { // spent by this very Entry: it opens one lease, however many come for it
		d.Capped = d.Capped || yes.Capped
		e.Details.Set("approval_id", yes.ID)
		e.Details.Set("max_expires_at", e.Details.Get("expires_at"))
	}
	var handle secret.Secret
	if delivery == policy.Proxy {
		handle = newHandle()
		mac := b.handleMAC(string(handle.Bytes()))
		e.Details.Set("handle", hex.EncodeToString(mac[:]))
	}
	if caller.UID != "" {
		e.Details.Set("uid", caller.UID)
	}
	notePeer(&e, caller)
	w, err := b.submit(store.Change{Entry: e}, nil)
	if err != nil {
		return none, err
	}
	l := b.ix.leases[e.LeaseID]
	w, err = b.stillHeld(l, w, now)
	return admitted{lease: l, capped: d.Capped, open: open, handle: handle, written: w}, err
}

// begin is how every agent's verb starts: a principal, a store that records, its rate, the policy of now, and
// nothing counted that has ended. Caller holds mu.
func (b *Broker) begin(caller identity.Caller, now time.Time) error {
	b.lastCall = now
	if err := b.standing(caller.Principal, now); err != nil {
		return err
	}
	if err := b.ready(); err != nil {
		return err
	}
	if err := b.refreshPolicy(); err != nil {
		return err
	}
	if err := b.spend(caller.Principal, now); err != nil {
		return err
	}
	return b.expireDue(now)
}

// standing refuses a principal that is nobody, or no longer: a connection outlives the token that opened it, its
// rights do not. Caller holds mu.
func (b *Broker) standing(p identity.Principal, now time.Time) error {
	if strings.HasPrefix(p.By, "token:") {
		if t := b.ix.tokenOf(p.By); t != nil && t.problem(now) == "" && t.principal() == p {
			return nil
		}
	} else if p != (identity.Principal{}) {
		return b.proven(p)
	}
	return refuse(Unauthenticated, "this connection has not proved who it is, or its token has expired or was revoked",
		"Ask the operator for a valid keylease token; there is nothing to retry.")
}

// proven refuses a name that is only the connection's own word where the operator wants a proof of everybody.
func (b *Broker) proven(p identity.Principal) error {
	if !b.cfg.DenyDeclared || p.Proof != identity.Declared {
		return nil
	}
	return refuse(Unauthenticated, "this keylease lends to proven identities only, and nothing proves the name of this connection",
		"Ask the operator for a token (keylease token create) and set KEYLEASE_TOKEN in this client's configuration; there is nothing to retry.")
}

// inScope refuses what the caller's token is not good for, whatever policy says. It tells nothing of any credential.
func inScope(caller identity.Caller, scope identity.Scopes) error {
	if caller.May(scope) {
		return nil
	}
	return refuse(NotAvailable, "the token of this connection does not carry the scope for this", "Tell the operator; there is nothing to retry with this token.")
}

// permitted turns a decision into the delivery that is used, or into the refusal that the caller may see.
func permitted(d policy.Decision, r Request, c *credential, caller identity.Caller, open []policy.Delivery) (policy.Delivery, error) {
	if !d.Allow {
		return "", notAvailable()
	}
	if d.PurposeRequired && r.Purpose == "" {
		return "", refuse(InvalidArgument, "this credential is lent only with a purpose", "Call again with purpose: one line that tells a human what you will do with it.")
	}
	if r.Delivery == "" && len(open) > 0 {
		return usual(open, c), nil
	}
	if !slices.Contains(open, r.Delivery) {
		return "", undeliverable(d, c, caller, open, r.Delivery)
	}
	return r.Delivery, nil
}

// room refuses where one more lease would be over a limit in force. The index is exact: nobody is between this
// count and the lease that follows it. Caller holds mu.
func (b *Broker) room(c *credential, p identity.Principal, d policy.Decision, now time.Time) error {
	if d.MaxLeases > 0 && len(c.leases) >= d.MaxLeases {
		n := len(c.leases)
		if len(b.ix.cut) > 0 { // what a cutoff ended is in there until its Entry is written
			n = c.leases.live(now)
		}
		if over := n - d.MaxLeases; over >= 0 {
			return limitReached(fmt.Sprintf("all %d leases that this credential allows at a time are in use", d.MaxLeases), over, c.leases, p, now)
		}
	}
	if d.Limit == nil {
		return nil
	}
	h := b.ix.holders[p.Holder()]
	if h == nil || len(h.leases) < d.Limit.Max {
		return nil
	}
	n := b.ix.covered(h, b.policy.current, d.Limit)
	if over := n - d.Limit.Max; over >= 0 {
		counted := slices.DeleteFunc(slices.Clone(h.leases), func(l *lease) bool { return !d.Limit.Covers(l.cred.view()) })
		return limitReached(fmt.Sprintf("you hold %d leases, as many as the policy allows you at a time here", n), over, counted, p, now)
	}
	return nil
}

// ownShown is how many leases of its own a caller is shown at most, those that end first.
const ownShown = 100

func ownLeases(set leaseSet, p identity.Principal, now time.Time) []OwnLease {
	var own []OwnLease
	for _, l := range soonest(set, ownShown, now, func(l *lease) bool { return l.owner == p }) {
		own = append(own, l.own())
	}
	return own
}

// limitReached tells the caller which of the leases in its way are its own, so that a forgetful agent renews
// instead of piling up. Where nobody releases, the end of the one that follows over others makes room.
func limitReached(message string, over int, set leaseSet, p identity.Principal, now time.Time) error {
	r := refuse(LeaseLimit, message, "Wait for retry_after, or ask the operator; do not look for this key elsewhere.")
	r.YourLeases = ownLeases(set, p, now)
	if len(r.YourLeases) > 0 {
		r.Hint = "Use or renew (lease_credential with lease_id) one of your_leases, or release those you no longer need; do not lease again."
	}
	frees := soonest(set, over+1, now, func(*lease) bool { return true })
	r.RetryAfter = max(frees[len(frees)-1].deadline().Sub(now), time.Second)
	return r
}

// Renew extends a lease of the caller's own. The answer never holds the value.
func (b *Broker) Renew(_ context.Context, caller identity.Caller, r RenewRequest) (Grant, error) {
	b.mu.Lock()
	now := b.now()
	l, capped, w, err := b.extend(caller, r, now)
	var g Grant
	if err == nil {
		g = grant(l, now, capped)
	}
	b.mu.Unlock()
	if err != nil {
		return Grant{}, b.denied(caller, r.Credential, r.LeaseID, "renew", "", r.Delivery, err)
	}
	if _, err := b.settle(w); err != nil {
		return Grant{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pokeFor(l)
	return g, nil
}

func (b *Broker) extend(caller identity.Caller, r RenewRequest, now time.Time) (*lease, bool, written, error) {
	if err := cmp.Or(b.begin(caller, now), b.thawed()); err != nil {
		return nil, false, written{}, err
	}
	if err := inScope(caller, identity.MayLease); err != nil {
		return nil, false, written{}, err
	}
	l, err := b.find(caller.Principal, r.LeaseID, now)
	if err != nil {
		return nil, false, written{}, err
	}
	if r.Credential != "" && r.Credential != l.cred.rec.Name || r.Delivery != "" && r.Delivery != l.delivery {
		return nil, false, written{}, refuse(InvalidArgument, "credential and delivery must be the lease's own when you renew",
			"Leave them out, or leave lease_id out to open another lease.")
	}
	if err := b.affords(caller.Principal, now); err != nil {
		return nil, false, written{}, err
	}
	q := b.question(caller.Principal, l.cred)
	q.TTL, q.Purpose, q.Delivery = r.TTL, l.purpose, l.delivery
	d := b.policy.current.Decide(q)
	if l.cred.state() != stateActive || !goesOn(l, d) {
		return nil, false, written{}, notAvailable()
	}
	ceiling := l.issued.Add(d.MaxTTL)
	if l.approvedBy != "" && l.approvedTo.Before(ceiling) {
		ceiling = l.approvedTo // what a person agreed to
	}
	if ceiling.Sub(now) < time.Second {
		return nil, false, written{}, refuse(LeaseEnded, "this lease cannot be extended any further; it ends at "+l.deadline().Format(time.RFC3339),
			"Finish by then and release it; lease the credential again if the work goes on.")
	}
	expires, capped := now.Add(d.TTL), d.Capped
	if expires.After(ceiling) {
		expires, capped = ceiling, true
	}
	if r.TTL == 0 && expires.Before(l.expires) {
		expires = l.expires
	}
	e := l.entry(store.EventLeaseRenewed, caller, now)
	e.Details = store.DetailsOf("expires_at", stamp(expires), "max_expires_at", stamp(ceiling),
		"ttl", ttl.Format(expires.Sub(now)), "ttl_capped", formatBool(capped), "rule", d.Rule)
	if b.policy.current != nil {
		e.Details.Set("policy_hash", b.policy.current.Hash())
	}
	w, err := b.submit(store.Change{Entry: e}, nil)
	if err == nil {
		w, err = b.stillHeld(l, w, now)
	}
	return l, capped, w, err
}

// stillHeld orphans a lease whose session ended while this call was on its way: nobody is left to end it later.
func (b *Broker) stillHeld(l *lease, w written, now time.Time) (written, error) {
	if b.attached(l) {
		return w, nil
	}
	return b.orphan(l, now, "session ended")
}

// find returns p's own live lease. Caller holds mu.
func (b *Broker) find(p identity.Principal, id string, now time.Time) (*lease, error) {
	l := b.ix.leases[id]
	mine := l != nil && l.owner == p
	if mine && l.live(now) {
		return l, nil
	}
	if _, ok := b.ix.ended.get(id, p, now); ok || mine {
		return nil, refuse(LeaseEnded, "this lease has ended", hintEnded)
	}
	return nil, notAvailable()
}

func (c *credential) state() string {
	if c.damaged != "" {
		return stateDamaged
	}
	return c.rec.State
}

func grant(l *lease, from time.Time, capped bool) Grant {
	g := Grant{LeaseID: l.id, Credential: l.cred.rec.Name, Type: l.cred.rec.Type, Version: l.version,
		Delivery: l.delivery, IssuedAt: l.issued, ExpiresAt: l.expires, MaxExpiresAt: l.maxAt,
		TTL: l.expires.Sub(from), Capped: capped, SessionBound: l.session != "", Metadata: l.cred.rec.Metadata,
		Plan: l.cred.plan}
	if l.delivery == policy.Exec {
		g.Env = l.cred.envName()
	}
	return g
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
