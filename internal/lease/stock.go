package lease

import (
	"errors"
	"fmt"
	"time"

	"keylease/store"
)

// Stock is what there is in a store.
type Stock struct {
	Credentials int      `json:"credentials"`
	Versions    int      `json:"versions"` // values that were unsealed and hold
	Leases      int      `json:"leases"`   // that nothing has ended but, perhaps, their time
	Overdue     int      `json:"overdue"`  // those among them whose time is up by now; they may have been renewed since
	Approvals   int      `json:"approvals"`
	Tokens      int      `json:"tokens"`  // that let somebody in
	Policy      string   `json:"policy"`  // the file of the policy that governed; "": none did
	Damaged     []string `json:"damaged"` // what can't be believed, and why
}

// TakeStock rebuilds what the trail of s tells and unseals every record and every value: what it does not call damaged
// can be lent. It writes nothing. now is what leases and tokens are held against.
func TakeStock(s *store.Store, now time.Time) (Stock, error) {
	b := &Broker{store: s}
	ix, err := b.read()
	if err != nil {
		return Stock{}, err
	}
	k := Stock{Credentials: len(ix.creds), Leases: len(ix.leases), Approvals: ix.waitingApprovals(now), Policy: ix.policy.File, Damaged: []string{}}
	for _, err := range ix.loadRecords(s) {
		k.Damaged = append(k.Damaged, err.Error())
	}
	for _, c := range ix.creds {
		for _, ref := range c.values {
			version := ref.Version
			value, err := s.Value(c.rec.ID, version, ref)
			switch {
			case errors.Is(err, store.ErrDestroyed) && !c.lendable(version):
				continue // its key went, and the crash came before the Entry
			case err != nil:
				k.Damaged = append(k.Damaged, fmt.Sprintf("credential %s: %v", c.rec.Name, err))
				continue
			}
			value.Wipe()
			k.Versions++
		}
	}
	for _, l := range ix.leases {
		if l.overdue(now) {
			k.Overdue++
		}
	}
	for _, t := range ix.tokens {
		if t.problem(now) == "" {
			k.Tokens++
		}
	}
	return k, nil
}

// lendable reports whether version is the current one, or one that leases are on.
func (c *credential) lendable(version int) bool {
	for _, v := range c.rec.Versions {
		if v.Version == version && v.State == stateActive {
			return true
		}
	}
	return c.used(version)
}
