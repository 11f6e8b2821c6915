package lease

import (
	"fmt"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

// tokenOf returns the token record that by, of a Principal, names; nil where it names none.
func (ix *index) tokenOf(by string) *token {
	id, ok := strings.CutPrefix(by, "token:")
	if !ok {
		return nil
	}
	return ix.tokens[id]
}

// question is what every verb asks the policy about: who, with what their token takes away, and what. Caller holds mu.
func (b *Broker) question(p identity.Principal, c *credential) policy.Request {
	return policy.Request{Identity: p, Narrowing: b.narrowing(p), Credential: c.view()}
}

// narrowing is what p's token takes away from its identity. Caller holds mu.
func (b *Broker) narrowing(p identity.Principal) policy.Narrowing {
	if t := b.ix.tokenOf(p.By); t != nil {
		return t.rec.narrowing()
	}
	return policy.Narrowing{}
}

func (r tokenRecord) narrowing() policy.Narrowing {
	return policy.Narrowing{Credentials: r.Credentials, MaxTTL: r.MaxTTL}
}

// spent reports whether t has granted all the leases that it was made for. The count is of lease.created Entries that
// name the record, so it is as exact and as durable as the leases are.
func (t *token) spent() bool { return t.rec.Uses > 0 && t.grants >= t.rec.Uses }

// unspent refuses p one more lease where its token has none left. Caller holds mu.
func (b *Broker) unspent(p identity.Principal, c *credential, now time.Time) error {
	t := b.ix.tokenOf(p.By)
	if t == nil || !t.spent() {
		return nil
	}
	r := refuse(LeaseLimit, fmt.Sprintf("your token has no leases left: it was made for %d", t.rec.Uses),
		"Waiting does not help. Ask the operator for another token; do not look for this key elsewhere.")
	r.YourLeases = ownLeases(c.leases, p, now)
	if len(r.YourLeases) > 0 {
		r.Hint = "Use or renew (lease_credential with lease_id) one of your_leases: that takes none of the token's leases. For another, ask the operator for another token; waiting does not help."
	}
	return r
}
