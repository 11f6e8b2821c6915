package federation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

// claims are what a token says, names compared exactly.
type claims map[string]any

func readClaims(payload []byte) (claims, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber() // an id with many digits stays what it is
	var c claims
	if err := d.Decode(&c); err != nil || c == nil {
		return nil, fmt.Errorf("the claims are not a JSON object")
	}
	return c, nil
}

// text returns a claim that is text; "" if it is missing or anything else.
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// moment returns a claim that is a time in seconds since 1970. there is whether the claim exists; ok is false where it
// exists and is no time between 1970 and 9999.
func (c claims) moment(name string) (at time.Time, there, ok bool) {
	v, there := c[name]
	if !there {
		return time.Time{}, false, true
	}
	n, isNumber := v.(json.Number)
	f, err := n.Float64()
	if !isNumber || err != nil || f < 0 || f >= 253402300800 {
		return time.Time{}, true, false
	}
	return time.UnixMilli(int64(f * 1000)), true, true
}

// audience returns aud: one text or a list of them.
func (c claims) audience() []string {
	all, _ := texts(c["aud"])
	return all
}

// values returns the claim at a path outer/inner as text: one for a single value, any number for a list. A name that
// holds a "/" itself is found too. An e-mail counts only where the issuer says that it verified it: with most issuers
// everybody may enter any.
func (c claims) values(path string) []string {
	v, ok := lookUp(c, path)
	if !ok || path == "email" && !c.emailVerified() {
		return nil
	}
	all, _ := texts(v)
	return all
}

func (c claims) emailVerified() bool {
	v := c["email_verified"]
	return v == true || v == "true" // some issuers write it as text
}

func lookUp(in map[string]any, path string) (any, bool) {
	if v, ok := in[path]; ok {
		return v, true
	}
	for i, r := range path {
		if r != '/' {
			continue
		}
		if inner, ok := in[path[:i]].(map[string]any); ok {
			if v, ok := lookUp(inner, path[i+1:]); ok {
				return v, true
			}
		}
	}
	return nil, false
}

// texts writes a scalar, or each of a list of them, as text. single is false for a list.
func texts(v any) (all []string, single bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case json.Number:
		return []string{v.String()}, true
	case bool:
		return []string{fmt.Sprint(v)}, true
	case []any:
		for _, item := range v {
			if _, nested := item.([]any); nested {
				return nil, false
			}
			one, _ := texts(item)
			all = append(all, one...)
		}
	}
	return all, false
}

// scopes returns what scope (separated by spaces) and scp (the same, or a list) grant.
func (c claims) scopes() identity.Scopes {
	var s identity.Scopes
	for _, name := range []string{"scope", "scp"} {
		all, _ := texts(c[name])
		for _, text := range all {
			s |= identity.ScopesOf(text)
		}
	}
	return s
}

// mapping is a Mapping understood.
type mapping struct {
	match map[string][]string
	name  template
	kind  identity.Type
}

func newMapping(m Mapping) mapping {
	out := mapping{match: m.Match, kind: identity.Agent}
	if m.Type == "human" {
		out.kind, m.Name = identity.Human, "{email}"
	}
	out.name, _ = parseTemplate(m.Name) // Check has looked at it
	return out
}

// admits returns, for each claim of match, the values of c that it lets through; false where a claim has none.
func (m mapping) admits(c claims) (map[string][]string, bool) {
	through := map[string][]string{}
	for claim, globs := range m.match {
		matching := slices.DeleteFunc(c.values(claim), func(v string) bool { return !matchesAny(globs, v) })
		if len(matching) == 0 {
			return nil, false
		}
		through[claim] = matching
	}
	return through, true
}

func matchesAny(globs []string, value string) bool {
	return slices.ContainsFunc(globs, func(g string) bool { return policy.Glob(g, value) })
}

// identify gives the name of a token that admits let through. A claim with several values is taken for the one that
// match let through; where that is not exactly one, the name would be a guess and there is none.
func (m mapping) identify(c claims, through map[string][]string) (string, error) {
	return m.name.fill(func(claim string) (string, error) {
		values, matched := through[claim]
		if !matched {
			values = c.values(claim)
		}
		if len(values) != 1 {
			return "", fmt.Errorf("the claim %s has %d values that could be meant", claim, len(values))
		}
		return values[0], nil
	})
}

// template is a name with placeholders: text and claims by turns, beginning and ending with text. No two sets of values
// give the same name: between two placeholders there is text, and a value does not hold the first character of what
// comes after it (fill), so that where each value ends can be read from the name. The last one's end is the name's.
type template []string

var placeholder = regexp.MustCompile(`\{([^{}]+)\}`)

func parseTemplate(s string) (template, error) {
	if s == "" {
		return nil, fmt.Errorf("a name is needed: write it as in gh/{repository}, with claims in braces")
	}
	var t template
	end, probe := 0, ""
	for _, at := range placeholder.FindAllStringSubmatchIndex(s, -1) {
		if end > 0 && at[0] == end {
			return nil, fmt.Errorf("two claims in a name need text between them, as in k8s/{namespace}/{name}: else a + bc and ab + c would have the same name")
		}
		t = append(t, s[end:at[0]], s[at[2]:at[3]])
		probe += s[end:at[0]] + "0"
		end = at[1]
	}
	t = append(t, s[end:])
	probe += s[end:]
	if strings.ContainsAny(probe, "{}") {
		return nil, fmt.Errorf("a brace in the name is not closed, or stands alone")
	}
	if err := identity.CheckName(probe); err != nil {
		return nil, fmt.Errorf("no identity can have this name: it begins with a lower-case letter or digit and holds a-z, 0-9 and . _ @ + : / -")
	}
	return t, nil
}

func (t template) claims() (names []string) {
	for i := 1; i < len(t); i += 2 {
		names = append(names, t[i])
	}
	return names
}

// fill puts values in. The result is an identity's name as it stands: one that could be none is refused, not mended,
// because two names that are mended may become one.
func (t template) fill(value func(claim string) (string, error)) (string, error) {
	var b strings.Builder
	for i, part := range t {
		if i%2 == 1 {
			v, err := value(part)
			if err != nil {
				return "", err
			}
			if i+2 < len(t) && strings.Contains(v, t[i+1][:1]) {
				return "", fmt.Errorf("the claim %s holds %q, which comes after it in the name: others could have the same", part, t[i+1][:1])
			}
			part = v
		}
		b.WriteString(part)
		if b.Len() > identity.MaxName {
			break
		}
	}
	return b.String(), identity.CheckName(b.String())
}
