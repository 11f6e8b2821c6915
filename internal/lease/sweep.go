package lease

import (
	"context"
	"sync"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

const (
	// sweepGroup is how many leases a sweep ends before it lets others in: half of what a group of the trail holds, so
	// that a great many deadlines at once do not starve requests. It ends as many again while those are written, and no more.
	sweepGroup = 512
	// quiet is how long nobody may have called before keys of old versions are destroyed: dropping them stops writes
	// for a sixth of a second. They wait no longer than patience.
	quiet    = 2 * time.Second
	patience = time.Minute
	// idleSweep is how often Run looks without being told to.
	idleSweep = 5 * time.Second
)

// Run ends leases at their deadlines, writes summaries and destroys the keys of versions nobody uses, until ctx
// ends. Expiry does not depend on it: it only writes down what every use would find.
func (b *Broker) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { b.runSnapshots(ctx, snapshotAfter, snapshotCalm, snapshotLook) })
	if b.cfg.KeepTrail > 0 {
		beside.Go(func() { b.pruneTrail(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-timer.C:
		}
		b.sweep(ctx)
		timer.Reset(b.untilSweep())
	}
}

// untilSweep is how long nothing will be due.
func (b *Broker) untilSweep() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.sweepAt.Sub(b.now()), 0)
}

// poke makes Run look at the deadlines again.
func (b *Broker) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// pokeFor is poke where Run would look too late for l: after it ends, or, where it is the first, after the time is to be
// written down. Caller holds mu.
func (b *Broker) pokeFor(l *lease) {
	if l.deadline().Before(b.sweepAt) || b.sweepAt.Sub(b.now()) > observeLeases {
		b.poke()
	}
}

// sweep does all that is due.
func (b *Broker) sweep(ctx context.Context) {
	all, err := b.sweepSome()
	for len(all) >= sweepGroup && err == nil && ctx.Err() == nil {
		before := all
		all, err = b.sweepSome()
		b.settleAll(before)
	}
	b.settleAll(all)
	b.answered.broadcast() // a question may be over
	if err != nil || ctx.Err() != nil {
		return
	}
	if err := b.destroyUnused(b.now()); err != nil {
		b.cfg.Log.Error().Err(err).Msg("destroying old versions failed; trying again later")
	}
}

// sweepSome does as much of what is due as others can wait for, and returns what is to be settled of it.
func (b *Broker) sweepSome() (all []written, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, wait := b.now(), time.Second
	defer func() { b.sweepAt = now.Add(wait) }()
	observe := b.observe()
	if err := b.ready(); err != nil {
		return nil, err
	}
	wait = idleSweep
	if all, err = b.expireSome(now); err == nil {
		var cut []written
		cut, err = b.writeCut(now, sweepGroup-len(all))
		all = append(all, cut...)
	}
	all = append(all, b.summaries(now, false)...)
	over, nextOver := b.lapseSome(now)
	all = append(all, over...)
	if err != nil {
		return all, err
	}
	wait = min(wait, observe)
	if !nextOver.IsZero() {
		wait = min(wait, max(nextOver.Sub(now), 0))
	}
	switch {
	case len(b.ix.cut) > 0:
		wait = 0
	case len(b.ix.due) > 0:
		wait = min(wait, max(b.ix.due.next().deadline().Sub(now), 0))
	}
	return all, nil
}

// expireSome ends at most sweepGroup leases that are due. Caller holds mu.
func (b *Broker) expireSome(now time.Time) (all []written, err error) {
	for range sweepGroup {
		l, reason := b.ix.due.next(), ""
		if l == nil || !l.overdue(now) {
			return all, nil
		}
		if !l.orphanEnd.IsZero() && l.orphanEnd.Before(l.expires) {
			reason = "holder left"
		}
		_, w, err := b.end(l, store.EventLeaseExpired, identity.Caller{}, now, reason)
		if err != nil {
			return all, err
		}
		all = append(all, w)
	}
	return all, nil
}

// expireDue writes down every deadline that has passed before a decision counts what is live. Nobody waits for
// these: whatever is decided next stands behind them in the trail. Caller holds mu.
func (b *Broker) expireDue(now time.Time) error {
	for l := b.ix.due.next(); l != nil && l.overdue(now); l = b.ix.due.next() {
		if _, err := b.expireSome(now); err != nil {
			return err
		}
	}
	return nil
}

// maxDestroy is how many versions are destroyed before others are let in.
const maxDestroy = 256

// destroyUnused destroys the keys of versions that were rotated out or removed and that no lease uses any more: at most
// maxDestroy, the next sweep goes on. If we crash after the keys went and before the Entries, the next run finds the
// same work, does it again, and writes them. Nobody waits for mu meanwhile; writers wait for the store.
func (b *Broker) destroyUnused(now time.Time) error {
	refs, err := b.toDestroy(now)
	if err != nil || len(refs) == 0 {
		return err
	}
	if err := b.store.Destroy(refs); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return err
	}
	return b.recordDestroyed(refs, now)
}

// toDestroy returns what can be destroyed now: what made it unused is on disk, and nothing makes it used again.
func (b *Broker) toDestroy(now time.Time) ([]store.ValueRef, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ix.destroy) == 0 {
		b.destroySince = time.Time{}
		return nil, nil
	}
	if b.destroySince.IsZero() {
		b.destroySince = now
	}
	if now.Sub(b.lastCall) < quiet && now.Sub(b.destroySince) < patience {
		return nil, nil
	}
	if err := b.ready(); err != nil {
		return nil, err
	}
	refs := make([]store.ValueRef, 0, min(len(b.ix.destroy), maxDestroy))
	for ref := range b.ix.destroy {
		if refs = append(refs, ref); len(refs) == maxDestroy {
			break
		}
	}
	if len(refs) == len(b.ix.destroy) {
		b.destroySince = time.Time{}
	}
	return refs, b.barrier()
}

// recordDestroyed writes an Entry for each of refs, all in one go. Caller holds mu.
func (b *Broker) recordDestroyed(refs []store.ValueRef, now time.Time) error {
	all := make([]written, 0, len(refs))
	for _, ref := range refs {
		change := store.Change{Entry: store.Entry{Event: store.EventVersionDestroyed, Time: now, Version: ref.Version,
			Credential: b.ix.destroy[ref], CredentialID: ref.CredentialID}}
		var rec any
		if c := b.ix.byID[ref.CredentialID]; c != nil && c.damaged == "" {
			r := c.rec.clone()
			for i := range r.Versions {
				if r.Versions[i].Version == ref.Version {
					r.Versions[i].State = stateDestroyed
				}
			}
			change.Records, rec = []store.RecordWrite{credentialWrite(r)}, r
		}
		w, err := b.submit(change, rec)
		if err != nil {
			return err
		}
		all = append(all, w)
	}
	for _, w := range all {
		e, err := b.settleLocked(w)
		if err != nil {
			return err
		}
		if c := b.ix.byID[e.CredentialID]; c != nil {
			b.ix.noteRefs(c, &e)
		}
	}
	return nil
}
