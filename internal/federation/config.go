package federation

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"keylease/internal/identity"
)

// Config is what keylease.yaml says of identities that somebody else vouches for.
type Config struct {
	Resource     string // our own name: the audience of tokens where an issuer's says nothing else
	Issuers      []Issuer
	Certificates []Certificate
}

// Issuer is an OpenID Connect issuer whose JWTs are accepted as bearer tokens.
type Issuer struct {
	Issuer     string    `yaml:"issuer"`     // exactly as in the tokens' iss; its keys are found by discovery
	Audience   string    `yaml:"audience"`   // must be among the tokens' aud; "": the resource
	Algorithms []string  `yaml:"algorithms"` // how tokens may be signed; none: RS256 and ES256
	CAFile     string    `yaml:"caFile"`     // PEM: authorities for the issuer's own address, beside the system's
	Scopes     []string  `yaml:"scopes"`     // what its tokens may do, for issuers that can't put scopes in; none: the token's scope or scp
	Identities []Mapping `yaml:"identities"` // the first that matches gives the name; where none does the token is refused
}

// Mapping gives tokens with certain claims a name. A claim inside another is written outer/inner.
type Mapping struct {
	Match map[string][]string `yaml:"match"` // claim: globs of which one must match; all claims must hold
	Name  string              `yaml:"name"`  // text with claims in braces, as in gh/{repository}
	Type  string              `yaml:"type"`  // agent (default) or human; a human's name is the verified email
}

// Certificate gives client certificates a name. Exactly one of SPIFFE, DNS, URI and Email is set: globs for the
// subject alternative name that says who the holder is.
type Certificate struct {
	SPIFFE []string `yaml:"spiffe"`
	DNS    []string `yaml:"dns"`
	URI    []string `yaml:"uri"`
	Email  []string `yaml:"email"`
	Name   string   `yaml:"name"` // text with {san}, and for spiffe {domain} and {path}
	Type   string   `yaml:"type"` // agent (default) or human, whose name is the email
}

// Algorithms are those that a configuration may name: signatures by a key that the issuer keeps to itself. "none" and
// the HMACs, with which whoever can verify can also forge, are not among them and never will be.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

var defaultAlgorithms = []string{"RS256", "ES256"}

// Report is told of a fault at a place in the configuration: field names and indexes, from the top.
type Report func(at []any, format string, args ...any)

// Check tells report of everything that is wrong. It reads no file and asks nobody.
func (c Config) Check(report Report) {
	if c.Resource != "" {
		if why := checkResource(c.Resource); why != "" {
			report([]any{"resource"}, "%s", why)
		}
	}
	if c.Resource == "" && len(c.Issuers) > 0 {
		report([]any{"issuers"}, "issuers need a resource: write the address by which clients call keylease, as in resource: https://keys.example.com/mcp")
	}
	seen := map[string]bool{}
	for n, i := range c.Issuers {
		at := []any{"issuers", n}
		if seen[i.Issuer] {
			report(append(at, "issuer"), "this issuer is listed twice: put all its identities under one")
		}
		seen[i.Issuer] = true
		i.check(at, report)
	}
	for n, cert := range c.Certificates {
		cert.check([]any{"certificates", n}, report)
	}
}

func (c Config) firstFault() (err error) {
	c.Check(func(at []any, format string, args ...any) {
		if err == nil {
			err = fmt.Errorf("%v: %s", at, fmt.Sprintf(format, args...))
		}
	})
	return err
}

// plainPath is a path that is read the same everywhere: part of it becomes a route of ours.
var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?$`)

func checkResource(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(s, "#") || strings.HasSuffix(s, "?"):
		return "the resource must be an address without query and fragment, as in https://keys.example.com/mcp"
	case !plainPath.MatchString(u.EscapedPath()):
		return "the resource's path may hold letters, digits and . _ ~ - / alone"
	case !secureURL(u):
		return "the resource must be https (http only on a loopback address)"
	}
	return ""
}

func (i Issuer) check(path []any, report Report) {
	at := func(more ...any) []any { return append(slices.Clone(path), more...) }
	u, err := url.Parse(i.Issuer)
	switch {
	case i.Issuer == "":
		report(path, "an issuer needs its address: issuer: https://…")
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.ContainsAny(i.Issuer, "#?"):
		report(at("issuer"), "the issuer must be an address without query and fragment, exactly as in its tokens' iss")
	case !secureURL(u):
		report(at("issuer"), "the issuer must be https (http only on a loopback address)")
	}
	for n, a := range i.Algorithms {
		if !slices.Contains(Algorithms, a) {
			report(at("algorithms", n), "this is no algorithm that tokens may be signed with: use some of %s", strings.Join(Algorithms, ", "))
		}
	}
	for n, s := range i.Scopes {
		if identity.ScopesOf(s) == 0 {
			report(at("scopes", n), "there is no such scope: use %s and %s", identity.LeaseScope, identity.ListScope)
		}
	}
	if len(i.Identities) == 0 {
		report(path, "the issuer needs identities: without one none of its tokens stands for anybody")
	}
	for n, m := range i.Identities {
		m.check(at("identities", n), report)
	}
}

func (m Mapping) check(path []any, report Report) {
	at := func(more ...any) []any { return append(slices.Clone(path), more...) }
	if len(m.Match) == 0 {
		report(path, `an identity needs a match: which tokens it is for, as in match: {sub: ["…"]}`)
	}
	for claim, globs := range m.Match {
		if claim == "" || len(globs) == 0 || slices.Contains(globs, "") {
			report(at("match"), "each claim in match needs at least one pattern, and none may be empty")
		}
	}
	checkName(m.Name, m.Type, "email", nil, path, report)
}

func (c Certificate) check(path []any, report Report) {
	kinds := 0
	for _, globs := range [][]string{c.SPIFFE, c.DNS, c.URI, c.Email} {
		if len(globs) > 0 {
			kinds++
		}
		if slices.Contains(globs, "") {
			report(path, "a pattern is empty")
		}
	}
	if kinds != 1 {
		report(path, "a certificate's entry needs exactly one of spiffe, dns, uri and email: the name in the certificate that counts")
		return
	}
	known, who := []string{"san"}, ""
	switch {
	case len(c.SPIFFE) > 0:
		known = append(known, "domain", "path")
	case len(c.Email) > 0:
		who = "san"
	}
	checkName(c.Name, c.Type, who, known, path, report)
}

// checkName checks the two fields that give a name. human is the placeholder that is a human's name; "" where there
// can't be one. known are the placeholders that there are; nil: any claim.
func checkName(name, kind, human string, known []string, path []any, report Report) {
	at := func(more ...any) []any { return append(slices.Clone(path), more...) }
	if !slices.Contains([]string{"", "agent", "human"}, kind) {
		report(at("type"), "type must be agent or human")
		return
	}
	if kind == "human" {
		if human == "" {
			report(at("type"), "a human is known by the email, which this entry does not look at")
		} else if name != "" && name != "{"+human+"}" {
			report(at("name"), "a human's name is the email: leave name out")
		}
		return
	}
	t, err := parseTemplate(name)
	if err != nil {
		report(at("name"), "%s", err)
		return
	}
	for _, claim := range t.claims() {
		if known != nil && !slices.Contains(known, claim) {
			report(at("name"), "there is no {%s} here: use {%s}", claim, strings.Join(known, "}, {"))
		}
	}
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
