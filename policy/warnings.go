package policy

import (
	"fmt"
	"slices"
	"strings"

	"keylease/internal/strictyaml"
)

func warnings(d *strictyaml.Document, file string, p *Policy) []string {
	var all []string
	say := func(path strictyaml.Path, format string, args ...any) {
		all = append(all, fmt.Sprintf("%s:%d: %s", file, d.Line(path), fmt.Sprintf(format, args...)))
	}
	if !slices.ContainsFunc(p.rules, func(u rule) bool { return !u.deny }) {
		say(at("rules"), "no rule allows anything, so nobody may lease anything")
	}
	for i, u := range p.rules {
		if word := u.production(); word != "" && u.approval == User {
			say(at("rules", i, "approval"), "rule %q seems to guard production (%q) with approval: user, which is what the agent's own client reports; approval: operator takes a person with admin authority", u.name, word)
		}
	}
	return all
}

// production returns what in u looks as if it were about a service that people rely on; "" where nothing does.
func (u rule) production() string {
	texts := append([]string{u.name}, u.credentials...)
	for _, m := range u.metadata {
		texts = append(texts, m.values...)
	}
	for _, text := range texts {
		for _, word := range strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
			switch word {
			case "prod", "production", "prd", "live":
				return text
			}
		}
	}
	return ""
}
