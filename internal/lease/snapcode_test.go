package lease

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// What a snapshot keeps of each thing of the index, and what it need not: that is read or counted anew. A field that
// stands in neither list is one that somebody added and a restart would forget.
var snapshotKeeps = []struct {
	of         any
	kept, anew string
}{
	{index{}, "creds byID leases handles holders cut ended tokens removed destroy policy frozen tokensTo asked denials answered seq newest books", "names due secrets changed"},
	{credential{}, "rec ref values leases", "inUse plan damaged hash"}, // of rec the id and name; the record itself is in the store
	{lease{}, "id owner session cred version delivery purpose uid handle issued expires maxAt keep orphanEnd approvedBy approvedTo", "durable held at place"},
	{token{}, "rec ref grants lastUsed", "damaged disabled"},
	{endedLease{}, "ID Owner State Issued At", ""},
	{cutoff{}, "At By Reason", ""},
	{holding{}, "of leases cut", "counts"},
	{identity.Principal{}, "Type Name Proof By", ""},
	{store.RecordRef{}, "Kind ID Version Seq Digest", ""},
}

func TestASnapshotForgetsNoField(t *testing.T) {
	for _, s := range snapshotKeeps {
		var have []string
		typ := reflect.TypeOf(s.of)
		for i := range typ.NumField() {
			have = append(have, typ.Field(i).Name)
		}
		want := append(strings.Fields(s.kept), strings.Fields(s.anew)...)
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%v has %v, and known are %v", typ, have, want)
		}
	}
}

// Every field that is kept comes back as it was, each with a value of its own.
func TestASnapshotKeepsEachField(t *testing.T) {
	at := time.Date(2026, 11, 23, 9, 0, 0, 123456789, time.UTC)
	next := func() time.Time { at = at.Add(time.Hour + time.Nanosecond); return at }
	ref := func(k store.Kind, id string, version int) store.RecordRef {
		return store.RecordRef{Kind: k, ID: id, Version: version, Seq: 1<<40 + uint64(version), Digest: store.Digest{byte(version), 31: 9}}
	}
	ix := lifted()
	c := ix.byID["cr_1"]
	c.ref = ref(store.KindCredential, "cr_1", 0)
	c.values.put(ref(store.KindValue, "cr_1", 7))
	p := identity.Principal{Type: identity.Human, Name: "böb\x00", Proof: identity.OIDC, By: "oidc:https://x#y"}
	l := &lease{id: "ls_all", owner: p, session: "ses_9", cred: c, version: 7, delivery: policy.Proxy, purpose: "why\n\u2028", uid: "1000", handle: &[32]byte{1, 31: 2},
		issued: next(), expires: next(), maxAt: next(), keep: true, orphanEnd: next(), approvedBy: policy.Operator, approvedTo: next(), durable: true}
	ix.addLease(l, ix.holdingOf(p.Holder()))
	ix.tokens["tk_1"] = &token{ref: ref(store.KindToken, "tk_1", 3), grants: 5, lastUsed: next()}
	ix.tokens["tk_1"].rec.ID = "tk_1"
	ix.tokensTo = 77
	ix.ended.add(endedLease{ID: "ls_x", Owner: p, State: Revoked, Issued: next(), At: next()})
	ix.policy = policyMark{Hash: "h", File: "f"}
	ix.denials["k"] = denials{InARow: 2, Last: next(), Operator: true}
	ix.books = books{Exported: ExportMark{Seq: 3, Hash: store.Digest{5}, Time: next(), By: "b", File: "f"}, Day: 20780, Spent: map[string]int64{"uid:1": 1 << 40}}
	a := &approval{Question: Question{Identity: p, Credential: "db", Purpose: "x", TTL: time.Minute}, ID: "ap_1", Shown: "s", Capped: true, State: Denied,
		By: policy.Operator, Reason: "no", Asked: next(), Expires: next(), Over: next()}
	ix.asked[a.ID], ix.answered = a, append(ix.answered, a)
	data, err := ix.snapshot()
	if err != nil {
		t.Fatal(err)
	}
	back := newIndex()
	if err := back.restore(data); err != nil {
		t.Fatal(err)
	}
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, was %+v", what, got, want)
		}
	}
	plain := func(l *lease) lease {
		out := *l
		out.cred, out.held, out.at, out.place, out.durable = nil, nil, 0, [setKinds]int{}, true
		return out
	}
	same("how many leases", len(back.leases), len(ix.leases))
	for id, l := range ix.leases {
		b := back.leases[id]
		same(id, plain(b), plain(l))
		same("the holding of "+id, []any{b.held.of, b.held.cut, len(b.held.leases)}, []any{l.held.of, l.held.cut, len(l.held.leases)})
		if b.cred != back.byID[l.cred.rec.ID] || b.handle != nil && back.handles[*b.handle] != b {
			t.Errorf("%s hangs elsewhere", id)
		}
	}
	b := back.byID["cr_1"]
	same("the credential", []any{b.rec.ID, b.rec.Name, b.ref, b.values, b.used(1), b.used(7), len(b.leases)},
		[]any{c.rec.ID, c.rec.Name, c.ref, c.values, c.used(1), c.used(7), len(c.leases)})
	same("tokens", back.tokens, ix.tokens)
	same("ended", slices.Collect(back.ended.all()), slices.Collect(ix.ended.all()))
	same("asked", back.asked, ix.asked)
	same("answered", back.answered, ix.answered)
	same("the rest", []any{back.removed, back.destroy, back.policy, back.frozen, back.tokensTo, back.denials, back.seq, back.newest, back.books},
		[]any{ix.removed, ix.destroy, ix.policy, ix.frozen, ix.tokensTo, ix.denials, ix.seq, ix.newest, ix.books})
}

// Whatever a snapshot's bytes claim, reading them takes memory in proportion to how many they are.
func TestASnapshotThatClaimsMuchTakesLittleMemory(t *testing.T) {
	sound, err := lifted().snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for at := range sound {
		bad := slices.Clone(sound[:at])
		bad = append(bad, 0xff, 0xff, 0xff, 0xff, 7)
		bad = append(bad, sound[min(at+1, len(sound)):]...)
		if n := testing.AllocsPerRun(1, func() { _ = newIndex().restore(bad) }); n > 1000 {
			t.Fatalf("byte %d: %v allocations", at, n)
		}
	}
}
