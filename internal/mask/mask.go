// Package mask blanks secrets in streams. Its one rule: however a stream is cut into pieces, no spelling of a secret
// that this package knows (spell.go) leaves whole, and what can't become one is never held back.
//
// It catches accidents: a program that prints its environment, an upstream that echoes a header. It does not stop
// somebody who wants the value out; SECURITY.md lists what it can't catch.
package mask

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// least is the length in bytes under which nothing is masked, neither a value nor a spelling of one: "admin" or "5432"
// would blank half of an innocent output. It is also what the search looks at at once, a uint64.
const least = 8

// Masker knows all spellings of some secrets. It does not change until Wipe, so any number of goroutines may use it,
// and it may be kept as long as the values themselves. Making one takes some 50 µs for a usual key, 0.3 ms for one with
// many special characters, 7 ms for a PEM: keep it, one to a version.
type Masker struct {
	patterns []pattern // sorted by key
	leap     []uint8   // by hash of three bytes, see next
	shift    int       // of that hash
	short    bool
}

// pattern is one spelling, and its first eight bytes once more, big-endian.
type pattern struct {
	key   uint64
	text  []byte
	wraps bool // base64 and hex: a line break may stand between any two characters
}

// New makes a Masker for the values. It keeps spellings of them, and none of the slices it is given.
func New(values ...[]byte) *Masker {
	m := &Masker{}
	for _, v := range values {
		m.short = m.short || len(v) > 0 && len(bytes.TrimSpace(v)) < least
		m.spell(bytes.TrimSpace(v))
	}
	m.index()
	return m
}

// Short says that a value, without the spaces around it, is under 8 bytes and therefore not masked. Whoever hands such a value out should warn.
func (m *Masker) Short() bool { return m.short }

// Wipe overwrites the spellings, as far as Go allows: what New had in hand on the way stays until it is collected. The
// Masker masks nothing from then on, and nobody may be using it.
func (m *Masker) Wipe() {
	for _, p := range m.patterns {
		clear(p.text)
	}
	clear(m.patterns)
	clear(m.leap)
	m.patterns, m.leap = nil, nil
}

// Format prints "[masker]" for every verb.
func (m *Masker) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[masker]") }

// Bytes returns b with every secret replaced by secret.Masked: b itself when there is none. b is one whole text: a secret
// of which it holds only the beginning, 8 bytes or more, at its end, is masked too.
func (m *Masker) Bytes(b []byte) []byte { return (&stream{m: m}).feed(b, true) }

// String is Bytes for strings, such as a header's value.
func (m *Masker) String(s string) string {
	if b := []byte(s); m.Contains(b) {
		return string(m.Bytes(b))
	}
	return s
}

// Contains says whether Bytes would change b.
func (m *Masker) Contains(b []byte) bool {
	for i := m.next(b, 0); i < len(b); i = m.next(b, i+1) {
		if n, open := m.match(b[i:]); n > 0 || open && len(b)-i >= least {
			return true
		}
	}
	return false
}

// next returns the first place at or after i where a secret may begin, len(b) if there is none. The last seven places of
// b are always candidates.
//
// This is Wu and Manber's search: of the eight bytes at i it looks at the last three. What these are in no spelling's
// first eight lets it leap six places; what they are further to the front in one lets it leap less. On text without
// secrets it reads a sixth of the places.
func (m *Masker) next(b []byte, i int) int {
	if len(m.patterns) == 0 {
		return len(b)
	}
	leap, shift := m.leap, m.shift
	for i+least <= len(b) {
		n := leap[hash(b[i+4:i+8], shift)]
		if n == 0 {
			return i
		}
		i += int(n)
	}
	return min(i, len(b))
}

// index sorts the patterns and makes the table of leaps, 16 places to a pattern and at most 64 KiB, so that it stays in a near cache.
func (m *Masker) index() {
	if len(m.patterns) == 0 {
		return
	}
	slices.SortFunc(m.patterns, func(a, b pattern) int {
		return cmp.Or(cmp.Compare(a.key, b.key), bytes.Compare(a.text, b.text))
	})
	m.patterns = slices.CompactFunc(m.patterns, func(a, b pattern) bool {
		return a.wraps == b.wraps && bytes.Equal(a.text, b.text)
	})
	size := min(max(12, bits.Len(uint(16*len(m.patterns)))), 16)
	m.leap, m.shift = make([]uint8, 1<<size), 32-size
	for i := range m.leap {
		m.leap[i] = least - 2
	}
	var first [least + 1]byte // one before, as hash wants four bytes and looks at the last three
	for _, p := range m.patterns {
		binary.BigEndian.PutUint64(first[1:], p.key)
		for end := 3; end <= least; end++ {
			h := hash(first[end-3:end+1], m.shift)
			m.leap[h] = min(m.leap[h], uint8(least-end))
		}
	}
}

// hash is over the last three of the first four bytes of b.
func hash(b []byte, shift int) uint32 {
	return (binary.LittleEndian.Uint32(b) >> 8) * 0x9E3779B1 >> (shift & 31)
}

// match compares b's beginning with every spelling. n is the length of the longest that b begins with, 0 if there is
// none; open says that b ends inside one, which more bytes could complete.
func (m *Masker) match(b []byte) (n int, open bool) {
	var first [least]byte
	unseen := 8 * (least - copy(first[:], b)) // bits
	key := binary.BigEndian.Uint64(first[:])
	i, _ := slices.BinarySearchFunc(m.patterns, key, func(p pattern, key uint64) int { return cmp.Compare(p.key, key) })
	for ; i < len(m.patterns) && m.patterns[i].key>>unseen == key>>unseen; i++ {
		if unseen > 0 {
			return 0, true
		}
		whole, more := m.patterns[i].ends(b[least:])
		n, open = max(n, whole), open || more
	}
	return n, open
}

// ends compares b, what follows a key that was found, with the rest of the pattern. n is the pattern's whole length in
// the text if it ends within b, else 0; open says that b ended first.
func (p *pattern) ends(b []byte) (n int, open bool) {
	i := 0
	for _, c := range p.text[least:] {
		if p.wraps && i < len(b) && b[i] != c {
			i += lineBreak(b[i:])
		}
		if i == len(b) {
			return 0, true
		}
		if b[i] != c {
			return 0, false
		}
		i++
	}
	return least + i, false
}
