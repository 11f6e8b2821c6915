package store

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Base is where a trail begins that was pruned: its first event is the one after Seq, and Hash is what that one
// follows. It is zero while nothing was pruned. It lies sealed under the key b, and is written before anything goes:
//
//	store id [16] · seq u64 · hash [32] · time i64 · pruned i64 · exported u64 · Ed25519 signature [64] over "keylease base 1" and all before
//
// Who has not the root key can't make one. One that is removed, or an older one put back, leaves a gap in front of the
// first event that is there.
type Base struct {
	Seq      uint64    `json:"seq"`      // the last event that is gone
	Hash     Digest    `json:"hash"`     // of that event
	Time     time.Time `json:"time"`     // of that event
	Pruned   time.Time `json:"pruned"`   // when it went
	Exported uint64    `json:"exported"` // the confirmed exports went up to this event then
}

const (
	baseKey     = "b"
	baseContext = "keylease base 1"
	baseBody    = 16 + 8 + 32 + 8 + 8 + 8
	baseSize    = baseBody + ed25519.SignatureSize
)

func (b Base) head() head { return head{b.Seq, b.Hash} }

func (k *keyring) baseAAD() []byte { return tuple(nil).bytes(k.store[:]).text("base") }

func (k *keyring) signBase(is Base) []byte {
	b := make([]byte, 0, baseSize)
	b = append(b, k.store[:]...)
	b = binary.BigEndian.AppendUint64(b, is.Seq)
	b = append(b, is.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, nanos(is.Time))
	b = binary.BigEndian.AppendUint64(b, nanos(is.Pruned))
	b = binary.BigEndian.AppendUint64(b, is.Exported)
	return append(b, ed25519.Sign(k.sign, append([]byte(baseContext), b...))...)
}

func (k *keyring) verifyBase(b []byte) (Base, error) {
	public := k.sign.Public().(ed25519.PublicKey)
	if len(b) != baseSize || [16]byte(b) != k.store ||
		!ed25519.Verify(public, append([]byte(baseContext), b[:baseBody]...), b[baseBody:]) {
		return Base{}, errors.New("its signature does not verify")
	}
	return Base{
		Seq: binary.BigEndian.Uint64(b[16:]), Hash: Digest(b[24:56]), Time: fromNanos(binary.BigEndian.Uint64(b[56:])),
		Pruned: fromNanos(binary.BigEndian.Uint64(b[64:])), Exported: binary.BigEndian.Uint64(b[72:]),
	}, nil
}

// readBase returns where the trail begins; zero if nothing was pruned.
func (s *Store) readBase() (Base, error) {
	sealed, err := s.get([]byte(baseKey))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return Base{}, nil
	}
	if errors.Is(err, ErrUnavailable) { // that says nothing of the record
		return Base{}, err
	}
	var plain []byte
	if err == nil {
		plain, err = open(s.keys.record, sealed, s.keys.baseAAD())
	}
	var is Base
	if err == nil {
		is, err = s.keys.verifyBase(plain)
	}
	if err != nil {
		return Base{}, &fault{1, "the record of where the trail begins can't be believed: " + err.Error()}
	}
	return is, nil
}

// hashAt returns the hash of an event that the trail has, or that it follows.
func (s *Store) hashAt(seq uint64) (Digest, error) {
	b, err := s.readBase()
	if err != nil {
		return Digest{}, err
	}
	switch {
	case seq == b.Seq:
		return b.Hash, nil
	case seq < b.Seq:
		return Digest{}, fmt.Errorf("%w: event %d was pruned, all up to %d were", ErrIntegrity, seq, b.Seq)
	}
	e, err := s.entryAt(seq)
	if err != nil {
		return Digest{}, err
	}
	if e == nil {
		return Digest{}, &fault{seq, "it is not in the trail"}
	}
	return e.Hash, nil
}

// Base returns where the trail begins.
func (s *Store) Base() (Base, error) { return s.readBase() }
