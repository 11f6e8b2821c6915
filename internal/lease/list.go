package lease

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

// List tells caller what it may lease, one page at a time, by name. What it may not lease is not there.
func (b *Broker) List(_ context.Context, caller identity.Caller, r ListRequest) (Listing, error) {
	switch {
	case r.Limit < 0 || r.Limit > MaxPage:
		return Listing{}, invalid("limit must be between 1 and %d", MaxPage)
	case len(r.Match) > 256:
		return Listing{}, invalid("match is longer than 256 characters")
	case r.Limit == 0:
		r.Limit = DefaultPage
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.lastCall = now
	if err := b.standing(caller.Principal, now); err != nil {
		return Listing{}, err
	}
	if err := inScope(caller, identity.MayList); err != nil {
		return Listing{}, err
	}
	if b.broken == nil { // a list is answered even while changes can't be recorded
		if err := b.refreshPolicy(); err != nil {
			return Listing{}, err
		}
	}
	after, err := b.openCursor(caller.Principal, r.Cursor)
	if err != nil {
		return Listing{}, err
	}
	at, found := slices.BinarySearch(b.ix.names, after)
	if found {
		at++
	}
	page := Listing{Credentials: make([]Offer, 0, min(r.Limit, len(b.ix.names)-at))}
	for _, name := range b.ix.names[at:] {
		c := b.ix.creds[name]
		if !r.fits(c) {
			continue
		}
		d := b.policy.current.Decide(b.question(caller.Principal, c))
		if !d.Allow || c.state() != stateActive {
			continue
		}
		if len(page.Credentials) == r.Limit {
			page.NextCursor = b.cursor(caller.Principal, page.Credentials[len(page.Credentials)-1].Name)
			break
		}
		page.Credentials = append(page.Credentials, offer(c, d, caller, now))
	}
	return page, nil
}

func (r ListRequest) fits(c *credential) bool {
	if r.Type != "" && r.Type != c.rec.Type {
		return false
	}
	for k, v := range r.Metadata {
		if have, ok := c.rec.Metadata[k]; !ok || have != v {
			return false
		}
	}
	return r.Match == "" || policy.Glob(r.Match, c.rec.Name)
}

// offer shares the metadata of c's record, which is replaced and never changed.
func offer(c *credential, d policy.Decision, caller identity.Caller, now time.Time) Offer {
	o := Offer{Name: c.rec.Name, Type: c.rec.Type, State: c.state(), Metadata: c.rec.Metadata,
		Deliveries: deliverable(d, c, caller), DefaultTTL: d.TTL, MaxTTL: d.MaxTTL, MaxLeases: d.MaxLeases,
		LeasesInUse: c.leases.live(now), Approval: d.Approval, RotationDue: c.rotationDue(now), YourLeases: []OwnLease{}}
	if len(o.Deliveries) > 0 {
		o.Usual = usual(o.Deliveries, c)
	}
	o.YourLeases = append(o.YourLeases, ownLeases(c.leases, caller.Principal, now)...)
	return o
}

const cursorMAC = 16 // bytes of the keyed hash in front of a cursor's name

// cursor is good for the principal it was given to: anybody else's is refused, so it tells and widens nothing.
func (b *Broker) cursor(p identity.Principal, name string) string {
	return base64.RawURLEncoding.EncodeToString(append(b.cursorMAC(p, name), name...))
}

func (b *Broker) cursorMAC(p identity.Principal, name string) []byte {
	mac := b.store.MAC("cursors", []byte(strings.Join([]string{string(p.Type), p.Name, p.Proof.String(), p.By, name}, "\x00")))
	return mac[:cursorMAC]
}

func (b *Broker) openCursor(p identity.Principal, cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(raw) <= cursorMAC ||
		subtle.ConstantTimeCompare(raw[:cursorMAC], b.cursorMAC(p, string(raw[cursorMAC:]))) != 1 {
		return "", invalid("cursor is not one that list_credentials gave you")
	}
	return string(raw[cursorMAC:]), nil
}
