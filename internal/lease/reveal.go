package lease

import (
	"context"
	"errors"
	"fmt"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// Reveal is the one door by which a value leaves: to the owner of a live lease that is on disk and was granted for
// delivery by value. The caller wipes what it gets.
func (b *Broker) Reveal(_ context.Context, caller identity.Caller, id string) (secret.Secret, error) {
	at, err := b.revealable(caller, id)
	if err != nil {
		return secret.Secret{}, err
	}
	value, err := b.unseal(at.credentialID, at.version, at.ref)
	if err != nil {
		return secret.Secret{}, b.unread(at.name, at.version, err)
	}
	if _, err := b.revealable(caller, id); err != nil { // ended or frozen while the disk worked, and acknowledged
		value.Wipe()
		return secret.Secret{}, err
	}
	return value, nil
}

// unread says why a value can't be unsealed: the store can't be read for a moment, or it is damaged.
func (b *Broker) unread(name string, version int, err error) error {
	if errors.Is(err, store.ErrUnavailable) {
		r := unavailable()
		r.Message = "the value can't be read right now, since keylease's disk fails"
		return r
	}
	return b.fault(fmt.Errorf("unsealing version %d of %s: %w", version, name, err))
}

// sealedAt is where a lease's value lies.
type sealedAt struct {
	credentialID, name string
	version            int
	ref                store.RecordRef
}

// revealable asks all that has to hold in the moment in which a value leaves.
func (b *Broker) revealable(caller identity.Caller, id string) (sealedAt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if err := b.standing(caller.Principal, now); err != nil {
		return sealedAt{}, err
	}
	if err := inScope(caller, identity.MayLease); err != nil {
		return sealedAt{}, err
	}
	l, err := b.find(caller.Principal, id, now)
	if err != nil {
		return sealedAt{}, err
	}
	if !l.durable || l.delivery != policy.Value || !b.narrowing(caller.Principal).Covers(l.cred.rec.Name) {
		return sealedAt{}, notAvailable()
	}
	return sealedAt{l.cred.rec.ID, l.cred.rec.Name, l.version, l.cred.values.of(l.version)}, b.thawed()
}
