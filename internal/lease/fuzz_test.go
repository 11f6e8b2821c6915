package lease

import (
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
)

// Whatever restores as a snapshot can be written as one that restores, and what it cut off can be written down.
func FuzzSnapshot(f *testing.F) {
	p := identity.Principal{Type: identity.Agent, Name: "ci", Proof: identity.Token, By: "token:tk_1"}
	at := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	ix := newIndex()
	c := &credential{leases: map[*lease]struct{}{}}
	c.rec.ID, c.rec.Name = "cr_1", "openai"
	ix.addCredential(c)
	ix.tokens["tk_1"] = &token{grants: 3, lastUsed: at, rec: tokenRecord{ID: "tk_1"}}
	ix.frozen = &Frozen{Since: at, Reason: "why"}
	for _, id := range []string{"ls_1", "ls_2"} {
		ix.addLease(&lease{id: id, owner: p, cred: c, version: 1, delivery: policy.Value, issued: at, expires: at.Add(time.Hour), maxAt: at.Add(time.Hour)},
			ix.holdingOf(p.Holder()))
	}
	held := ix.holdingOf(p.Holder())
	held.cut = &cutoff{At: at, By: p, Reason: "why"}
	delete(ix.holders, p.Holder())
	ix.cut = append(ix.cut, held)
	seed, err := ix.snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"cut":[{"leases":["ls_1","ls_1"]},{"leases":null}],"tokens":[{"id":""}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix := newIndex()
		if ix.restore(b) != nil {
			return
		}
		again, err := ix.snapshot()
		if err != nil {
			return // a time that JSON can't write
		}
		if err := newIndex().restore(again); err != nil {
			t.Fatal(err)
		}
		for _, h := range ix.cut {
			if len(h.leases) == 0 {
				t.Fatal("a cutoff with nothing to write down stays for ever")
			}
			for l := range h.leases {
				ix.endLease(l, Revoked, h.cut.At)
			}
		}
	})
}
