package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// A snapshot saves a start the reading of the whole trail. It lies in chunks under s · generation · n, each sealed to
// the store, the generation, its place and the head it was taken at; the manifest, under m and written last, makes it
// valid and is sealed too. The manifest before it goes to n with that transaction, and its chunks stay: should the newest
// snapshot be damaged, a start reads a little more and not everything.
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
	olderKey     = "n"
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
	return s.snapshot(s.durable(), data, func() error { return nil })
}

// SnapshotAt stores data as the state after event seq, which is on disk, while the store goes on: pause is called after
// each half megabyte, and an error of it ends the writing. Where a later snapshot was stored meanwhile it does nothing.
func (s *Store) SnapshotAt(seq uint64, data []byte, pause func() error) error {
	hash, err := s.hashAt(seq)
	if err != nil {
		return err
	}
	return s.snapshot(head{seq, hash}, data, pause)
}

// SnapshotSeq is the event after which the newest snapshot that is known to be good was taken; 0 if there is none.
func (s *Store) SnapshotSeq() uint64 { return s.snapped.Load() }

// cheap is how large a snapshot may be for the one before it to be kept, too.
const cheap = 64 << 20

func (s *Store) snapshot(at head, data []byte, pause func() error) error {
	s.snapping.Lock()
	defer s.snapping.Unlock()
	if at.seq < s.snapped.Load() {
		return nil
	}
	m := manifest{head: at, chunks: uint32((len(data) + chunkSize - 1) / chunkSize), size: uint64(len(data))}
	rand.Read(m.generation[:])
	if free, err := s.free(s.dir); err == nil && free < reserve+2*m.size {
		return fmt.Errorf("%w: too little room on the disk for a snapshot", ErrUnavailable)
	}
	for n := range m.chunks {
		if n > 0 {
			if err := pause(); err != nil {
				return err
			}
		}
		chunk := data[int(n)*chunkSize : min(int(n+1)*chunkSize, len(data))]
		sealed := seal(s.keys.snapshot, chunk, s.keys.chunkAAD(m, n))
		if err := s.writeAlone([]write{{m.chunkKey(n), sealed}}); err != nil {
			return fmt.Errorf("writing the snapshot: %w", err)
		}
	}
	var older []byte // what n is to say; nil: nothing
	if m.size <= cheap && s.snapped.Load() > 0 {
		older, _ = s.get([]byte(manifestKey))
	}
	sealed := seal(s.keys.snapshot, m.encode(), s.keys.manifestAAD())
	if err := s.writeAlone([]write{{[]byte(manifestKey), sealed}, {[]byte(olderKey), older}}); err != nil {
		return fmt.Errorf("writing the snapshot: %w", err)
	}
	s.snapped.Store(m.seq)
	return s.dropOldChunks()
}

// writeAlone writes between two groups of the trail.
func (s *Store) writeAlone(writes []write) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	return s.write(writes)
}

// dropOldChunks removes what no manifest speaks of.
func (s *Store) dropOldChunks() error {
	var old []write
	err := s.view(func(txn *badger.Txn) error {
		kept := map[[8]byte]bool{}
		for _, key := range []string{manifestKey, olderKey} {
			if m, err := s.readManifest(txn, key); err == nil {
				kept[m.generation] = true
			}
		}
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{'s'}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if key := it.Item().KeyCopy(nil); len(key) != 1+8+4 || !kept[[8]byte(key[1:])] {
				old = append(old, write{key: key})
			}
		}
		return nil
	})
	for batch := range slices.Chunk(old, 1000) {
		if err == nil {
			err = s.writeAlone(batch)
		}
	}
	if err != nil {
		return fmt.Errorf("removing older snapshots: %w", err)
	}
	return nil
}

func (s *Store) readManifest(txn *badger.Txn, key string) (manifest, error) {
	plain, err := s.openFrom(txn, []byte(key), s.keys.manifestAAD())
	if err != nil {
		return manifest{}, err
	}
	return decodeManifest(plain)
}

// readSnapshot returns the snapshot whose manifest lies under key and the head it was taken at, which must stand in the
// trail; nil if there is none.
func (s *Store) readSnapshot(txn *badger.Txn, key string, to uint64) ([]byte, head, error) {
	m, err := s.readManifest(txn, key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, head{}, nil
	}
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
	data := make([]byte, 0, min(m.size, maxSnapshot)) // never nil: an empty snapshot is one
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

// maxSnapshot bounds what is set aside for a snapshot before it is read.
const maxSnapshot = 256 << 20

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
