package lease

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// snapshot is what there is few of in the index as it is sealed in the store, so that a start replays only what came
// after; snapcode.go has the rest. Records of credentials and tokens are not in it: only where they are and what they
// must hash to.
type snapshot struct {
	Seq       uint64             `json:"seq"`
	Newest    time.Time          `json:"newest"` // no Entry up to Seq is later
	Removed   []string           `json:"removed"`
	Destroy   []destroyMark      `json:"destroy"`
	Policy    policyMark         `json:"policy"`
	TokensTo  uint64             `json:"tokens_to,omitempty"`
	Cut       []cutMark          `json:"cut,omitempty"`
	Frozen    *Frozen            `json:"frozen,omitempty"`
	Approvals []*approval        `json:"approvals,omitempty"`
	Denials   map[string]denials `json:"denials,omitempty"` // by rate key
	Books     books              `json:"books"`
}

// cutMark is a cutoff with the leases whose terminal Entry is missing.
type cutMark struct {
	cutoff
	Holder identity.Holder `json:"holder"`
	Leases []string        `json:"leases"`
}

type destroyMark struct {
	CredentialID string `json:"credential_id"`
	Version      int    `json:"version"`
	Name         string `json:"name"`
}

func (ix *index) snapshot() ([]byte, error) {
	s := snapshot{Seq: ix.seq, Newest: ix.newest, Policy: ix.policy, Removed: slices.Sorted(maps.Keys(ix.removed)), Frozen: ix.frozen,
		TokensTo: ix.tokensTo, Approvals: slices.Collect(maps.Values(ix.asked)), Denials: ix.denials, Books: ix.books}
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
	return ix.encode(s)
}

func (ix *index) restore(data []byte) error {
	r := snapReader{b: data}
	if r.byte() != snapshotFormat {
		return errSnapshot
	}
	var s snapshot
	if head := r.take(r.num()); r.bad {
		return errSnapshot
	} else if err := json.Unmarshal(head, &s); err != nil {
		return fmt.Errorf("reading the snapshot: %w", err)
	}
	ix.seq, ix.newest, ix.policy, ix.frozen, ix.books = s.Seq, s.Newest, s.Policy, s.Frozen, s.Books
	ix.tokensTo = s.TokensTo
	owners := r.owners()
	creds := make([]*credential, r.count(4+32))
	for i := range creds {
		c := &credential{}
		c.rec.ID, c.rec.Name = r.text(), r.text()
		c.ref = r.ref(c.rec.ID)
		for range r.count(4 + 32) {
			c.values.put(r.ref(c.rec.ID))
		}
		if r.bad {
			return errSnapshot
		}
		if ix.byID[c.rec.ID] != nil || ix.creds[c.rec.Name] != nil {
			return fmt.Errorf("the snapshot has credential %s twice", c.rec.ID)
		}
		ix.addCredential(c)
		creds[i] = c
	}
	for range r.count(4 + 32) {
		t := &token{}
		t.rec.ID = r.text()
		t.ref, t.grants, t.lastUsed = r.ref(t.rec.ID), r.num(), r.time()
		ix.tokens[t.rec.ID] = t
	}
	cut := map[string]*holding{}
	for _, m := range s.Cut {
		h := &holding{of: m.Holder, cut: &m.cutoff}
		for _, id := range m.Leases {
			cut[id] = h
		}
		ix.cut = append(ix.cut, h)
	}
	n := r.count(50)
	ix.leases = make(map[string]*lease, n)
	for i := range n {
		l := r.lease(creds, owners)
		if r.bad {
			return errSnapshot
		}
		held := cut[l.id]
		if held == nil {
			held = ix.holdingOf(l.owner.Holder())
		}
		if ix.putLease(l, held); len(ix.leases) != i+1 {
			return fmt.Errorf("the snapshot has lease %s twice", l.id)
		}
	}
	ix.due = deadlinesOf(ix.leases)
	for range r.count(19) {
		ix.ended.add(r.ended(owners))
	}
	if r.bad || len(r.b) != 0 {
		return errSnapshot
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
	for _, name := range s.Removed {
		ix.removed[name] = true
	}
	for _, d := range s.Destroy {
		ix.destroy[store.ValueRef{CredentialID: d.CredentialID, Version: d.Version}] = d.Name
	}
	return nil
}
