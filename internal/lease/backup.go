package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"keylease/internal/identity"
	"keylease/store"
)

// Backup records that a copy of everything is given away, and writes it to out: the Entry is the last in it, or near
// the last. Lending goes on meanwhile.
func (b *Broker) Backup(ctx context.Context, admin identity.Caller, out io.Writer) (store.Backup, error) {
	e := entry(store.EventStoreBackedUp, admin)
	head, _ := b.store.Head()
	e.Details = store.DetailsOf("head", strconv.FormatUint(head, 10))
	b.mu.Lock()
	err := b.ready()
	var w written
	if err == nil {
		w, err = b.submit(store.Change{Entry: e}, nil)
	}
	b.mu.Unlock()
	if err == nil {
		_, err = b.settle(w)
	}
	if err != nil {
		return store.Backup{}, err
	}
	return b.store.Backup(ctx, out)
}

// NewKey is a root key that is to come into force, and what has to happen around that. It is wiped by the Broker.
type NewKey struct {
	Key   []byte
	Place func() error // once it is in force: puts it where the next start looks for it. nil: the operator does
	Drop  func()       // where it did not come into force
}

// KeyRotation says which root key is in force.
type KeyRotation struct {
	Generation int    `json:"generation"` // counts the root keys that the store had
	Placed     bool   `json:"placed"`     // it is where the next start looks for it
	Source     string `json:"source"`     // where that is: see Config.KeySource
}

// RotateKey makes another root key the store's: supplied, 32 bytes, or where that is nil one that Config.NewKey makes.
// Lending goes on meanwhile. With an error that is no Refusal it may be in force all the same: the words say so.
func (b *Broker) RotateKey(_ context.Context, admin identity.Caller, supplied []byte) (KeyRotation, error) {
	b.mu.Lock()
	err := b.ready()
	b.mu.Unlock()
	if err != nil {
		return KeyRotation{}, err
	}
	key := NewKey{Key: supplied}
	if supplied == nil {
		if b.cfg.NewKey == nil {
			return KeyRotation{}, refuse(Conflict, "the root key of this store does not come from a file, so keylease can't put another in its place",
				"Make one yourself (openssl rand -hex 32), give it with --new-root-key-file, and put it where the old one comes from.")
		}
		if key, err = b.cfg.NewKey(); err != nil {
			return KeyRotation{}, refuse(Conflict, fmt.Sprintf("no new root key could be made: %s", err),
				"Nothing was changed. Make room, or make one yourself and give it with --new-root-key-file.")
		}
	}
	defer clear(key.Key)
	err = b.store.RotateRoot(key.Key)
	switch {
	case errors.Is(err, store.ErrUnsure): // both keys stay where they are: the next start finds out
		return KeyRotation{}, refuse(Unavailable, "the disk does not say whether the new root key is in force", "Keep both root keys, and start keylease anew.")
	case err != nil && key.Drop != nil:
		key.Drop()
	}
	switch {
	case errors.Is(err, store.ErrSameKey):
		return KeyRotation{}, refuse(Conflict, "this is the root key that is in force already", "Make another: openssl rand -hex 32")
	case errors.Is(err, store.ErrUnavailable):
		b.cfg.Log.Error().Err(err).Msg("the root key was not replaced")
		return KeyRotation{}, unavailable()
	case err != nil:
		return KeyRotation{}, err
	}
	r := KeyRotation{Generation: b.store.RootGeneration(), Placed: key.Place != nil, Source: b.cfg.KeySource}
	if key.Place != nil {
		if err := key.Place(); err != nil {
			return r, fmt.Errorf("the new root key is in force, and could not be put in the place of the old one: %w", err)
		}
	}
	b.mu.Lock()
	err = b.recordRotation(entry(store.EventKeyRotated, admin), "")
	b.mu.Unlock()
	if err != nil {
		return r, err
	}
	return r, b.store.FinishRotation()
}

// recordRotation records a root key that came into force; the caller has the store finish the rotation then. Until
// that is done the next start does both again. Caller holds mu.
func (b *Broker) recordRotation(e store.Entry, reason string) error {
	e.Details = store.DetailsOf("generation", strconv.Itoa(b.store.RootGeneration()), "source", b.cfg.KeySource)
	if reason != "" {
		e.Details.Set("reason", reason)
	}
	_, err := b.change(store.Change{Entry: e}, nil)
	return err
}
