package store

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
)

// A group is what one sync made durable: up to maxGroup events in one value under the key T · first seq.
//
//	format 1 · salt [16] · count u16 · prev [32] · nonce [12] · sealed · tag [16]
//
// sealed is count × (uvarint length, Entry as encode.go says). salt picks the key, which is fresh at each start; prev is
// the head before the group. All of the header, the store id and the first seq are authenticated.
const (
	groupFormat = 1
	groupHeader = 1 + 16 + 2 + 32

	maxGroup      = 1024
	maxGroupBytes = 256 << 10 // records and values included; well under what a Badger transaction takes
	maxChange     = 1 << 20   // one change alone, whatever is in it
	maxEntry      = 64 << 10

	rekeyAfter = 1 << 31 // groups under one key: random 96-bit nonces stay far from repeating
)

var errGroup = errors.New("its group was changed, or belongs elsewhere")

// sealer seals groups under the key of this start.
type sealer struct {
	salt [16]byte
	aead cipher.AEAD
	used uint32
	out  []byte // the last group: Badger has copied it when its transaction is over
	aad  []byte
}

// seal returns what holds until the next group.
func (g *sealer) seal(k *keyring, first uint64, prev Digest, count int, plain []byte) ([]byte, error) {
	if g.aead == nil || g.used >= rekeyAfter {
		rand.Read(g.salt[:])
		aead, err := k.groupAEAD(g.salt)
		if err != nil {
			return nil, err
		}
		g.aead, g.used = aead, 0
	}
	g.used++
	b := append(slices.Grow(g.out[:0], groupHeader+len(plain)+12+16), groupFormat)
	b = append(b, g.salt[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(count))
	b = append(b, prev[:]...)
	g.aad = groupAAD(g.aad[:0], k, first, b)
	g.out = g.aead.Seal(b, nil, plain, g.aad)
	return g.out, nil
}

func groupAAD(b []byte, k *keyring, first uint64, header []byte) []byte {
	return tuple(b).text("group").bytes(k.store[:]).num(first).bytes(header)
}

// groupReader opens groups. It is not for use by two goroutines.
type groupReader struct {
	keys *keyring
	salt [16]byte
	aead cipher.AEAD
	buf  []byte
	aad  []byte
}

// group is one that was opened. encoded is the reader's: it holds until the next one.
type group struct {
	count   int
	prev    Digest
	encoded []byte
}

func (r *groupReader) open(first uint64, b []byte) (group, error) {
	if len(b) < groupHeader || b[0] != groupFormat {
		return group{}, errGroup
	}
	header := b[:groupHeader]
	if salt := [16]byte(header[1:]); r.aead == nil || salt != r.salt {
		aead, err := r.keys.groupAEAD(salt)
		if err != nil {
			return group{}, err
		}
		r.aead, r.salt = aead, salt
	}
	r.aad = groupAAD(r.aad[:0], r.keys, first, header)
	plain, err := r.aead.Open(r.buf[:0], nil, b[groupHeader:], r.aad)
	if err != nil {
		return group{}, errGroup
	}
	r.buf = plain
	return group{int(binary.BigEndian.Uint16(header[17:])), Digest(header[19:]), plain}, nil
}

// next cuts the next encoding off the group.
func (g *group) next() ([]byte, error) {
	n, used := binary.Uvarint(g.encoded)
	if used <= 0 || n > uint64(len(g.encoded)-used) {
		return nil, errEncoding
	}
	e := g.encoded[used : used+int(n)]
	g.encoded = g.encoded[used+int(n):]
	return e, nil
}

// trailPrefix begins the keys of the trail's groups. It is less than what any other key begins with, so that a table of
// new groups and whatever else was written with them overlaps no table of older ones: Badger merges overlapping tables,
// and would write the whole trail anew each time.
const trailPrefix = 'T'

// groupKey is where the group that begins with seq lies.
func groupKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64(groupPrefix(), seq)
}

func groupPrefix() []byte { return []byte{trailPrefix} }
