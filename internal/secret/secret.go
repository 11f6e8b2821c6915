// Package secret holds bytes that must not be printed. Its one rule: a Secret formats, marshals and logs as
// "[secret]", so a value can reach a transcript, a log or an error only where somebody wrote Bytes.
package secret

import (
	"fmt"
	"io"
)

// Masked is what a Secret prints as, by every verb and encoder.
const Masked = "[secret]"

// Secret is the bytes of one credential version. The zero Secret is empty.
type Secret struct{ b []byte }

// New takes ownership of b: the caller must not keep or change it.
func New(b []byte) Secret { return Secret{b: b} }

// Bytes returns the value itself. The slice is the Secret's own: do not change it, do not keep it past Wipe.
func (s Secret) Bytes() []byte { return s.b }

// Len returns the length in bytes.
func (s Secret) Len() int { return len(s.b) }

// Wipe overwrites the bytes, as far as Go allows: copies made by the runtime or by string conversion stay until
// they are collected.
func (s Secret) Wipe() { clear(s.b) }

// Format prints Masked for every verb, %x and %#v included.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Masked) }

// String returns Masked.
func (s Secret) String() string { return Masked }

// MarshalText makes text and JSON encoders write Masked.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Masked), nil }
