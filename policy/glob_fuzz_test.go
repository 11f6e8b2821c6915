package policy_test

import (
	"testing"

	"keylease/policy"
)

// plainly is Glob as one would write it down: slow, and with nothing to get wrong.
func plainly(pattern, name string) bool {
	if pattern == "" {
		return name == ""
	}
	if pattern[0] == '*' {
		for i := range len(name) + 1 {
			if plainly(pattern[1:], name[i:]) {
				return true
			}
		}
		return false
	}
	return name != "" && (pattern[0] == '?' || pattern[0] == name[0]) && plainly(pattern[1:], name[1:])
}

// Glob answers as the plain reading of its rule does, for whatever bytes.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"*", ""}, {"a*b?c", "axxbyc"}, {"**a", "aaa"}, {"", ""}, {"?", "é"}, {"[a-z]", "a"}, {"a*a*a", "aaaa"}, {"*-prod", "x-prod-prod"}, {"\\*", "*"}, {"a/../*", "a/../b"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		got := policy.Glob(pattern, name) // returns, however long they are
		if len(pattern) > 12 || len(name) > 24 {
			return // the plain reading would not
		}
		if want := plainly(pattern, name); got != want {
			t.Fatalf("Glob(%q, %q) = %v, want %v", pattern, name, got, want)
		}
	})
}
