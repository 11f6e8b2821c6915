package store

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/secret"
)

func (k *keyring) hashedKey(prefix byte, kind Kind, id string) []byte {
	h := k.index.sum(tuple(make([]byte, 0, 96)).text(string(kind)).text(id))
	return append([]byte{prefix}, h[:16]...)
}

func (k *keyring) recordKey(kind Kind, id string) []byte { return k.hashedKey('r', kind, id) }

// valueKey is where a version's value lies.
func (k *keyring) valueKey(id string, version int) []byte {
	return binary.BigEndian.AppendUint32(k.hashedKey('v', KindValue, id), uint32(version))
}

// dataKeys is the prefix of all data keys that are wrapped under one root key's KEK.
func (r *rootKeys) dataKeys() []byte { return binary.BigEndian.AppendUint32([]byte{'d'}, r.generation) }

// dataKey is where the key of the value at valueKey lies, wrapped under r.
func (r *rootKeys) dataKey(valueKey []byte) []byte { return append(r.dataKeys(), valueKey[1:]...) }

// dataKeyAAD ties a wrapped data key to its place. An older one put back does not open the value, which is tied to the
// Entry that wrote it.
func (k *keyring) dataKeyAAD(valueKey []byte) []byte {
	return tuple(make([]byte, 0, 96)).bytes(k.store[:]).text("data key").bytes(valueKey)
}

// wrapKey appends dek, wrapped under every root key in force.
func (k *keyring) wrapKey(writes []write, dek, valueKey []byte) []write {
	in := k.keks.Load()
	for _, r := range []*rootKeys{in.now, in.next} {
		if r != nil {
			writes = append(writes, write{r.dataKey(valueKey), seal(r.kek, dek, k.dataKeyAAD(valueKey))})
		}
	}
	return writes
}

// sealChange seals the records and values of c, whose Entry has its seq by now, and notes in the Entry what they must
// hash to.
func (s *Store) sealChange(writes []write, c *Change) ([]write, error) {
	e := &c.Entry
	for _, r := range c.Records {
		sealed := seal(s.keys.record, r.Plain, s.keys.recordAAD(r.Kind, r.ID, 0, e.Seq))
		writes = append(writes, write{s.keys.recordKey(r.Kind, r.ID), sealed})
		e.Records = append(e.Records, RecordRef{Kind: r.Kind, ID: r.ID, Seq: e.Seq, Digest: sha256.Sum256(sealed)})
	}
	for _, v := range c.Values {
		dek, aead, err := newDataKey()
		if err != nil {
			return nil, err
		}
		sealed := seal(aead, v.Value.Bytes(), s.keys.recordAAD(KindValue, v.CredentialID, v.Version, e.Seq))
		at := s.keys.valueKey(v.CredentialID, v.Version)
		writes = append(s.keys.wrapKey(writes, dek, at), write{at, sealed})
		clear(dek)
		e.Records = append(e.Records, RecordRef{Kind: KindValue, ID: v.CredentialID, Version: v.Version, Seq: e.Seq,
			Digest: sha256.Sum256(sealed)})
	}
	for _, d := range c.Deletes {
		writes = append(writes, write{key: s.keys.recordKey(d.Kind, d.ID)})
	}
	return writes, nil
}

func newDataKey() ([]byte, cipher.AEAD, error) {
	dek := make([]byte, 32)
	rand.Read(dek)
	aead, err := newAEAD(dek)
	return dek, aead, err
}

// Record unseals a credential or token record. It must be the one that ref, from the trail, speaks of: anything else,
// an older record of the same thing too, is ErrIntegrity.
func (s *Store) Record(kind Kind, id string, ref RecordRef) ([]byte, error) {
	if ref.Kind != kind || ref.ID != id {
		return nil, fmt.Errorf("%w: %s record %s: the trail does not speak of it", ErrIntegrity, kind, id)
	}
	sealed, err := s.get(s.keys.recordKey(kind, id))
	if err := isOf(ref, sealed, err); err != nil {
		return nil, fmt.Errorf("%s record %s: %w", kind, id, err)
	}
	plain, err := open(s.keys.record, sealed, s.keys.recordAAD(kind, id, 0, ref.Seq))
	if err != nil {
		return nil, fmt.Errorf("%w: %s record %s: %w", ErrIntegrity, kind, id, err)
	}
	return plain, nil
}

// Value unseals one version of a credential, which must be the one that ref speaks of. The caller wipes it.
// ErrDestroyed: its key is gone.
func (s *Store) Value(credentialID string, version int, ref RecordRef) (secret.Secret, error) {
	value, err := s.value(credentialID, version, ref)
	if err != nil {
		return secret.Secret{}, fmt.Errorf("version %d of credential %s: %w", version, credentialID, err)
	}
	return secret.New(value), nil
}

func (s *Store) value(id string, version int, ref RecordRef) ([]byte, error) {
	if ref.Kind != KindValue || ref.ID != id || ref.Version != version {
		return nil, fmt.Errorf("%w: the trail does not speak of it", ErrIntegrity)
	}
	v, err := s.sealedValue(ref)
	if err != nil {
		return nil, err
	}
	dek, err := open(v.root.kek, v.wrapped, v.keyAAD)
	if err != nil {
		return nil, fmt.Errorf("%w: its key: %w", ErrIntegrity, err)
	}
	defer clear(dek)
	aead, err := newAEAD(dek)
	if err != nil {
		return nil, err
	}
	plain, err := open(aead, v.sealed, v.valueAAD)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	return plain, nil
}

// sealedValue returns what ref speaks of, from the disk unless it is held. ErrDestroyed: its key is gone.
func (s *Store) sealedValue(ref RecordRef) (*sealedValue, error) {
	root := s.keys.keks.Load().now
	held, drops := s.values.get(ref, root)
	if held != nil && !s.torn.Load() {
		return held, nil
	}
	at := s.keys.valueKey(ref.ID, ref.Version)
	var wrapped, sealed []byte
	var noKey, err error
	noView := s.view(func(txn *badger.Txn) error { // one for both: beginning and ending it takes as long as reading
		if wrapped, noKey = valueAt(txn, root.dataKey(at)); noKey == nil {
			sealed, err = valueAt(txn, at)
		}
		return nil
	})
	switch {
	case noView != nil:
		return nil, noView
	case errors.Is(noKey, badger.ErrKeyNotFound) && s.keys.keks.Load().now != root:
		return s.sealedValue(ref) // the root key was replaced in between, and the data key with it
	case errors.Is(noKey, badger.ErrKeyNotFound):
		return nil, ErrDestroyed
	case noKey != nil:
		return nil, fmt.Errorf("%w: its key can't be read: %w", ErrIntegrity, noKey)
	}
	if err := isOf(ref, sealed, err); err != nil {
		return nil, err
	}
	v := &sealedValue{root, ref, wrapped, sealed, s.keys.dataKeyAAD(at), s.keys.recordAAD(KindValue, ref.ID, ref.Version, ref.Seq)}
	s.values.put(v, drops)
	return v, nil
}

// isOf says why sealed, which was read with err, is not what the trail says of ref; nil: it is.
func isOf(ref RecordRef, sealed []byte, err error) error {
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return fmt.Errorf("%w: it is missing", ErrIntegrity)
	case errors.Is(err, ErrUnavailable):
		return err
	case err != nil:
		return fmt.Errorf("%w: it can't be read: %w", ErrIntegrity, err)
	case sha256.Sum256(sealed) != ref.Digest:
		return fmt.Errorf("%w: it is not what event %d wrote", ErrIntegrity, ref.Seq)
	}
	return nil
}
