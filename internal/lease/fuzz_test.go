package lease

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// lifted is an index that has one of each.
func lifted() *index {
	ix := newIndex()
	c := &credential{values: valueRefs{{Kind: store.KindValue, ID: "cr_1", Version: 1, Seq: 2}}}
	c.rec.ID, c.rec.Name = "cr_1", "db"
	ix.addCredential(c)
	p := identity.Principal{Type: identity.Agent, Name: "alice", Proof: identity.Token, By: "token:tk_1"}
	at := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	ix.addLease(&lease{id: "ls_1", owner: p, session: "ses_1", cred: c, version: 1, delivery: policy.Value, issued: at, expires: at.Add(time.Hour), maxAt: at.Add(time.Hour)}, ix.holdingOf(p.Holder()))
	cut := &holding{of: p.Holder(), cut: &cutoff{At: at, By: p, Reason: "why"}}
	ix.addLease(&lease{id: "ls_2", owner: p, cred: c, version: 1, delivery: policy.Value, issued: at, expires: at.Add(time.Hour), maxAt: at.Add(time.Hour)}, cut)
	ix.cut, ix.frozen = append(ix.cut, cut), &Frozen{Since: at, Reason: "why"}
	ix.ended.add(endedLease{ID: "ls_0", Owner: p, State: Released, Issued: at, At: at})
	ix.tokens["tk_1"] = &token{}
	ix.removed["gone"] = true
	ix.destroy[store.ValueRef{CredentialID: "cr_1", Version: 1}] = "db"
	ix.seq, ix.newest = 9, at
	return ix
}

// What a snapshot's bytes restore to can be asked anything and written again, and what is written restores to the same;
// bytes that are no snapshot are an error.
func FuzzRestore(f *testing.F) {
	sound, err := lifted().snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Add(bytes.Replace(sound, []byte("ls_2"), []byte("ls_1"), 1)) // one lease in two places
	f.Add(bytes.ReplaceAll(sound, []byte("ls_2"), []byte("ls_1")))
	f.Add(bytes.Replace(sound, []byte("token"), []byte("nokey"), 1)) // a proof that there is not
	f.Add(sound[:len(sound)/2])
	f.Add(append(slices.Clone(sound), 0))
	f.Add([]byte{snapshotFormat, 2, '{', '}', 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 7})
	f.Add([]byte{snapshotFormat, 4, 'n', 'u', 'l', 'l', 0, 0, 0, 0, 0})
	f.Add([]byte(`{"leases":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ix := newIndex()
		if ix.restore(data) != nil {
			return
		}
		now := time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC)
		for _, l := range ix.leases {
			if l.live(now) && (l.expires.IsZero() || !now.Before(l.expires)) {
				t.Fatalf("live for ever: %+v", l)
			}
		}
		for _, h := range ix.cut {
			if len(h.leases) == 0 {
				t.Fatal("a cutoff with nothing to write down stays for ever")
			}
		}
		for _, c := range ix.creds {
			byExpiry(c.leases, now)
			_ = c.view()
		}
		if len(ix.due) != len(ix.leases) {
			t.Fatalf("%d leases, %d deadlines", len(ix.leases), len(ix.due))
		}
		written, err := ix.snapshot()
		if err != nil {
			return // a time that JSON can't have
		}
		again := newIndex()
		if err := again.restore(written); err != nil {
			t.Fatalf("what was written does not restore: %v: %s", err, written)
		}
		if len(again.leases) != len(ix.leases) || len(again.creds) != len(ix.creds) || len(again.tokens) != len(ix.tokens) || again.seq != ix.seq {
			t.Fatalf("it restores to something else: %s", written)
		}
		for len(again.due) > 0 { // and every lease can end
			again.endLease(again.due.next(), Expired, now)
		}
		if len(again.leases) != 0 {
			t.Fatalf("%d leases never end", len(again.leases))
		}
	})
}

// No text but a token's own is taken for it.
func FuzzTokenText(f *testing.F) {
	w := newWorld(f)
	ctx := context.Background()
	good, info, err := w.CreateToken(ctx, operator, TokenSpec{Type: identity.Agent, Identity: "alice"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", uint8(0), uint8(0))
	f.Add("a", uint8(5), uint8(1))
	f.Add("KL_", uint8(0), uint8(3))
	f.Add("\x00", uint8(62), uint8(0))
	f.Fuzz(func(t *testing.T, with string, at, cut uint8) {
		from := int(at) % (len(good) + 1)
		for _, text := range []string{with, good[:from] + with + good[min(len(good), from+int(cut)):]} {
			p, err := w.Authenticate(ctx, text, "192.0.2.1")
			if (err == nil) != (text == good) || err == nil && p.By != "token:"+info.ID || err != nil && p != (identity.Principal{}) {
				t.Errorf("%q: %+v %v", text, p, err)
			}
		}
	})
}
