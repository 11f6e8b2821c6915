package lease

import (
	"context"

	"keylease/internal/identity"
	"keylease/policy"
)

// Proxied is how many live leases are used through the proxy.
func (b *Broker) Proxied() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.proxied())
}

// RevokeProxied ends every lease that is used through the proxy, and returns how many those were. It is for a proxy that
// can't be where its users look for it: their handles may be sent to somebody else.
func (b *Broker) RevokeProxied(_ context.Context, reason string) (int, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return 0, err
	}
	return b.revokeAll(identity.Caller{}, b.proxied(), reason)
}

// proxied wants mu held.
func (b *Broker) proxied() leaseSet {
	set, now := leaseSet(nil), b.now()
	for _, l := range b.ix.leases {
		if l.delivery == policy.Proxy && l.live(now) {
			set = append(set, l)
		}
	}
	return set
}
