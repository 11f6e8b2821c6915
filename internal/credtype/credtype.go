// Package credtype knows what a credential of each type must look like before it is stored. Its rule: a credential
// is refused whole, with the reason, and never mended; and no reason repeats any part of a value.
package credtype

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what can be stored.
const (
	MaxValue        = 64 << 10 // bytes of a value
	MaxName         = 128      // bytes of a credential's name
	MaxMetadata     = 32       // keys
	MaxMetadataText = 1 << 10  // bytes of a key and its value together
)

// types is every type that there is. check is nil for those that this version does not store yet; it returns the
// metadata that the value itself tells, none of it secret.
var types = [...]struct {
	name  string
	check func(value []byte) (extracted map[string]string, err error)
}{
	{"api-key", apiKey},
	{"generic-secret", genericSecret},
	{"oauth-token", nil},
	{"ssh-key", nil},
	{"tls-certificate", nil},
	{"database-url", nil},
}

// Names returns the types that can be stored.
func Names() []string {
	var names []string
	for _, t := range types {
		if t.check != nil {
			names = append(names, t.name)
		}
	}
	return names
}

// CheckType reports why typ can't be stored.
func CheckType(typ string) error {
	use := strings.Join(Names(), " or ")
	for _, t := range types {
		switch {
		case t.name != typ:
		case t.check == nil:
			return fmt.Errorf("type %q is not supported by this version; use %s", typ, use)
		default:
			return nil
		}
	}
	return fmt.Errorf("there is no such type; use %s", use)
}

// Check reports why a credential can't be stored: its type, value or metadata. extracted is what the value tells
// about itself, to be merged into the metadata.
func Check(typ string, value []byte, metadata map[string]string) (extracted map[string]string, err error) {
	if err := CheckType(typ); err != nil {
		return nil, err
	}
	if err := CheckMetadata(metadata); err != nil {
		return nil, err
	}
	if err := CheckValue(value); err != nil {
		return nil, err
	}
	for _, t := range types {
		if t.name == typ {
			return t.check(value)
		}
	}
	return nil, nil
}

// CheckValue reports why no type could have this value. Values travel as JSON text, hence UTF-8.
func CheckValue(value []byte) error {
	switch {
	case len(value) == 0:
		return errors.New("the value is empty")
	case len(value) > MaxValue:
		return fmt.Errorf("the value is %d bytes long; at most %d (64 KiB) can be stored", len(value), MaxValue)
	case !utf8.Valid(value):
		return errors.New("the value is not UTF-8 text; store the base64 of binary data")
	}
	return nil
}

// apiKey refuses what a paste leaves behind: a line break or space at the end makes a key that no service knows.
func apiKey(value []byte) (map[string]string, error) {
	first, _ := utf8.DecodeRune(value)
	last, _ := utf8.DecodeLastRune(value)
	if stray(first) || stray(last) {
		return nil, errors.New("the api-key begins or ends with white space or a control character; take it away, or store it as generic-secret if it belongs there")
	}
	return nil, nil
}

func stray(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\ufeff' }

func genericSecret([]byte) (map[string]string, error) { return nil, nil }

// CheckName reports why s can't be a credential's name: names are [a-z0-9][a-z0-9._-]{0,127}. A name that will not
// do is refused, never normalised, so that no two spellings reach one record. The error does not repeat s.
func CheckName(s string) error {
	switch {
	case s == "":
		return errors.New("the credential needs a name")
	case len(s) > MaxName:
		return fmt.Errorf("the credential's name is %d bytes long; at most %d are allowed", len(s), MaxName)
	case !isAlnum(rune(s[0])):
		return errors.New("a credential's name must begin with a lower-case letter or digit")
	}
	for _, c := range s {
		if !isAlnum(c) && !strings.ContainsRune("._-", c) {
			return fmt.Errorf("a credential's name can't hold %q: use a-z, 0-9 and . _ -", c)
		}
	}
	return nil
}

func isAlnum(c rune) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// CheckMetadata reports the first thing wrong with metadata, in the order of its keys.
func CheckMetadata(metadata map[string]string) error {
	if len(metadata) > MaxMetadata {
		return fmt.Errorf("there are %d metadata keys; at most %d are allowed", len(metadata), MaxMetadata)
	}
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		if err := CheckMetadataField(key, metadata[key]); err != nil {
			return err
		}
	}
	return nil
}

// CheckMetadataField reports what is wrong with one key and its value, repeating neither.
func CheckMetadataField(key, value string) error {
	if key == "" {
		return errors.New("a metadata key is empty")
	}
	if n := len(key) + len(value); n > MaxMetadataText {
		return fmt.Errorf("a metadata key with its value is %d bytes long; at most %d are allowed", n, MaxMetadataText)
	}
	if err := CheckText(key); err != nil {
		return fmt.Errorf("a metadata key %w", err)
	}
	if err := CheckText(value); err != nil {
		return fmt.Errorf("a metadata value %w", err)
	}
	return nil
}

// CheckText reports why s can't be shown on one line as what it is: it holds broken UTF-8, a control character, a
// line separator, or a character that turns the reading direction and so can make text look like other text.
// The error goes after the name of what s is.
func CheckText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("is not UTF-8 text")
	}
	for _, r := range s {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029':
			return fmt.Errorf("holds a control character (%U)", r)
		case unicode.Is(unicode.Bidi_Control, r):
			return fmt.Errorf("holds a character that turns the reading direction (%U)", r)
		}
	}
	return nil
}
