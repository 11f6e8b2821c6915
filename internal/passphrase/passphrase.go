// Package passphrase makes and checks the hash of the passphrase that an operator types to approve. Its rule: a hash
// says itself how it was made, in the PHC form that other tools write too, and one that costs less than OWASP's least
// for Argon2id, or more than a daemon can spend, is refused.
package passphrase

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Hash is a passphrase's Argon2id hash: $argon2id$v=19$m=65536,t=3,p=2$salt$key. The zero Hash matches nothing.
type Hash struct {
	memory, passes uint32 // KiB; how often it is gone over
	lanes          uint8
	salt, key      []byte
}

// What New uses: RFC 9106's second choice but for the lanes, about 0.1 s on a machine of 2026.
const (
	newMemory = 64 << 10
	newPasses = 3
	newLanes  = 2
	saltSize  = 16
	keySize   = 32
)

// Min is the fewest bytes that a passphrase may have.
const Min = 8

// New returns the PHC string of a passphrase, with a fresh salt.
func New(passphrase []byte) (string, error) {
	if len(passphrase) < Min {
		return "", fmt.Errorf("a passphrase needs %d characters at least", Min)
	}
	h := Hash{memory: newMemory, passes: newPasses, lanes: newLanes, salt: make([]byte, saltSize)}
	_, _ = rand.Read(h.salt) // crypto/rand never fails
	h.key = h.derive(passphrase, keySize)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.passes, h.lanes,
		b64.EncodeToString(h.salt), b64.EncodeToString(h.key)), nil
}

var errForm = errors.New("it must be an Argon2id hash like $argon2id$v=19$m=65536,t=3,p=2$SALT$HASH")

// Parse reads a PHC string. Its errors do not repeat it.
func Parse(phc string) (Hash, error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return Hash{}, errForm
	}
	var h Hash
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.passes, &h.lanes); n != 3 || err != nil ||
		parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", h.memory, h.passes, h.lanes) {
		return Hash{}, errForm
	}
	var err, err2 error
	h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	h.key, err2 = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	switch {
	case err != nil || err2 != nil:
		return Hash{}, errForm
	case len(h.salt) < 8 || len(h.salt) > 64 || len(h.key) < 16 || len(h.key) > 64:
		return Hash{}, errors.New("its salt must have 8 to 64 bytes and its hash 16 to 64")
	case h.memory < 19<<10 || h.memory > 1<<20 || h.passes < 1 || h.passes > 20 || h.lanes < 1 || h.lanes > 16:
		return Hash{}, errors.New("its cost must be within m=19456..1048576 (KiB), t=1..20 and p=1..16")
	}
	return h, nil
}

// Set reports whether there is a passphrase at all.
func (h Hash) Set() bool { return len(h.key) > 0 }

// Matches reports whether this is the passphrase. It takes the time and memory that the hash says, whatever is given,
// and compares in constant time.
func (h Hash) Matches(passphrase []byte) bool {
	return h.Set() && subtle.ConstantTimeCompare(h.derive(passphrase, uint32(len(h.key))), h.key) == 1
}

func (h Hash) derive(passphrase []byte, size uint32) []byte {
	return argon2.IDKey(passphrase, h.salt, h.passes, h.memory, h.lanes, size)
}
