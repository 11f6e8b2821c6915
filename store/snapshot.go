package store

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// A snapshot saves a start the reading of the whole trail. It lies in chunks under s · generation · n, each sealed to
// the store, the generation, its place and the head it was taken at; the manifest, under m and written last, makes it
// valid and is sealed too:
//
//	generation [8] · seq u64 · head [32] · chunks u32 · bytes u64
type manifest struct {
	generation [8]byte // random, so that a snapshot begun and not finished can't mix with another
	head
	chunks uint32
	size   uint64
}

const (
	chunkSize    = 512 << 10
	manifestKey  = "m"
	manifestSize = 8 + 8 + 32 + 4 + 8
)

func (m manifest) encode() []byte {
	b := append(make([]byte, 0, manifestSize), m.generation[:]...)
	b = binary.BigEndian.AppendUint64(b, m.seq)
	b = append(b, m.hash[:]...)
	b = binary.BigEndian.AppendUint32(b, m.chunks)
	return binary.BigEndian.AppendUint64(b, m.size)
}

func decodeManifest(b []byte) (m manifest, err error) {
	if len(b) != manifestSize {
		return m, errors.New("its manifest has another length")
	}
	copy(m.generation[:], b)
	m.seq = binary.BigEndian.Uint64(b[8:])
	copy(m.hash[:], b[16:])
	m.chunks, m.size = binary.BigEndian.Uint32(b[48:]), binary.BigEndian.Uint64(b[52:])
	return m, nil
}

func (m manifest) chunkKey(n uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{'s'}, m.generation[:]...), n)
}

func (k *keyring) chunkAAD(m manifest, n uint32) []byte {
	return tuple(nil).bytes(k.store[:]).text("snapshot").bytes(m.encode()).num(uint64(n))
}

func (k *keyring) manifestAAD() []byte { return tuple(nil).bytes(k.store[:]).text("snapshot manifest") }

// Snapshot stores data as the state of Head. Nothing may be in flight. If we crash before the manifest is written the
// older snapshot stays valid; after it, leftovers of older ones are removed by the next.
func (s *Store) Snapshot(data []byte) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if free, err := s.free(s.dir); err == nil && free < reserve+2*uint64(len(data)) {
		return fmt.Errorf("%w: too little room on the disk for a snapshot", ErrUnavailable)
	}
	m := manifest{head: s.durable(), chunks: uint32((len(data) + chunkSize - 1) / chunkSize), size: uint64(len(data))}
	rand.Read(m.generation[:])
	for n := range m.chunks {
		chunk := data[int(n)*chunkSize : min(int(n+1)*chunkSize, len(data))]
		sealed := seal(s.keys.snapshot, chunk, s.keys.chunkAAD(m, n))
		if err := s.write([]write{{m.chunkKey(n), sealed}}); err != nil {
			return fmt.Errorf("writing the snapshot: %w", err)
		}
	}
	sealed := seal(s.keys.snapshot, m.encode(), s.keys.manifestAAD())
	if err := s.write([]write{{[]byte(manifestKey), sealed}}); err != nil {
		return fmt.Errorf("writing the snapshot: %w", err)
	}
	return s.dropOldChunks(m)
}

func (s *Store) dropOldChunks(keep manifest) error {
	var old []write
	err := s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{'s'}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if key := it.Item().KeyCopy(nil); !bytes.HasPrefix(key[1:], keep.generation[:]) {
				old = append(old, write{key: key})
			}
		}
		return nil
	})
	if err == nil && len(old) > 0 {
		err = s.write(old)
	}
	if err != nil {
		return fmt.Errorf("removing older snapshots: %w", err)
	}
	return nil
}

// readSnapshot returns the last snapshot and the head it was taken at, which must stand in the trail; nil if there is
// none.
func (s *Store) readSnapshot(txn *badger.Txn, to uint64) ([]byte, head, error) {
	plain, err := s.openFrom(txn, []byte(manifestKey), s.keys.manifestAAD())
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, head{}, nil
	}
	if err != nil {
		return nil, head{}, err
	}
	m, err := decodeManifest(plain)
	if err != nil {
		return nil, head{}, err
	}
	if m.seq > to {
		return nil, head{}, fmt.Errorf("it was taken at event %d, which the trail does not have", m.seq)
	}
	if m.seq > 0 {
		if hash, err := s.hashAt(m.seq); err != nil {
			return nil, head{}, err
		} else if hash != m.hash {
			return nil, head{}, fmt.Errorf("it was taken at another event %d", m.seq)
		}
	}
	data := []byte{} // never nil: an empty snapshot is one
	for n := range m.chunks {
		chunk, err := s.openFrom(txn, m.chunkKey(n), s.keys.chunkAAD(m, n))
		if err != nil {
			return nil, head{}, fmt.Errorf("chunk %d of %d: %w", n+1, m.chunks, err)
		}
		data = append(data, chunk...)
	}
	if uint64(len(data)) != m.size {
		return nil, head{}, errors.New("it is cut short")
	}
	return data, m.head, nil
}

func (s *Store) openFrom(txn *badger.Txn, key, aad []byte) (plain []byte, err error) {
	item, err := txn.Get(key)
	if err != nil {
		return nil, err
	}
	err = item.Value(func(sealed []byte) error {
		plain, err = open(s.keys.snapshot, sealed, aad)
		return err
	})
	return plain, err
}
