package lease

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

// Use is one use of a lease by which its holder does not see the value: a request on its way through the proxy, or a
// running command. It lasts until End, which must be called.
type Use struct {
	Lease  Grant
	Value  secret.Secret // wiped by End
	Target use.Target    // proxy: where the request goes
	Argv   []string      // exec: the command that the admin fixed; nil: any
	Opened bool          // exec: the lease was opened for a command, and is released with the last one on it
	User   string        // exec with an Origin: as whom one signs in there; "": nothing says

	b       *Broker
	entry   store.Entry // the lease.used of its begin
	began   time.Time
	owner   identity.Principal
	session string // exec: holds the lease for as long as the command runs
	ctx     context.Context
	cancel  context.CancelCauseFunc
	long    *time.Timer
	told    atomic.Bool // that it began
	stands  atomic.Pointer[standing]
	once    sync.Once
	done    chan struct{} // closed when the use has stopped
}

// Outcome is how a use went. Zero fields are not recorded.
type Outcome struct {
	Status  int    // of the answer that the caller got; of a command its exit code
	In, Out int64  // bytes of the bodies, from the caller and to it
	Reason  string // why it did not go well
}

// standing is what Err found when it last looked.
type standing struct{ asked, until time.Time }

// askAgain is how old that may be. A use is asked at each piece of a stream, by many at once.
const askAgain = 20 * time.Millisecond

// cutOff is why a use was stopped from outside.
type cutOff string

func (c cutOff) Error() string { return string(c) }

// Context ends when the lease does, when keylease is frozen, and with End.
func (u *Use) Context() context.Context { return u.ctx }

// Why is the reason for which the use was cut off; "" while it was not.
func (u *Use) Why() string {
	var c cutOff
	errors.As(context.Cause(u.ctx), &c)
	return string(c)
}

// Err asks now, not the sweeper, whether the lease still gives what it gave when the use began. The deadline is held
// against the clock at each call; whether it was moved is looked up every askAgain. All else that ends a lease ends
// Context.
func (u *Use) Err() error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	b, now := u.b, u.b.now()
	if s := u.stands.Load(); s != nil && now.Before(s.until) && now.Sub(s.asked) < askAgain {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.ix.leases[u.Lease.LeaseID]
	if l == nil || !l.live(now) {
		return cutOff("the lease has ended")
	}
	u.stands.Store(&standing{now, l.deadline()})
	return b.thawed()
}

// End says that the use is over, and records it without waiting for that. The first call counts.
func (u *Use) End(o Outcome) {
	u.once.Do(func() {
		why := u.Why()
		if u.long != nil {
			u.long.Stop()
		}
		u.Value.Wipe()
		u.cancel(nil)
		close(u.done) // before any lock: whoever ends the lease waits for it
		u.b.uses.remove(u)
		details := store.DetailsOf("duration_ms", strconv.FormatInt(u.b.now().Sub(u.began).Milliseconds(), 10))
		for field, n := range map[string]int64{"status": int64(o.Status), "bytes_in": o.In, "bytes_out": o.Out} {
			if n != 0 {
				details.Set(field, strconv.FormatInt(n, 10))
			}
		}
		if why = cmp.Or(why, o.Reason); why != "" {
			details.Set("reason", CleanText(why, 200))
		}
		if u.told.Load() {
			details.Set("phase", "ended")
		}
		e := u.with(details)
		if u.session == "" || u.b.submitAndSettle(e) != nil {
			u.b.recordUse(e)
		}
		if u.session != "" { // what was told is told in order: then the lease
			u.b.ran(u)
		}
	})
}

// with is a lease.used about u that says more.
func (u *Use) with(more store.Details) store.Entry {
	e := u.entry
	e.Details = slices.Clone(e.Details) // which u keeps
	for field, v := range more.All() {
		e.Details.Set(field, v)
	}
	return e
}

// startUse makes a Use of l, which its end will cut off. Caller holds mu.
func (b *Broker) startUse(l *lease, by identity.Caller, details store.Details, now time.Time) *Use {
	details.Set("delivery", string(l.delivery))
	u := &Use{Lease: grant(l, now, false), b: b, entry: l.entry(store.EventLeaseUsed, by, now), began: now, owner: l.owner, done: make(chan struct{})}
	u.entry.Details = details
	u.ctx, u.cancel = context.WithCancelCause(context.Background())
	b.uses.add(u)
	return u
}

// handOver gives u the value that lies at at. The use is among those that the lease's end cuts off already, so it is
// asked once more after the disk has worked.
func (b *Broker) handOver(u *Use, at sealedAt) (*Use, error) {
	value, held := b.uses.held(u)
	var err error
	if !held {
		value, err = b.unseal(at.credentialID, at.version, at.ref)
	}
	if err != nil {
		err = b.unread(at.name, at.version, err)
	} else if over := u.Err(); over != nil {
		value.Wipe()
		if err = over; AsRefusal(over) == nil {
			err = refuse(LeaseEnded, "this lease has ended", hintEnded)
		}
	}
	if err != nil {
		b.drop(u)
		return nil, err
	}
	u.Value = value
	if !held {
		b.uses.hold(u)
	}
	if !u.told.Load() {
		u.long = time.AfterFunc(longUse, func() {
			u.told.Store(true)
			u.b.recordUse(u.with(store.DetailsOf("phase", "begun")))
		})
	}
	return u, nil
}

// drop forgets a use that came to nothing.
func (b *Broker) drop(u *Use) {
	u.once.Do(func() {
		u.cancel(nil)
		close(u.done)
		b.uses.remove(u)
		if u.told.Load() {
			b.recordUse(u.with(store.DetailsOf("phase", "ended", "reason", "the value was not handed over")))
		}
		if u.session != "" {
			b.ran(u)
		}
	})
}

func (l *lease) sealedAt() sealedAt {
	return sealedAt{l.cred.rec.ID, l.cred.rec.Name, l.version, l.cred.values.of(l.version)}
}

// BeginUse lets one request through the proxy: to whoever has the handle of a live lease and, where both uids are
// known, the uid of the lease's holder. method and path are the request's own, the path as it was sent and without the
// query; they are held against the credential's upstream, and Use.Target is where the request goes.
// Errors: a *Refusal (NotAvailable tells nothing; RateLimited; Unavailable), or *use.Refused where the request is not
// one that the credential may be used for, which is recorded.
func (b *Broker) BeginUse(_ context.Context, handle, uid, method, path string) (*Use, error) {
	b.mu.Lock()
	u, at, err := b.admitUse(handle, uid, method, path)
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return b.handOver(u, at)
}

func (b *Broker) admitUse(handle, uid, method, path string) (*Use, sealedAt, error) {
	now := b.now()
	b.lastCall = now
	l := b.ix.handles[b.handleMAC(handle)]
	if l == nil || !l.durable || !l.live(now) || uid != "" && l.uid != "" && uid != l.uid {
		return nil, sealedAt{}, notAvailable()
	}
	if err := b.usable(l, now); err != nil {
		return nil, sealedAt{}, err
	}
	if err := b.uses.spend(l.id, b.policy.current, l.cred.plan, now); err != nil {
		return nil, sealedAt{}, err
	}
	details := store.DetailsOf("method", CleanText(method, 20), "path", CleanText(path, 300))
	target, err := l.cred.plan.Route(method, path)
	if err != nil {
		e := l.entry(store.EventLeaseUsed, identity.Caller{Principal: l.owner}, now)
		details.Set("delivery", string(l.delivery))
		details.Set("status", "403")
		details.Set("reason", CleanText(err.Error(), 200))
		e.Details = details
		go b.recordUse(e)
		return nil, sealedAt{}, err
	}
	u := b.startUse(l, identity.Caller{Principal: l.owner}, details, now)
	u.Target = target
	return u, l.sealedAt(), nil
}

// usable asks all that has to hold when a live lease is used and not only held: its holder stands, uses are recorded,
// keylease lends, and the policy of now agrees. Caller holds mu.
func (b *Broker) usable(l *lease, now time.Time) error {
	if err := cmp.Or(b.standing(l.owner, now), b.ready(), b.uses.written(now)); err != nil {
		return err
	}
	if b.store.Full() {
		return storeFull()
	}
	if err := b.affords(l.owner, now); err != nil {
		return err
	}
	if err := cmp.Or(b.refreshPolicy(), b.thawed()); err != nil {
		return err
	}
	d := b.policy.current.Decide(b.question(l.owner, l.cred))
	if l.cred.state() != stateActive || !goesOn(l, d) {
		return notAvailable()
	}
	return nil
}

// goesOn reports whether d, the decision of now, still allows a lease that was granted under an earlier one.
func goesOn(l *lease, d policy.Decision) bool {
	return d.Allow && slices.Contains(d.Deliveries, l.delivery) && (l.delivery != policy.Proxy || l.cred.plan != nil) &&
		l.approvedBy.AtLeast(d.Approval) // what the policy wants now, somebody agreed to then
}

func (b *Broker) handleMAC(handle string) [32]byte { return b.store.MAC("handles", []byte(handle)) }
