package use

import (
	"fmt"
	"slices"
	"strings"
)

// rule is one line of an allow or deny list: methods and a path pattern. In a pattern "*" is any run of characters
// inside one segment (alone: one whole segment, never an empty one), and "**" any number of segments, also none.
type rule struct {
	text    string
	methods []string // nil: all
	path    pattern
}

type pattern struct {
	segs []string // without the "**"
	rest int      // where in segs the "**" stands; -1: nowhere
}

func parseRule(s string) (rule, error) {
	m, path, ok := strings.Cut(s, " ")
	if !ok || strings.Contains(path, " ") {
		return rule{}, fmt.Errorf(`write a method and a path, as in "POST /v1/chat/*" or "GET,HEAD /repos/**"`)
	}
	r := rule{text: s}
	if m != "*" {
		r.methods = strings.Split(m, ",")
		for _, one := range r.methods {
			if !slices.Contains(methods, one) {
				return rule{}, fmt.Errorf("a method must be one of %s, in upper case with commas between, or * for all", strings.Join(methods, ", "))
			}
		}
	}
	var err error
	r.path, err = parsePattern(path)
	return r, err
}

func parsePattern(s string) (pattern, error) {
	segs, refused := segments(s)
	if refused != nil {
		return pattern{}, fmt.Errorf("no request could match it: %s", refused.Reason)
	}
	if "/"+strings.Join(segs, "/") != s {
		return pattern{}, fmt.Errorf("no request could match it: percent-encode only what needs it, with upper-case hex digits")
	}
	p := pattern{rest: -1}
	for i, seg := range segs {
		switch {
		case seg != "**" && strings.Contains(seg, "**"):
			return p, fmt.Errorf("** is a whole segment: write /** for the rest, or * inside a segment")
		case seg == "**" && p.rest >= 0:
			return p, fmt.Errorf("** can stand in a path once")
		case seg == "**":
			p.rest = i
		default:
			p.segs = append(p.segs, seg)
		}
	}
	return p, nil
}

func (r rule) admits(method string) bool {
	return r.methods == nil || slices.Contains(r.methods, method)
}

func (r rule) matches(method string, segs []string) bool {
	return r.admits(method) && r.path.matches(segs, glob)
}

// matches compares segment by segment, with one for each.
func (p pattern) matches(segs []string, one func(pattern, seg string) bool) bool {
	if len(segs) < len(p.segs) || p.rest < 0 && len(segs) != len(p.segs) {
		return false
	}
	gap := len(segs) - len(p.segs)
	for i, want := range p.segs {
		at := i
		if p.rest >= 0 && i >= p.rest {
			at += gap
		}
		if !one(want, segs[at]) {
			return false
		}
	}
	return true
}

// glob reports whether pattern matches all of s; "*" alone is never the empty segment after a last slash.
func glob(pattern, s string) bool {
	if pattern == "*" {
		return s != ""
	}
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	for ok {
		var next string
		if next, rest, star = strings.Cut(rest, "*"); !star {
			return strings.HasSuffix(s, next)
		}
		_, s, ok = strings.Cut(s, next)
	}
	return false
}

// guard is a rule about what is kept apart: it covers also what lies under its path.
type guard struct{ rule }

func parseGuard(s string) (guard, error) {
	r, err := parseRule(s)
	if err == nil && r.path.rest >= 0 {
		err = fmt.Errorf("a guarded path covers what lies under it: leave ** out")
	}
	return guard{r}, err
}

// covers is on the safe side: case does not count, nor does what follows a dot (Rails takes "keys.json" for "keys"), a
// segment with anything percent-encoded could be read as any word, and an encoded slash is tried both ways.
func (g guard) covers(method string, segs []string) bool {
	if !g.admits(method) {
		return false
	}
	if g.under(segs) {
		return true
	}
	split := strings.Split(strings.Join(segs, "/"), "%2F")
	return len(split) > 1 && g.under(strings.Split(strings.Join(split, "/"), "/"))
}

func (g guard) under(segs []string) bool {
	if g.path.rest < 0 {
		return len(segs) >= len(g.path.segs) && g.path.matches(segs[:len(g.path.segs)], guards)
	}
	for n := len(segs); n >= len(g.path.segs); n-- { // an admin's deny: the ** may stand for less
		if g.path.matches(segs[:n], guards) {
			return true
		}
	}
	return false
}

func guards(pattern, seg string) bool {
	if pattern == "*" {
		return true
	}
	pattern, seg = strings.ToLower(pattern), strings.ToLower(seg)
	return strings.Contains(strings.ReplaceAll(seg, "%2f", ""), "%") || glob(pattern, seg) || glob(pattern+".*", seg)
}

// named reports whether whoever wrote r meant what g guards: every word of the guarded path stands in r too, so all that
// r allows there is guarded.
func (g guard) named(r rule) bool {
	n := len(g.path.segs)
	if len(r.path.segs) < n || r.path.rest >= 0 && r.path.rest < n {
		return false
	}
	for i, want := range g.path.segs {
		if !glob(want, r.path.segs[i]) { // a * in r is met by a * in want alone
			return false
		}
	}
	return true
}
