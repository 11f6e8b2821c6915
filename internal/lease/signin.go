package lease

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"keylease/internal/identity"
	"keylease/internal/use"
	"keylease/policy"
)

// signsIn finds the credential with which r's program signs in at r.Origin, among those that the caller may lease by
// exec, or sees that the one it names is for there. Without that, whoever names the address of a server of theirs would
// have the key sent to it by a program that does as it is told. Caller holds mu.
func (b *Broker) signsIn(caller identity.Caller, r *ExecRequest) error {
	if r.Origin == "" || r.LeaseID != "" {
		return nil
	}
	origin, err := use.ParseOrigin(r.Origin)
	if err != nil {
		return invalid("%s", err)
	}
	var found []string
	for _, name := range b.ix.names {
		c := b.ix.creds[name]
		d := b.policy.current.Decide(b.question(caller.Principal, c))
		if r.Credential != "" && r.Credential != name || c.state() != stateActive || !d.Allow {
			continue
		}
		if _, here := c.signInAt(origin); here && slices.Contains(d.Deliveries, policy.Exec) {
			found = append(found, name)
		} else if r.Credential != "" && !here {
			return refuse(InvalidArgument, "this credential is not one for "+CleanText(r.Origin, 300),
				"Ask the operator, who says where it may go: an upstream (keylease put … --service or --upstream), or the metadata service or host, as in --meta host=git.example.com.")
		}
	}
	switch {
	case r.Credential != "":
		return nil // what else there is to say is said of any credential
	case len(found) == 0:
		return notAvailable()
	case len(found) > 1:
		return refuse(InvalidArgument, fmt.Sprintf("several credentials are for %s: %s", CleanText(r.Origin, 300), strings.Join(found, ", ")), "Say which, with --credential NAME.")
	}
	r.Credential = found[0]
	return nil
}

// signInAt reports whether c is for origin, as whom one signs in there, and where nothing says that "": by its upstream,
// by the catalogue's service that its metadata names, or by the host that they do.
func (c *credential) signInAt(origin *url.URL) (user string, ok bool) {
	if c.plan != nil {
		user, ok = c.plan.At(origin)
	}
	if !ok {
		user, ok = use.Lookup(c.rec.Metadata["service"]).At(origin)
	}
	if host := c.rec.Metadata["host"]; !ok && host != "" {
		its, err := use.ParseOrigin("https://" + host)
		ok = err == nil && use.SameOrigin(its, origin)
	}
	if own := c.rec.Metadata["username"]; ok && own != "" {
		user = own
	}
	return user, ok
}

// freshen renews a lease of which less than half is left: who asked keeps the value for as long as it lasts. Where it
// can't be renewed it is what it is.
func (u *Use) freshen(ctx context.Context) {
	l := &u.Lease
	if 2*l.ExpiresAt.Sub(u.began) >= l.ExpiresAt.Sub(l.IssuedAt) {
		return
	}
	if until, err := u.Renew(ctx); err == nil {
		l.ExpiresAt = until
	}
}
