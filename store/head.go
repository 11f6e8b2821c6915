package store

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A signed head says: this store's trail ended with this hash at this time. Who pinned the key's fingerprint can tell
// by it a trail of this store from one that somebody made up. It lies sealed under the key h:
//
//	store id [16] · epoch u64 · seq u64 · head [32] · time i64 · Ed25519 signature [64] over "keylease head 1" and all before
type signedHead struct {
	epoch uint64 // the anchor's
	head
	time time.Time
}

const (
	signContext = "keylease head 1"
	signedBody  = 16 + 8 + 8 + 32 + 8
	signedSize  = signedBody + ed25519.SignatureSize
)

const headKey = "h"

func (k *keyring) headAAD() []byte { return tuple(nil).bytes(k.store[:]).text("head") }

func (k *keyring) signHead(h signedHead) []byte {
	b := make([]byte, 0, signedSize)
	b = append(b, k.store[:]...)
	b = binary.BigEndian.AppendUint64(b, h.epoch)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = append(b, h.hash[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.time.UnixNano()))
	return append(b, ed25519.Sign(k.sign, append([]byte(signContext), b...))...)
}

func (k *keyring) verifyHead(b []byte) (signedHead, error) {
	public := k.sign.Public().(ed25519.PublicKey)
	if len(b) != signedSize || [16]byte(b) != k.store ||
		!ed25519.Verify(public, append([]byte(signContext), b[:signedBody]...), b[signedBody:]) {
		return signedHead{}, fmt.Errorf("%w: the signed head does not verify", ErrIntegrity)
	}
	return signedHead{
		epoch: binary.BigEndian.Uint64(b[16:]),
		head:  head{binary.BigEndian.Uint64(b[24:]), Digest(b[32:64])},
		time:  time.Unix(0, int64(binary.BigEndian.Uint64(b[64:]))).UTC(),
	}, nil
}

// readSigned returns the newest signed head; zero if none was signed yet.
func (s *Store) readSigned() (signedHead, error) {
	sealed, err := s.get([]byte(headKey))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return signedHead{}, nil
	}
	if errors.Is(err, ErrUnavailable) {
		return signedHead{}, err
	}
	if err != nil {
		return signedHead{}, fmt.Errorf("%w: the signed head can't be read: %w", ErrIntegrity, err)
	}
	b, err := open(s.keys.record, sealed, s.keys.headAAD())
	if err != nil {
		return signedHead{}, fmt.Errorf("%w: the signed head: %w", ErrIntegrity, err)
	}
	return s.keys.verifyHead(b)
}

// headWrite is h, signed and sealed.
func (s *Store) headWrite(epoch uint64, h head) write {
	return write{[]byte(headKey), seal(s.keys.record, s.keys.signHead(signedHead{epoch, h, s.now()}), s.keys.headAAD())}
}

// checkpointLoop signs the head and syncs the anchor each second in which the trail grew.
func (s *Store) checkpointLoop() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-look.C:
			s.watchLevels()
		case <-tick.C:
			if err := s.checkpoint(); err != nil {
				s.stopWriting(err)
			}
			s.makeBallast()
		}
	}
}

// checkpoint signs the head if it is new. What can't be written any more is left for Recover.
func (s *Store) checkpoint() error {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	h, failed := s.head, s.failed
	s.mu.Unlock()
	if failed != nil {
		return nil
	}
	if s.torn.Load() { // by whoever wrote something else than a group
		return errTorn
	}
	if h.seq != s.signed {
		if err := s.room(); err != nil {
			return err
		}
		if err := s.write([]write{s.headWrite(s.anchor.epoch, h)}); err != nil {
			return fmt.Errorf("signing the head: %w", err)
		}
		s.signed = h.seq
	}
	if err := s.anchor.sync(); err != nil {
		return fmt.Errorf("syncing the anchor: %w", err)
	}
	return nil
}
