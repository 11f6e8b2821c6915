package use

import (
	"fmt"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Plan is an Upstream that was checked and made ready for the proxy. The nil Plan allows nothing. A Plan does not change.
type Plan struct {
	Service string // its name in the catalogue; "" for one that the admin described
	service *Service
	hosts   []host
	allow   []rule
	deny    []rule
	guards  []guard
	named   map[int][]rule // by the index of a guard: the admin's rules that name it
	slashes []pattern
	drop    []string
	keep    []string

	carriers []string
	rate     float64
	burst    int
	dial     dialing
}

// host is one address of a service, and what is sent there.
type host struct {
	base  *url.URL
	slot  Slot
	paths []pattern // nil: all that no host before it takes
}

// Target is where one request goes.
type Target struct {
	URL    *url.URL // scheme, host and path; the caller adds the query, once CheckQuery has passed it. Its own copy.
	Slot   Slot
	Method string
	Path   string // canonical, as it was matched: what goes into the trail
}

// Plan compiles u, or says what is wrong with it.
func (u *Upstream) Plan() (*Plan, error) {
	if u == nil {
		return nil, fmt.Errorf("the credential has no upstream")
	}
	p, faults := compile(*u)
	if faults != nil {
		return nil, joined("upstream", faults)
	}
	return p, nil
}

func compile(u Upstream) (*Plan, []fault) {
	p, faults := &Plan{}, []fault{}
	bad := func(text string, at ...any) { faults = append(faults, fault{at, text}) }
	s := Lookup(u.Service)
	switch {
	case u.Service == "" && u.URL == "":
		bad("upstream needs service (" + strings.Join(Names(), ", ") + ") or url")
	case u.Service != "" && s == nil:
		bad("there is no such service in the catalogue"+meant(u.Service)+"; it has "+strings.Join(Names(), ", ")+". For another write url, header and allow", "service")
	}
	base := p.address(u, s, bad)
	p.slots(u, s, base, bad)
	p.allow = compileRules(u.Allow, "allow", bad)
	p.deny = compileRules(u.Deny, "deny", bad)
	p.rules(u, s, bad)
	p.headers(u, s, bad)
	p.carriers = carriersOf(p)
	if u.Rate != "" {
		var err error
		if p.rate, p.burst, err = parseRate(u.Rate); err != nil {
			bad(err.Error(), "rate")
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return p, nil
}

func meant(name string) string {
	if near := nearest(name, Names()); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

// slots says which header carries the key to which address.
func (p *Plan) slots(u Upstream, s *Service, base *url.URL, bad func(string, ...any)) {
	var own *Slot
	if u.Header != "" {
		slot, err := parseSlot(u.Header)
		if err != nil {
			bad("header: "+err.Error(), "header")
		}
		own = &slot
	}
	if s == nil {
		switch {
		case u.URL == "" || u.Service != "":
		case own == nil:
			bad(`upstream needs header where it has no service: write header: "Authorization: Bearer {value}"`)
		case base != nil:
			p.hosts = []host{{base: base, slot: *own}}
		}
		return
	}
	p.Service, p.service = s.Name, s
	for _, h := range s.hosts {
		if base != nil {
			h.base = under(base, h.self)
		}
		if own != nil && h.paths == nil { // git's own way of sending a key stays
			h.slot = *own
		}
		p.hosts = append(p.hosts, h.host)
	}
}

func compileRules(texts []string, field string, bad func(string, ...any)) (rules []rule) {
	if texts != nil && len(texts) == 0 {
		bad(field+" is an empty list; leave it out", field)
	}
	if len(texts) > MaxRules {
		bad(fmt.Sprintf("%s holds more than %d rules", field, MaxRules), field)
		return nil
	}
	for i, text := range texts {
		r, err := parseRule(text)
		if len(text) > MaxRule {
			err = fmt.Errorf("it is longer than %d bytes", MaxRule)
		}
		if err != nil {
			bad("this rule of "+field+" can't be used: "+err.Error(), field, i)
			continue
		}
		rules = append(rules, r)
	}
	return rules
}

// rules adds to the admin's what the service brings. The admin's allow takes the place of the service's own; what is
// guarded stays so unless a rule of the admin's names it.
func (p *Plan) rules(u Upstream, s *Service, bad func(string, ...any)) {
	if s == nil {
		if len(u.Allow) == 0 && u.Service == "" && u.URL != "" {
			bad(`upstream needs allow where it has no service: write allow: ["POST /v1/chat/*"], or ["* /**"] for every request`)
		}
		return
	}
	p.guards, p.slashes = s.guards, s.slashes
	if len(u.Allow) == 0 {
		p.allow = s.allow
		return
	}
	p.named = map[int][]rule{}
	for i, g := range s.guards {
		for _, r := range p.allow {
			if g.named(r) {
				p.named[i] = append(p.named[i], r)
			}
		}
	}
}

// headers works out what is dropped of requests, and what else is kept of answers.
func (p *Plan) headers(u Upstream, s *Service, bad func(string, ...any)) {
	tenant := tenantHeaders()
	if s != nil {
		tenant = s.drop
	}
	allowed := map[string]bool{}
	for i, name := range u.AllowHeaders {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !isHeaderName(name):
			bad("a header's name can hold letters, digits and - alone", "allowHeaders", i)
		case !slices.Contains(tenant, canonical):
			bad("this header is not one that is dropped and could be allowed: "+strings.Join(tenant, ", "), "allowHeaders", i)
		}
		allowed[canonical] = true
	}
	p.drop = slices.Clone(neverHeaders)
	for _, name := range tenant {
		if !allowed[name] {
			p.drop = append(p.drop, name)
		}
	}
	for i, name := range u.ResponseHeaders {
		if !strings.EqualFold(name, "Set-Cookie") {
			bad("only Set-Cookie is dropped of answers and could be allowed", "responseHeaders", i)
		}
		p.keep = append(p.keep, textproto.CanonicalMIMEHeaderKey(name))
	}
}

// neverHeaders make a request another one than the rules were asked about; no admin can let them through.
var neverHeaders = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Method", "X-Original-Url", "X-Rewrite-Url", "X-Original-Uri",
	"X-Original-Host", "X-Host", "X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Server",
	"X-Forwarded-Uri", "X-Forwarded-Method", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Forwarded", "Cookie", "Proxy-Authorization"}

func parseRate(s string) (perSecond float64, burst int, err error) {
	count, unit, _ := strings.Cut(s, "/")
	n, err := strconv.Atoi(count)
	seconds, known := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	if err != nil || !known || n < 1 || n > 1_000_000 {
		return 0, 0, fmt.Errorf("a rate is a whole number of requests, a / and s, m or h: 10/s, 300/m, 1000/h")
	}
	return float64(n) / seconds, n, nil
}

// Route decides about one request. path is as it came over the wire, percent-encoded, without the query. Errors are *Refused.
func (p *Plan) Route(method, path string) (Target, error) {
	if p == nil {
		return Target{}, &Refused{NotAllowed, "the credential has no upstream", "Ask an operator to give it one."}
	}
	if r := checkMethod(method); r != nil {
		return Target{}, r
	}
	segs, refused := segments(path)
	if refused == nil {
		refused = p.checkSlashes(segs)
	}
	if refused == nil {
		refused = p.judge(method, segs)
	}
	if refused != nil {
		return Target{}, refused
	}
	for _, h := range p.hosts {
		if h.takes(segs) {
			canonical := "/" + strings.Join(segs, "/")
			return Target{URL: under(h.base, canonical), Slot: h.slot, Method: method, Path: canonical}, nil
		}
	}
	return Target{}, p.notAllowed()
}

// checkSlashes refuses an encoded slash but where the service's own paths have one.
func (p *Plan) checkSlashes(segs []string) *Refused {
	for i, seg := range segs {
		if strings.Contains(seg, "%2F") && !slices.ContainsFunc(p.slashes, func(known pattern) bool {
			return known.slashAt(i, segs)
		}) {
			return malformed("the path holds an encoded slash (%2F) where this service has none")
		}
	}
	return nil
}

// slashAt reports whether p, an entry of a service's slashes, has an encoded slash in segment i as segs does. "*%2F*" is
// any number of them, all else as many as are written.
func (p pattern) slashAt(i int, segs []string) bool {
	if i >= len(p.segs) || p.rest >= 0 && p.rest <= i {
		return false
	}
	want, got := strings.Count(p.segs[i], "%2F"), strings.Count(segs[i], "%2F")
	return want > 0 && (want == got || p.segs[i] == "*%2F*") && pattern{p.segs[:i+1], -1}.matches(segs[:i+1], glob)
}

func (p *Plan) judge(method string, segs []string) *Refused {
	matches := func(r rule) bool { return r.matches(method, segs) }
	switch {
	case !slices.ContainsFunc(p.allow, matches):
		return p.notAllowed()
	case slices.ContainsFunc(p.deny, func(r rule) bool { return guard{r}.covers(method, segs) }):
		return &Refused{NotAllowed, "a rule of this credential denies the request", "Do without it, or ask an operator."}
	}
	for i, g := range p.guards {
		if g.covers(method, segs) && !slices.ContainsFunc(p.named[i], matches) {
			return &Refused{Guarded, "the request is one that makes keys, changes who may do what, or sends data elsewhere: " + g.text + " is kept apart unless the operator allows it by name",
				"Do without it, or ask an operator to add it to the credential's upstream.allow word for word."}
		}
	}
	return nil
}

func (p *Plan) notAllowed() *Refused {
	list := p.Allowed()
	if len(list) > 12 {
		list = append(list[:12:12], "…")
	}
	return &Refused{NotAllowed, "no rule of this credential allows the request", "Allowed are: " + strings.Join(list, "; ") + ". For anything else ask an operator."}
}

func (h host) takes(segs []string) bool {
	return h.paths == nil || slices.ContainsFunc(h.paths, func(p pattern) bool { return p.matches(segs, glob) })
}

// under returns base with the canonical path behind its own.
func under(base *url.URL, path string) *url.URL {
	u := *base
	u.RawPath = strings.TrimSuffix(base.EscapedPath(), "/") + path
	u.Path, _ = url.PathUnescape(u.RawPath) // canonical: cannot fail
	return &u
}

// BaseURL is what a client of the service takes for its base URL. origin is where the proxy listens, without a / at its end.
func (p *Plan) BaseURL(origin string) string {
	if p == nil {
		return ""
	}
	if p.service == nil {
		return origin
	}
	return expand(p.service.BaseURL, origin, "")
}

// Env is what makes the service's own tools use the proxy: names of variables with their values. handle stands for the key.
func (p *Plan) Env(origin, handle string) map[string]string {
	env := map[string]string{}
	if p == nil || p.service == nil {
		return env
	}
	for _, e := range p.service.Env {
		name, value, _ := strings.Cut(e, "=")
		env[expand(name, origin, handle)] = expand(value, origin, handle)
	}
	return env
}

func expand(s, origin, handle string) string {
	_, host, _ := strings.Cut(origin, "://")
	return strings.NewReplacer("{origin}", origin, "{host}", host, "{handle}", handle).Replace(s)
}

// Allowed are the rules of which one must match, as they were written.
func (p *Plan) Allowed() []string {
	list := []string{}
	if p != nil {
		for _, r := range p.allow {
			list = append(list, r.text)
		}
	}
	return list
}

// Drop are the request headers, in canonical form, that are never passed on: those that switch the tenant, unless the
// admin allows them, and those that make another request of it. Hop-by-hop headers are the proxy's own business.
// The list is the Plan's own.
func (p *Plan) Drop() []string {
	if p == nil {
		return neverHeaders
	}
	return p.drop
}

// KeepsCookies reports whether Set-Cookie is left in answers.
func (p *Plan) KeepsCookies() bool { return p != nil && slices.Contains(p.keep, "Set-Cookie") }

// Rate is how many requests one lease may make per second, and at once; 0: no limit.
func (p *Plan) Rate() (perSecond float64, burst int) {
	if p == nil {
		return 0, 0
	}
	return p.rate, p.burst
}

// Plain reports whether the upstream is spoken to without TLS, because the admin wrote http://.
func (p *Plan) Plain() bool { return p != nil && len(p.hosts) > 0 && p.hosts[0].base.Scheme == "http" }

// Private reports whether the upstream may have an address that is not public, because the admin wrote so.
func (p *Plan) Private() bool {
	return p != nil && (p.dial.only.IsValid() && !public(p.dial.only) || p.dial.loopback || p.dial.private)
}

// CheckAddr says why the proxy may not connect to addr, to which the upstream's name was resolved.
func (p *Plan) CheckAddr(addr netip.Addr) error {
	if p == nil {
		return fmt.Errorf("there is no upstream")
	}
	return p.dial.check(addr)
}
