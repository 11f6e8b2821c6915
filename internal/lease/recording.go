package lease

import (
	"keylease/store"
)

// rebuild is what a failed write leads to: nothing of the group took effect but what is owed, so the index is read anew
// from what is on disk. Caller holds mu.
func (b *Broker) rebuild() error {
	b.rebuilt = b.now()
	b.collect()
	if err := b.store.Recover(); err != nil {
		return err
	}
	if err := b.load(); err != nil {
		return err
	}
	b.broken, b.newest = nil, written{}
	b.epoch++
	if err := b.payUp(); err != nil {
		return err
	}
	b.uses.endWhere(func(id string) bool { return b.ix.leases[id] == nil }, "the lease could not be recorded")
	if b.policy.current != nil { // its Entry may be among what was lost
		if err := b.govern(b.policy.current); err != nil {
			return err
		}
	}
	return b.meetSessions()
}

// ready reports whether changes can be recorded, trying to recover first where they could not. Caller holds mu.
func (b *Broker) ready() error {
	if b.closed {
		return unavailable()
	}
	if b.broken == nil {
		return nil
	}
	if b.now().Sub(b.rebuilt) < rebuildPause {
		return b.unavailable()
	}
	if err := b.rebuild(); err != nil {
		b.broken = err
		return b.unavailable()
	}
	b.cfg.Log.Warn().Msg("the store can record changes again")
	return nil
}

// written is a change on its way to the disk.
type written struct {
	pending *store.Pending
	epoch   int
}

// submit applies the change to the index and puts it in the trail's queue. Caller holds mu, and waits for the
// answer with settle after letting go of it.
func (b *Broker) submit(c store.Change, rec any) (written, error) {
	if b.closed || b.broken != nil && !c.Owed {
		return written{}, b.unavailable()
	}
	if c.Entry.Time.IsZero() {
		c.Entry.Time = b.now()
	}
	c.Entry.Time = c.Entry.Time.UTC()
	if err := b.ix.apply(&c.Entry, rec); err != nil {
		return written{}, b.fault(err)
	}
	if b.broken != nil { // the index is not what the disk has: nothing goes there before it was read back
		b.owed = append(b.owed, c)
		b.collect()
		return written{}, b.unavailable()
	}
	b.newest = written{b.store.Submit(c), b.epoch}
	return b.newest, nil
}

// settle waits until the change is durable. Where it can't be made so, everything not on disk is undone.
// Caller does not hold mu.
func (b *Broker) settle(w written) (store.Entry, error) {
	e, err := w.pending.Wait()
	if err == nil {
		b.newEntry.broadcast()
		return e, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return e, b.writeFailed(w, err)
}

// settleLocked is settle for the rare verbs that hold mu throughout.
func (b *Broker) settleLocked(w written) (store.Entry, error) {
	e, err := w.pending.Wait()
	if err != nil {
		return e, b.writeFailed(w, err)
	}
	b.newEntry.broadcast()
	return e, nil
}

// writeFailed makes the Broker forget what the disk does not know. The store fails everything that was queued behind
// a failed write too, so the first to hear of it rebuilds for all. Caller holds mu.
func (b *Broker) writeFailed(w written, err error) error {
	refusal := b.unavailable()
	if w.epoch != b.epoch || b.closed {
		return refusal
	}
	if b.broken == nil {
		b.cfg.Log.Error().Err(err).Msg("a change could not be recorded and was not made")
	}
	b.broken = err
	b.collect()
	if b.now().Sub(b.rebuilt) < rebuildPause {
		return refusal // until then what is not on disk stays as it is and gives nothing
	}
	if err := b.rebuild(); err != nil {
		b.cfg.Log.Error().Err(err).Msg("the store can't be read back yet")
		b.broken = err
	}
	return refusal
}

// fault turns an impossible state into words that tell a caller nothing about it.
func (b *Broker) fault(err error) error {
	id := newID("err_")
	b.cfg.Log.Error().Err(err).Str("id", id).Msg("internal fault")
	return &Refusal{Code: Internal, ID: id, Message: "keylease hit an internal fault",
		Hint: "Tell the operator this id; the daemon's log has the details."}
}

// change submits and waits while holding mu: for credentials, tokens and everything rare.
func (b *Broker) change(c store.Change, rec any) (store.Entry, error) {
	w, err := b.submit(c, rec)
	if err != nil {
		return store.Entry{}, err
	}
	e, err := b.settleLocked(w)
	if err != nil {
		return e, err
	}
	b.recorded(&e)
	return e, nil
}

// recorded notes where the records that came with e are. Caller holds mu.
func (b *Broker) recorded(e *store.Entry) {
	if cred := b.ix.byID[e.CredentialID]; cred != nil {
		b.ix.noteRefs(cred, e)
	}
	if t := b.ix.tokens[e.Details.Get("token_id")]; t != nil {
		for _, ref := range e.Records {
			t.ref = ref
		}
	}
}
