package lease

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CleanText makes a foreign string fit for the trail and for a terminal: control and bidirectional characters and
// what is not UTF-8 become U+FFFD, and it is cut to max characters.
func CleanText(s string, max int) string {
	if len(s) <= max && plain(s) {
		return s
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == max {
			b.WriteRune('…')
			break
		}
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			r = utf8.RuneError
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// plain reports whether s is printable ASCII, as most is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID returns prefix and 128 random bits.
func newID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	var text [32]byte
	id := append(text[:0], prefix...)
	return string(idEncoding.AppendEncode(id, b[:]))
}

// isID reports whether s is what newID could have made of prefix.
func isID(s, prefix string) bool {
	random, ok := strings.CutPrefix(s, prefix)
	b, err := idEncoding.DecodeString(random)
	return ok && err == nil && len(b) == 16
}
