package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"
)

// keyring is every key of one store. Each comes by HKDF-SHA256 with the store's salt and a label of its own, so that one
// that leaks tells nothing of another. The root key itself is not kept.
//
//	root key (replaceable: rotate.go) ─┬─► check   proves that a root key is this store's      keycheck.go
//	                                   ├─► wrap    seals the master, in keycheck
//	                                   └─► KEK     wraps the data key of each value ─► value   record.go
//	master (random, the store's for life) ──► records, snapshot, trail, index, mac, anchor, signature of heads
//
// So names, tokens, handles and the trail survive another root key, and no value hangs on anything but the newest one.
type keyring struct {
	store  [16]byte // the store's id: part of all that is authenticated, so nothing can be moved between stores
	salt   []byte
	master []byte
	keks   atomic.Pointer[keks]

	record   cipher.AEAD // credentials, tokens, the signed head
	snapshot cipher.AEAD
	trail    []byte  // parent of the keys of trail groups, one per start
	index    *hasher // names and ids in Badger's keys
	mac      []byte  // parent of the keys of Store.MAC
	anchor   *hasher
	backup   []byte // parent of the keys of backups
	sign     ed25519.PrivateKey

	macs sync.Map // label → *hasher
}

// keks are the keys that data keys are wrapped under: one, and while the root key is being replaced two.
type keks struct {
	now  *rootKeys
	next *rootKeys // nil but during a rotation
}

// rootKeys is what comes of one root key.
type rootKeys struct {
	generation uint32 // from 1; counts the root keys that this store had
	kek        cipher.AEAD
	wrap       cipher.AEAD
	check      []byte
}

const rootKeyLen = 32

func newRootKeys(root, salt []byte, generation uint32) (*rootKeys, error) {
	if len(root) != rootKeyLen {
		return nil, fmt.Errorf("the root key has %d bytes; it must have %d", len(root), rootKeyLen)
	}
	d := deriver{parent: root, salt: salt}
	r := &rootKeys{generation, d.aead(fmt.Sprintf("kek/%d", generation)), d.aead(fmt.Sprintf("master/%d", generation)), d.key("keycheck")}
	return r, d.err()
}

func newKeyring(master, storeID, salt []byte) (*keyring, error) {
	k := &keyring{store: [16]byte(storeID), salt: salt, master: master}
	d := deriver{parent: master, salt: salt}
	k.record, k.snapshot = d.aead("records"), d.aead("snapshot")
	k.trail, k.mac, k.backup = d.key("trail"), d.key("mac"), d.key("backup")
	k.index, k.anchor = newHasher(d.key("index")), newHasher(d.key("anchor"))
	if seed := d.key("heads"); d.failed == nil {
		k.sign = ed25519.NewKeyFromSeed(seed)
	}
	return k, d.err()
}

// deriver derives keys from one parent and remembers what went wrong.
type deriver struct {
	parent, salt []byte
	failed       error
}

func (d *deriver) key(label string) []byte {
	key, err := hkdf.Key(sha256.New, d.parent, d.salt, "keylease/v1/"+label, 32)
	d.failed = errors.Join(d.failed, err)
	return key
}

func (d *deriver) aead(label string) cipher.AEAD {
	a, err := newAEAD(d.key(label))
	d.failed = errors.Join(d.failed, err)
	return a
}

func (d *deriver) err() error {
	if d.failed == nil {
		return nil
	}
	return fmt.Errorf("deriving keys: %w", d.failed)
}

// newAEAD is AES-256-GCM that puts a random 96-bit nonce in front of what it seals. No key here seals more than 2^32
// times: records are few, a data key seals once, the trail's key is renewed (group.go).
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sealedFormat is the first byte of everything sealed: format · nonce [12] · ciphertext · tag [16].
const sealedFormat = 1

const sealedExtra = 1 + 12 + 16

func seal(a cipher.AEAD, plain, aad []byte) []byte {
	out := make([]byte, 1, len(plain)+sealedExtra)
	out[0] = sealedFormat
	return a.Seal(out, nil, plain, aad)
}

func open(a cipher.AEAD, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < sealedExtra || sealed[0] != sealedFormat {
		return nil, errors.New("it is not sealed as it should be")
	}
	plain, err := a.Open(nil, nil, sealed[1:], aad)
	if err != nil {
		return nil, errors.New("it was changed, or belongs elsewhere")
	}
	return plain, nil
}

// tuple is an unambiguous encoding of fields: each has its length in front.
type tuple []byte

func (t tuple) bytes(b []byte) tuple {
	return append(binary.BigEndian.AppendUint32(t, uint32(len(b))), b...)
}
func (t tuple) text(s string) tuple {
	return append(binary.BigEndian.AppendUint32(t, uint32(len(s))), s...)
}
func (t tuple) num(n uint64) tuple {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(t, 8), n)
}

const recordSchema = 1

// recordAAD ties a sealed record to its place: this store, this kind and id, this version, and the Entry that wrote it.
func (k *keyring) recordAAD(kind Kind, id string, version int, seq uint64) []byte {
	return tuple(make([]byte, 0, 128)).bytes(k.store[:]).text(string(kind)).text(id).num(uint64(version)).num(recordSchema).num(seq)
}

// groupAEAD is the key of the trail groups that carry salt in their header.
func (k *keyring) groupAEAD(salt [16]byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.trail, salt[:], "keylease/v1/trail group", 32)
	if err != nil {
		return nil, err
	}
	return newAEAD(key)
}

// keyed is a keyed hash of t.
func keyed(key []byte, t []byte) (sum [32]byte) {
	h := hmac.New(sha256.New, key)
	h.Write(t)
	h.Sum(sum[:0])
	return sum
}

// hasher is keyed with one key, for where it is needed often: to begin an HMAC costs more than to use it, so those that
// were begun are kept.
type hasher struct{ begun sync.Pool }

type hmacBegun struct {
	hash.Hash
	sum [32]byte
}

func newHasher(key []byte) *hasher {
	return &hasher{sync.Pool{New: func() any { return &hmacBegun{Hash: hmac.New(sha256.New, key)} }}}
}

func (h *hasher) sum(t []byte) [32]byte {
	m := h.begun.Get().(*hmacBegun)
	defer h.begun.Put(m)
	m.Reset()
	m.Write(t)
	m.Sum(m.sum[:0])
	return m.sum
}

// MAC returns a keyed hash of data. Labels separate uses: the same data under another label has an unrelated hash.
// It stays the same for the life of the store. Compare in constant time where an attacker chooses data.
func (s *Store) MAC(label string, data []byte) [32]byte {
	key, ok := s.keys.macs.Load(label)
	if !ok {
		derived := keyed(s.keys.mac, tuple(nil).text(label))
		key, _ = s.keys.macs.LoadOrStore(label, newHasher(derived[:]))
	}
	return key.(*hasher).sum(data)
}

// fingerprint names the public key that verifies this store's heads.
func (k *keyring) fingerprint() string { return fingerprintOf(k.sign.Public().(ed25519.PublicKey)) }
