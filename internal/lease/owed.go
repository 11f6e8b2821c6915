package lease

import (
	"fmt"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// What ends something — release, revoke, freeze — takes effect in memory at once, whether or not the disk takes it: the
// lease gives nothing more, its uses are cut off, it is not shown and not counted. Whoever said it is told so, and that
// it is not recorded: Unavailable, which is no acknowledgement. The Broker keeps it (owed), puts it on top of what it
// reads back from the disk before anybody is let in again, and records it then, with the time at which it was said;
// saying it again is acknowledged once that is done. As long as something is owed the anchor says so outside the data
// folder: after a kill or a power cut nobody knows any more what it was, and the next daemon starts frozen.

// owedFrozen is the reason with which it does.
const owedFrozen = "keylease ended while its disk did not record: leases that had been released or revoked may be live again. Look at keylease leases, end what should be over, then thaw"

// oweWait is how long a verb waits for the anchor to say that something is owed.
var oweWait = time.Second // a test has less patience

// NearlyFull is the state of a store whose disk has room left for ending things only.
const NearlyFull = "nearly full"

// collect takes what the store could not write. Caller holds mu.
func (b *Broker) collect() {
	b.owed = append(b.owed, b.store.Lost()...)
	if len(b.owed) == 0 || b.owing {
		return
	}
	if late := b.late; late != nil {
		select {
		case err := <-late.done:
			b.late = nil
			if b.owing = late.yes && err == nil; b.owing {
				return
			}
		default: // it was waited for already: once for each of a thousand leases would be for ever
			return
		}
	}
	b.owing = b.owe(true)
}

// note is what the anchor is to say, and whether it was written.
type note struct {
	yes  bool
	done chan error
}

// owe has the anchor say it, and reports whether it does. Its disk may be the one that does not answer. Caller holds mu.
func (b *Broker) owe(yes bool) bool {
	n := &note{yes, make(chan error, 1)}
	go func() { n.done <- b.noteOwed(yes) }()
	wait := time.NewTimer(oweWait)
	defer wait.Stop()
	var err error
	select {
	case err = <-n.done:
		b.late = nil
	case <-wait.C:
		b.late = n
		err = fmt.Errorf("the anchor's disk does not answer")
	}
	if err != nil {
		b.cfg.Log.Error().Err(err).Msg("what is owed to the trail can't be noted: were keylease to be killed now, the next start would not know")
	}
	return err == nil
}

// payUp records what is owed, on an index just read back. What turned out to be on the disk is left. Caller holds mu.
func (b *Broker) payUp() error {
	owed := b.owed
	b.owed = nil
	var paid []written
	for i, c := range owed {
		rec, due := b.stillOwed(&c)
		if !due {
			continue
		}
		w, err := b.submit(c, rec)
		if err != nil {
			b.owed = append(b.owed, owed[i:]...)
			return err
		}
		paid = append(paid, w)
	}
	for _, w := range paid {
		e, err := w.pending.Wait()
		if err != nil {
			return err // the store hands back what of it was owed
		}
		b.recorded(&e)
	}
	if len(owed) > 0 {
		b.newEntry.broadcast()
	}
	if len(owed) > 0 || b.owing {
		// Whether it was written in time or comes late: what is owed next has to be noted anew, and what was is not.
		b.owing = false
		b.owe(false)
	}
	return nil
}

// stillOwed reports whether c has yet to be recorded, and returns the record that goes with it, as it is now.
func (b *Broker) stillOwed(c *store.Change) (rec any, due bool) {
	e := &c.Entry
	switch e.Event {
	case store.EventServerFrozen:
		return nil, b.ix.frozen == nil
	case store.EventLeasesEnded:
		if id := e.Details.Get("token_id"); id != "" {
			t := b.ix.tokens[id]
			return nil, t != nil && len(b.ix.ownedBy(t.principal())) > 0
		}
		of := identity.Holder{Type: identity.Type(e.Details.Get("identity_type")), Name: e.Details.Get("identity")}
		return nil, len(b.ix.held(of)) > 0
	case store.EventCredentialRevoked:
		cred := b.ix.byID[e.CredentialID]
		if cred == nil || cred.state() != stateActive {
			return nil, false
		}
		r := cred.rec.clone()
		r.State, r.UpdatedAt = stateRevoked, e.Time
		c.Records = []store.RecordWrite{credentialWrite(r)}
		return r, true
	case store.EventTokenRevoked:
		t := b.ix.tokens[e.Details.Get("token_id")]
		if t == nil || t.damaged || t.rec.Revoked {
			return nil, false
		}
		r := t.rec
		r.Revoked = true
		c.Records = []store.RecordWrite{tokenWrite(r)}
		return r, true
	}
	return nil, b.ix.leases[e.LeaseID] != nil
}

// ends lets a verb that ends something go on where nothing can be recorded. Caller holds mu.
func (b *Broker) ends() error {
	if err := b.ready(); err != nil && (b.closed || b.broken == nil) {
		return err
	}
	return nil
}

// unrecorded turns the refusal of a verb that ends something into what is so: it has taken effect, and is not
// recorded. Caller holds mu.
func (b *Broker) unrecorded(err error, what string) error {
	if codeOf(err) != Unavailable || b.closed {
		return err
	}
	return b.notYet(what)
}

func (b *Broker) notYet(what string) *Refusal {
	r := b.unavailable()
	r.Message = what + ", but keylease's disk cannot record it right now"
	r.Hint = "It holds in this daemon and is recorded as soon as the disk allows. Say it again later to be sure; if that goes on, tell the operator to look at keylease's log and disk."
	return r
}

// unavailable says why nothing can be recorded.
func (b *Broker) unavailable() *Refusal {
	r := unavailable()
	if t := b.store.Trouble(); t != nil && t.State == store.Full {
		r.Reason, r.Message = "store_full", "the disk that keylease records on is full, so nothing was changed"
	}
	return r
}

// freezeWhatWasOwed is for a start after a process that ended owing. Caller holds mu.
func (b *Broker) freezeWhatWasOwed() error {
	if !b.store.Owed() {
		return nil
	}
	b.cfg.Log.Error().Msg(owedFrozen)
	if b.ix.frozen == nil {
		e := entry(store.EventServerFrozen, identity.Caller{})
		e.Details = store.DetailsOf("reason", owedFrozen)
		if _, err := b.change(store.Change{Entry: e}, nil); err != nil {
			return err
		}
	}
	return b.store.Owe(false)
}
