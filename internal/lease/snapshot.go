package lease

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// snapshot is the index as it is sealed in the store, so that a start replays only what came after. Records of
// credentials and tokens are not in it: only where they are and what they must hash to.
type snapshot struct {
	Seq         uint64             `json:"seq"`
	Newest      time.Time          `json:"newest"` // no Entry up to Seq is later
	Credentials []credentialMark   `json:"credentials"`
	Tokens      []tokenMark        `json:"tokens"`
	Leases      []leaseMark        `json:"leases"`
	Ended       []endedLease       `json:"ended"`
	Removed     []string           `json:"removed"`
	Destroy     []destroyMark      `json:"destroy"`
	Policy      policyMark         `json:"policy"`
	TokensTo    uint64             `json:"tokens_to,omitempty"`
	Cut         []cutMark          `json:"cut,omitempty"`
	Frozen      *Frozen            `json:"frozen,omitempty"`
	Approvals   []*approval        `json:"approvals,omitempty"`
	Denials     map[string]denials `json:"denials,omitempty"` // by rate key
	Books       books              `json:"books"`
}

type credentialMark struct {
	ID     string                  `json:"id"`
	Name   string                  `json:"name"`
	Ref    store.RecordRef         `json:"ref"`
	Values map[int]store.RecordRef `json:"values"`
}

type tokenMark struct {
	ID       string          `json:"id"`
	Ref      store.RecordRef `json:"ref"`
	Grants   int             `json:"grants,omitempty"`
	LastUsed time.Time       `json:"last_used,omitzero"`
}

// cutMark is a cutoff with the leases whose terminal Entry is missing.
type cutMark struct {
	cutoff
	Holder identity.Holder `json:"holder"`
	Leases []string        `json:"leases"`
}

type leaseMark struct {
	ID           string             `json:"id"`
	CredentialID string             `json:"credential_id"`
	Owner        identity.Principal `json:"owner"`
	Session      string             `json:"session,omitempty"`
	Version      int                `json:"version"`
	Delivery     policy.Delivery    `json:"delivery"`
	Purpose      string             `json:"purpose,omitempty"`
	Issued       time.Time          `json:"issued"`
	Expires      time.Time          `json:"expires"`
	MaxAt        time.Time          `json:"max_at"`
	Keep         bool               `json:"keep,omitempty"`
	OrphanEnd    time.Time          `json:"orphan_end,omitzero"`
	UID          string             `json:"uid,omitempty"`
	Handle       *[32]byte          `json:"handle,omitempty"`
	ApprovedBy   policy.Approval    `json:"approved_by,omitempty"`
	ApprovedTo   time.Time          `json:"approved_to,omitzero"`
}

type destroyMark struct {
	CredentialID string `json:"credential_id"`
	Version      int    `json:"version"`
	Name         string `json:"name"`
}

func (ix *index) snapshot() ([]byte, error) {
	s := snapshot{Seq: ix.seq, Newest: ix.newest, Policy: ix.policy, Ended: ix.ended.all(), Removed: slices.Sorted(maps.Keys(ix.removed)), Frozen: ix.frozen,
		TokensTo: ix.tokensTo, Approvals: slices.Collect(maps.Values(ix.asked)), Denials: ix.denials, Books: ix.books}
	for _, c := range ix.creds {
		s.Credentials = append(s.Credentials, credentialMark{c.rec.ID, c.rec.Name, c.ref, c.values})
	}
	for id, t := range ix.tokens {
		s.Tokens = append(s.Tokens, tokenMark{id, t.ref, t.grants, t.lastUsed})
	}
	for _, l := range ix.leases {
		s.Leases = append(s.Leases, leaseMark{l.id, l.cred.rec.ID, l.owner, l.session, l.version, l.delivery,
			l.purpose, l.issued, l.expires, l.maxAt, l.keep, l.orphanEnd, l.uid, l.handle, l.approvedBy, l.approvedTo})
	}
	for _, h := range ix.cut {
		m := cutMark{cutoff: *h.cut, Holder: h.of}
		for _, l := range h.leases {
			m.Leases = append(m.Leases, l.id)
		}
		s.Cut = append(s.Cut, m)
	}
	for ref, name := range ix.destroy {
		s.Destroy = append(s.Destroy, destroyMark{ref.CredentialID, ref.Version, name})
	}
	return json.Marshal(s)
}

func (ix *index) restore(data []byte) error {
	var s snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("reading the snapshot: %w", err)
	}
	ix.seq, ix.newest, ix.policy, ix.frozen, ix.books = s.Seq, s.Newest, s.Policy, s.Frozen, s.Books
	ix.tokensTo = s.TokensTo
	for _, m := range s.Credentials {
		if ix.byID[m.ID] != nil || ix.creds[m.Name] != nil {
			return fmt.Errorf("the snapshot has credential %s twice", m.ID)
		}
		c := &credential{ref: m.Ref, values: m.Values}
		if c.values == nil {
			c.values = map[int]store.RecordRef{}
		}
		c.rec.ID, c.rec.Name = m.ID, m.Name
		ix.addCredential(c)
	}
	for _, m := range s.Tokens {
		t := &token{ref: m.Ref, grants: m.Grants, lastUsed: m.LastUsed}
		t.rec.ID = m.ID
		ix.tokens[m.ID] = t
	}
	cut := map[string]*holding{}
	for _, m := range s.Cut {
		h := &holding{of: m.Holder, cut: &m.cutoff}
		for _, id := range m.Leases {
			cut[id] = h
		}
		ix.cut = append(ix.cut, h)
	}
	for _, m := range s.Leases {
		c := ix.byID[m.CredentialID]
		if c == nil {
			return fmt.Errorf("the snapshot's lease %s is of a credential that is not in it", m.ID)
		}
		if ix.leases[m.ID] != nil {
			return fmt.Errorf("the snapshot has lease %s twice", m.ID)
		}
		held := cut[m.ID]
		if held == nil {
			held = ix.holdingOf(m.Owner.Holder())
		}
		ix.addLease(&lease{id: m.ID, owner: m.Owner, session: m.Session, cred: c, version: m.Version,
			delivery: m.Delivery, purpose: m.Purpose, issued: m.Issued, expires: m.Expires, maxAt: m.MaxAt,
			keep: m.Keep, orphanEnd: m.OrphanEnd, uid: m.UID, handle: m.Handle, approvedBy: m.ApprovedBy, approvedTo: m.ApprovedTo, durable: true}, held)
	}
	ix.cut = slices.DeleteFunc(ix.cut, func(h *holding) bool { return len(h.leases) == 0 }) // nothing to write for it
	for _, a := range s.Approvals {
		if a == nil || ix.asked[a.ID] != nil {
			return fmt.Errorf("the snapshot has an approval twice, or none where one should be")
		}
		ix.asked[a.ID] = a
		if !a.Over.IsZero() {
			ix.answered = append(ix.answered, a)
		}
	}
	slices.SortFunc(ix.answered, func(x, y *approval) int { return x.Over.Compare(y.Over) })
	maps.Copy(ix.denials, s.Denials)
	for _, e := range s.Ended {
		ix.ended.add(e)
	}
	for _, name := range s.Removed {
		ix.removed[name] = true
	}
	for _, d := range s.Destroy {
		ix.destroy[store.ValueRef{CredentialID: d.CredentialID, Version: d.Version}] = d.Name
	}
	return nil
}
