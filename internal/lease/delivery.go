package lease

import (
	"crypto/rand"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
)

// deliverable is what policy allows and the caller can use, least exposing first: the proxy is for credentials that
// have an upstream and, as commands are, for callers on this machine.
func deliverable(d policy.Decision, c *credential, caller identity.Caller) []policy.Delivery {
	open := []policy.Delivery{}
	for _, way := range d.Deliveries {
		switch way {
		case policy.Proxy:
			if c.plan == nil || caller.Remote {
				continue
			}
		case policy.Exec:
			if caller.Transport != "local" {
				continue
			}
		}
		open = append(open, way)
	}
	return open
}

// usual is what a caller gets that does not say: the least exposing delivery that the admin set the credential up for.
// A command can get any credential, but one without an expose was made to be lent as it is.
func usual(open []policy.Delivery, c *credential) policy.Delivery {
	for _, way := range open {
		if way != policy.Exec || c.rec.Expose != nil {
			return way
		}
	}
	return open[0]
}

// newHandle is the bearer of a lease by proxy: 130 random bits in letters and digits, which every client takes for a key.
func newHandle() secret.Secret { return secret.New([]byte("klh_" + rand.Text())) }
