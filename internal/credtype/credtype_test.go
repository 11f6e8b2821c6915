package credtype_test

import (
	"fmt"
	"strings"
	"testing"

	"keylease/internal/credtype"
)

func TestValues(t *testing.T) {
	const stray = "the api-key begins or ends with white space or a control character; take it away, or store it as generic-secret if it belongs there"
	for _, c := range []struct{ typ, value, want string }{
		{"api-key", "sk-fake-1", ""},
		{"api-key", "in the middle it may", ""},
		{"api-key", "", "the value is empty"},
		{"generic-secret", "", "the value is empty"},
		{"api-key", "sk-fake-1\n", stray},
		{"api-key", " sk-fake-1", stray},
		{"api-key", "sk-fake-1\x00", stray},
		{"api-key", "sk-fake-1\u00a0", stray},
		{"api-key", "\ufeffsk-fake-1", stray},
		{"generic-secret", " anything\n", ""},
		{"generic-secret", "\xff\xfe", "the value is not UTF-8 text; store the base64 of binary data"},
		{"generic-secret", strings.Repeat("x", 64<<10), ""},
		{"generic-secret", strings.Repeat("x", 64<<10+1), "the value is 65537 bytes long; at most 65536 (64 KiB) can be stored"},
		{"ssh-key", "x", `type "ssh-key" is not supported by this version; use api-key or generic-secret`},
		{"tls-certificate", "x", `type "tls-certificate" is not supported by this version; use api-key or generic-secret`},
		{"sk-fake-1", "x", "there is no such type; use api-key or generic-secret"},
		{"", "x", "there is no such type; use api-key or generic-secret"},
		{"API-KEY", "x", "there is no such type; use api-key or generic-secret"},
	} {
		if _, err := credtype.Check(c.typ, []byte(c.value), nil); text(err) != c.want {
			t.Errorf("%s %.20q: %v; want %s", c.typ, c.value, err, c.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A name that could be a path, a pattern or another name's double is refused, not mended.
func TestNames(t *testing.T) {
	for _, name := range []string{"a", "0", "openai-api-key-prod", "a.b_c-d", strings.Repeat("a", 128)} {
		if err := credtype.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "A", "../x", "a//b", "a/./b", "a/b", ".a", "-a", "_a", "a ", " a", "a\t", "a\x00", "a*", "a?", "a[", "a{", "%2f", "a%2fb",
		"a\u202eb", "ａ", "é", "a:b", "a@b", `a\b`, "a\xff", strings.Repeat("a", 129)} {
		err := credtype.CheckName(name)
		if err == nil || (len(name) > 2 && strings.Contains(err.Error(), name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestMetadata(t *testing.T) {
	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprint(i)] = "x"
	}
	for _, c := range []struct {
		m    map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"équipe": "Ünï ☂ 😀 日本"}, ""},
		{map[string]string{"k": strings.Repeat("x", 1023)}, ""},
		{map[string]string{"k": strings.Repeat("x", 1024)}, "a metadata key with its value is 1025 bytes long; at most 1024 are allowed"},
		{map[string]string{"": "x"}, "a metadata key is empty"},
		{map[string]string{"k": "a\nb"}, "a metadata value holds a control character (U+000A)"},
		{map[string]string{"k\x00": "a"}, "a metadata key holds a control character (U+0000)"},
		{map[string]string{"k": "a\u2028b"}, "a metadata value holds a control character (U+2028)"},
		{map[string]string{"k": "a\u202eb"}, "a metadata value holds a character that turns the reading direction (U+202E)"},
		{map[string]string{"k": "a\u2066b"}, "a metadata value holds a character that turns the reading direction (U+2066)"},
		{map[string]string{"k": "\xff"}, "a metadata value is not UTF-8 text"},
		{many, "there are 33 metadata keys; at most 32 are allowed"},
	} {
		if err := credtype.CheckMetadata(c.m); text(err) != c.want {
			t.Errorf("%v; want %s", err, c.want)
		}
	}
}
