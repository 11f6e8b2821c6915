package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"keylease/internal/wholefile"
)

// Another root key takes the place of the one in force in this order. Everything goes on meanwhile. keycheck says which
// key opens the store, and it changes at one moment; a crash after each step leaves
//
//	1 mark k: generation n+1 is being made      the old key opens; k and what is of n+1 are removed at open
//	2 each data key is wrapped under n+1 too    the same. A new value's is wrapped under both from 1 on
//	3 keycheck names n+1 (renamed into place)   the new key opens, and only that
//	4 RotateRoot returns; the caller puts the new key where it is looked for, and records it
//	5 FinishRotation drops what is of n, and k  before the end of it Rotated is true at open, so 4 and 5 are done again
//
// Who has the old root key and copies the folder from then on finds nothing that this key opens: keycheck's master is
// sealed under the new one, and no data key wrapped under the old is left in any file. Who has the old key *and* an old
// copy of the folder had the master before, and still reads with it the trail and the records of what is new, and
// forges them where he can write; values stored since are closed to him.

// rotateBatch is how many data keys are wrapped before writers are let in: a few milliseconds.
const rotateBatch = 256

const rotationKey = "k"

func (k *keyring) rotationAAD() []byte { return tuple(nil).bytes(k.store[:]).text("rotation") }

// RootGeneration counts the root keys that the store had, the one in force included.
func (s *Store) RootGeneration() int { return int(s.keys.keks.Load().now.generation) }

// Rotated reports whether a root key came into force that FinishRotation was not called for: the process before this
// one ended in between.
func (s *Store) Rotated() bool { return s.rotated.Load() }

// RotateRoot makes newRoot (32 bytes; not kept) the store's root key. When it returns without error the one before
// opens the store no more; with an error it is the one before that does, unless ErrUnsure.
func (s *Store) RotateRoot(newRoot []byte) error {
	s.rotation.Lock()
	defer s.rotation.Unlock()
	next, err := s.beginRotation(newRoot)
	if err != nil {
		return err
	}
	err = s.wrapAll(next)
	if err == nil {
		err = s.commitRotation(next)
	}
	if err != nil && !errors.Is(err, ErrUnsure) {
		err = errors.Join(err, s.abandonRotation(next))
	}
	return err
}

func (s *Store) beginRotation(newRoot []byte) (*rootKeys, error) {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	in := s.keys.keks.Load()
	if in.next != nil || s.rotated.Load() {
		return nil, fmt.Errorf("%w: the root key before this one is not all gone yet: try again when the disk has room, or restart keylease", ErrUnavailable)
	}
	kc, err := readKeycheck(s.dir)
	if err != nil {
		return nil, err
	}
	if _, err := kc.keys(newRoot); err == nil {
		return nil, ErrSameKey
	}
	next, err := newRootKeys(newRoot, s.keys.salt, in.now.generation+1)
	if err != nil {
		return nil, err
	}
	mark := binary.BigEndian.AppendUint32(nil, next.generation)
	if err := s.write([]write{{[]byte(rotationKey), seal(s.keys.record, mark, s.keys.rotationAAD())}}); err != nil {
		return nil, fmt.Errorf("marking the rotation: %w", err)
	}
	s.keys.keks.Store(&keks{now: in.now, next: next}) // held by disk: no group is half way
	return next, nil
}

// wrapAll wraps every data key that there was when it was called under next too.
func (s *Store) wrapAll(next *rootKeys) error {
	now := s.keys.keks.Load().now
	var ids [][]byte // what follows the prefix: about 20 bytes a version
	err := s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: now.dataKeys()})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			ids = append(ids, append([]byte{}, it.Item().Key()[len(now.dataKeys()):]...))
		}
		return nil
	})
	for len(ids) > 0 && err == nil {
		some := ids[:min(rotateBatch, len(ids))]
		ids = ids[len(some):]
		err = s.wrapSome(now, next, some)
	}
	if err != nil {
		return fmt.Errorf("wrapping the data keys: %w", err)
	}
	return nil
}

func (s *Store) wrapSome(now, next *rootKeys, ids [][]byte) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	var writes []write
	for _, id := range ids {
		at := append([]byte{'v'}, id...)
		wrapped, err := s.get(now.dataKey(at))
		if errors.Is(err, badger.ErrKeyNotFound) {
			continue // destroyed in between
		}
		if err != nil {
			return err
		}
		dek, err := open(now.kek, wrapped, s.keys.dataKeyAAD(at))
		if err != nil { // damaged, and so it stays: not to be taken for destroyed
			writes = append(writes, write{next.dataKey(at), wrapped})
			continue
		}
		writes = append(writes, write{next.dataKey(at), seal(next.kek, dek, s.keys.dataKeyAAD(at))})
		clear(dek)
	}
	if len(writes) == 0 {
		return nil
	}
	return s.write(writes)
}

// commitRotation is the moment.
func (s *Store) commitRotation(next *rootKeys) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	kc, err := readKeycheck(s.dir)
	if err != nil {
		return err
	}
	kc.seal(next, s.keys.master)
	data, err := kc.encode()
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(s.dir, keycheckName), data); err != nil {
		return err
	}
	s.rotated.Store(true)
	s.keys.keks.Store(&keks{now: next})
	return nil
}

// abandonRotation removes what was wrapped under a key that did not come into force.
func (s *Store) abandonRotation(next *rootKeys) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.keys.keks.Store(&keks{now: s.keys.keks.Load().now})
	if err := s.usable(); err != nil {
		return err // at the next open, then
	}
	return s.dropGeneration(next.generation)
}

// FinishRotation removes from the files all that was wrapped under the root key before. Writers wait for it as for
// Destroy. Called again it does nothing.
func (s *Store) FinishRotation() error {
	s.rotation.Lock()
	defer s.rotation.Unlock()
	s.disk.Lock()
	defer s.disk.Unlock()
	if !s.rotated.Load() {
		return nil
	}
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.dropGeneration(s.keys.keks.Load().now.generation - 1); err != nil {
		return err
	}
	s.rotated.Store(false)
	return nil
}

// dropGeneration removes the data keys of a generation, and the mark. Caller holds disk.
func (s *Store) dropGeneration(generation uint32) error {
	err := s.db.DropPrefix((&rootKeys{generation: generation}).dataKeys())
	s.values.drop()
	if err != nil {
		return fmt.Errorf("removing what was wrapped under root key %d: %w", generation, err)
	}
	return s.write([]write{{key: []byte(rotationKey)}})
}

// resumeRotation looks, at open, how far a rotation came that a crash cut short.
func (s *Store) resumeRotation() error {
	sealed, err := s.get([]byte(rotationKey))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: the mark of a rotation can't be read: %w", ErrIntegrity, err)
	}
	mark, err := open(s.keys.record, sealed, s.keys.rotationAAD())
	if err != nil || len(mark) != 4 {
		return fmt.Errorf("%w: the mark of a rotation was changed", ErrIntegrity)
	}
	made, now := binary.BigEndian.Uint32(mark), s.keys.keks.Load().now.generation
	switch {
	case made == now:
		s.rotated.Store(true)
		return nil
	case s.room() != nil:
		return nil // harmless; at the next open, then
	}
	return s.dropGeneration(made)
}

// KeyFits reports whether root is the root key of the store in dir. It changes nothing.
func KeyFits(dir string, root []byte) (bool, error) {
	kc, err := readKeycheck(dir)
	if err != nil {
		return false, err
	}
	_, err = kc.keys(root)
	if errors.Is(err, ErrWrongKey) {
		return false, nil
	}
	return err == nil, err
}

// replaceFile puts data in the place of path. ErrUnsure: the new file is there, and whether it would be after a power
// cut is not known.
func replaceFile(path string, data []byte) error {
	err := wholefile.Replace(path, data, 0o600)
	if errors.Is(err, wholefile.ErrUnsynced) {
		return fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	return err
}
