package federation

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"keylease/internal/identity"
)

// Why a certificate stands for nobody.
const (
	whyNoCA        = "client certificate without a client CA"
	whyUntrusted   = "client certificate that does not verify"
	whyNoSAN       = "client certificate that no identity matches"
	whyManySANs    = "client certificate with several names that match"
	whyCertificate = "client certificate whose name makes no identity name"
)

// certificateRule is a Certificate understood.
type certificateRule struct {
	scheme string // spiffe, dns, uri or email
	globs  []string
	name   template
	kind   identity.Type
}

func newCertificateRule(c Certificate) certificateRule {
	r := certificateRule{kind: identity.Agent}
	for scheme, globs := range map[string][]string{"spiffe": c.SPIFFE, "dns": c.DNS, "uri": c.URI, "email": c.Email} {
		if len(globs) > 0 {
			r.scheme, r.globs = scheme, globs
		}
	}
	if c.Type == "human" {
		r.kind, c.Name = identity.Human, "{san}"
	}
	r.name, _ = parseTemplate(c.Name) // Check has looked at it
	return r
}

// Certificate returns whom the certificates of a connection (the leaf first, as sent) stand for. It verifies them
// itself, against roots as they are now: a connection lives longer than what proved its other end, be it a certificate
// that expires or a CA that is taken away. The error is a *Refused. Revocation lists are not consulted.
func (d *Directory) Certificate(sent []*x509.Certificate, roots *x509.CertPool) (Entrant, error) {
	if roots == nil {
		return Entrant{}, refused(whyNoCA)
	}
	leaf, between := sent[0], x509.NewCertPool()
	for _, c := range sent[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: d.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Entrant{}, refused(whyUntrusted)
	}
	for _, r := range d.certificates {
		switch found := slices.DeleteFunc(r.names(leaf), func(n string) bool { return !matchesAny(r.globs, n) }); {
		case len(found) == 1:
			e, why := r.entrant(found[0], lastingUntil(chains))
			if why != nil {
				return Entrant{}, &Refused{Why: whyCertificate, Detail: why.Error(), SAN: allNames(leaf)}
			}
			return e, nil
		case len(found) > 1:
			return Entrant{}, &Refused{Why: whyManySANs, SAN: allNames(leaf)}
		}
	}
	return Entrant{}, &Refused{Why: whyNoSAN, SAN: allNames(leaf)}
}

// allNames are the names that a certificate could have been known by, as many as fit in a line.
func allNames(leaf *x509.Certificate) string {
	var all []string
	for _, u := range leaf.URIs {
		all = append(all, "uri:"+u.String())
	}
	for _, n := range leaf.DNSNames {
		all = append(all, "dns:"+n)
	}
	for _, n := range leaf.EmailAddresses {
		all = append(all, "email:"+n)
	}
	const most = 10
	if len(all) > most {
		all = append(all[:most], "…")
	}
	return strings.Join(all, ", ")
}

// names returns the leaf's subject alternative names of the rule's kind. A SPIFFE ID counts only as the one URI of its
// certificate, as its standard wants it.
func (r certificateRule) names(leaf *x509.Certificate) (names []string) {
	switch r.scheme {
	case "dns":
		return slices.Clone(leaf.DNSNames)
	case "email":
		return slices.Clone(leaf.EmailAddresses)
	}
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	if r.scheme == "spiffe" && (len(names) != 1 || !strings.HasPrefix(names[0], "spiffe://")) {
		return nil
	}
	return names
}

// entrant: who a name in a certificate is depends on no CA, so that a CA's replacement changes nobody.
func (r certificateRule) entrant(san string, until time.Time) (Entrant, error) {
	domain, path, _ := strings.Cut(strings.TrimPrefix(san, "spiffe://"), "/")
	values := map[string]string{"san": san, "domain": domain, "path": path}
	name, err := r.name.fill(func(claim string) (string, error) { return values[claim], nil })
	if err == nil && !goodSubject(san) {
		err = fmt.Errorf("it is longer than %d characters or not plain ASCII", maxSubject)
	}
	if err != nil {
		return Entrant{}, err
	}
	by := "cert:" + r.scheme + ":" + san // with the kind, so that no two kinds of name give the same
	if r.scheme == "spiffe" {
		by = "cert:" + san // begins with its kind
	}
	return Entrant{Principal: identity.Principal{Type: r.kind, Name: name, Proof: identity.MTLS, By: by},
		Scopes: identity.AllScopes, Until: until}, nil
}

// lastingUntil is when the longest-lived chain has its first expired certificate.
func lastingUntil(chains [][]*x509.Certificate) (until time.Time) {
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(until) {
			until = end
		}
	}
	return until
}
