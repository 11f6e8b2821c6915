package policy

import "fmt"

// Glob reports whether pattern matches all of name, byte by byte: "*" stands for any run of bytes, "/" included,
// and "?" for exactly one. Nothing else is special and case counts. Only pattern is ever expanded, and the time
// taken is at most len(pattern) × len(name).
func Glob(pattern, name string) bool {
	p, n := 0, 0
	star, from := -1, 0 // the last "*" and how much of name it was tried with
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// CheckGlob reports why pattern can't match any name that is made of a-z, 0-9 and the given punctuation. Such a
// pattern is a slip ("Claude*", "[ab]*", "{a,b}") that would otherwise go unnoticed as a rule that never applies.
func CheckGlob(pattern, punctuation string) error {
	if pattern == "" {
		return fmt.Errorf("an empty pattern matches nothing")
	}
	if len(pattern) > 255 {
		return fmt.Errorf("the pattern is longer than any name")
	}
	for _, c := range pattern {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '*' || c == '?' {
			continue
		}
		if !containsRune(punctuation, c) {
			return fmt.Errorf("the pattern holds %q, which no name holds: use a-z, 0-9 and %s, with * for any run and ? for one character",
				c, spaced(punctuation))
		}
	}
	return nil
}

// The punctuation of identity names and of credential names.
const (
	identityMarks   = "._@+:/-"
	credentialMarks = "._-"
)

func containsRune(s string, c rune) bool {
	for _, r := range s {
		if r == c {
			return true
		}
	}
	return false
}

func spaced(s string) string {
	out := ""
	for i := range len(s) {
		if i > 0 {
			out += " "
		}
		out += s[i : i+1]
	}
	return out
}
