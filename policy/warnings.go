package policy

import (
	"fmt"
	"slices"

	"keylease/internal/strictyaml"
)

// built is the deliveries that this version can make. Approvals are not built.
func built() []Delivery { return []Delivery{Value} }

func warnings(d *strictyaml.Document, file string, p *Policy) []string {
	var all []string
	say := func(path strictyaml.Path, format string, args ...any) {
		all = append(all, fmt.Sprintf("%s:%d: %s", file, d.Line(path), fmt.Sprintf(format, args...)))
	}
	if !slices.ContainsFunc(p.rules, func(u rule) bool { return !u.deny }) {
		say(at("rules"), "no rule allows anything, so nobody may lease anything")
	}
	for i, u := range p.rules {
		missing := slices.DeleteFunc(slices.Clone(u.delivery), func(d Delivery) bool { return slices.Contains(built(), d) })
		switch path := at("rules", i, "delivery"); {
		case len(missing) == 0:
		case len(missing) == len(u.delivery):
			say(path, "rule %q allows delivery by %s only, which this version does not have yet: nothing can be leased under it", u.name, orList(missing))
		default:
			say(path, "rule %q names delivery by %s, which this version does not have yet", u.name, orList(missing))
		}
		if u.approval.rank() > 0 {
			say(at("rules", i, "approval"), "rule %q asks for approval by %s, which this version can't get yet: nothing can be leased under it", u.name, u.approval)
		}
	}
	return all
}
