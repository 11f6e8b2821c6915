package lease

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// How a snapshot is encoded. v is a uvarint, text its length as a v and then its bytes, time 8 bytes big-endian of
// nanoseconds since 1970 with 0 for the zero time, ref is text kind · text id · v version · v seq · digest [32].
//
//	2                                                                   the format
//	text                                                                JSON: all that is few, see snapshot
//	v n · n × (text type, name, proof, by)                              owners: whoever holds or held something
//	v n · n × (text id, name · ref · v n · n × ref)                     credentials, with the refs of their values
//	v n · n × (text id · ref · v grants · time last used)               tokens
//	v n · n × (text id · v credential · v owner · text session ·        leases; credential and owner are places in the
//	           v version · text delivery, purpose, uid, approved by ·   lists above
//	           time issued, expires, max, orphan end, approved to ·
//	           marks u8 (1 keep, 2 has a handle) · handle [32])
//	v n · n × (text id · v owner · text state · time issued, at)        ended leases, the oldest first
//
// A hundred thousand leases are 15 MB and take a tenth of a second either way; as JSON they took more than one.
const snapshotFormat = 2

const (
	snapKeeps = 1 << iota
	snapHandle
)

var errSnapshot = errors.New("the snapshot is not encoded as it should be")

// encode writes what of ix is many behind few.
func (ix *index) encode(few snapshot) ([]byte, error) {
	head, err := json.Marshal(few)
	if err != nil {
		return nil, err
	}
	w := snapWriter{b: make([]byte, 0, len(head)+256*len(ix.leases)+128*len(ix.ended.ring)+256*len(ix.creds)+4096)}
	w.b = append(w.b, snapshotFormat)
	w.text(string(head))
	owners := map[identity.Principal]int{}
	var names []identity.Principal
	know := func(p identity.Principal) {
		if _, known := owners[p]; !known {
			owners[p] = len(names)
			names = append(names, p)
		}
	}
	for _, l := range ix.leases {
		know(l.owner)
	}
	for e := range ix.ended.all() {
		know(e.Owner)
	}
	w.num(len(names))
	for _, p := range names {
		w.text(string(p.Type))
		w.text(p.Name)
		w.text(p.Proof.String())
		w.text(p.By)
	}
	places := make(map[*credential]int, len(ix.creds))
	w.num(len(ix.creds))
	for _, c := range ix.creds {
		places[c] = len(places)
		w.text(c.rec.ID)
		w.text(c.rec.Name)
		w.ref(c.ref)
		w.num(len(c.values))
		for _, ref := range c.values {
			w.ref(ref)
		}
	}
	w.num(len(ix.tokens))
	for id, t := range ix.tokens {
		w.text(id)
		w.ref(t.ref)
		w.num(t.grants)
		w.time(t.lastUsed)
	}
	w.num(len(ix.leases))
	for _, l := range ix.leases {
		at, known := places[l.cred]
		if !known {
			return nil, fmt.Errorf("lease %s is of a credential that is not there", l.id)
		}
		w.lease(l, at, owners[l.owner])
	}
	w.num(len(ix.ended.ring))
	for e := range ix.ended.all() {
		w.text(e.ID)
		w.num(owners[e.Owner])
		w.text(string(e.State))
		w.time(e.Issued)
		w.time(e.At)
	}
	return w.b, nil
}

type snapWriter struct{ b []byte }

func (w *snapWriter) num(n int) { w.b = binary.AppendUvarint(w.b, uint64(n)) }

func (w *snapWriter) text(s string) {
	w.num(len(s))
	w.b = append(w.b, s...)
}

func (w *snapWriter) time(t time.Time) {
	n := int64(0)
	if !t.IsZero() {
		n = t.UnixNano()
	}
	w.b = binary.BigEndian.AppendUint64(w.b, uint64(n))
}

func (w *snapWriter) ref(r store.RecordRef) {
	w.text(string(r.Kind))
	w.text(r.ID)
	w.num(r.Version)
	w.b = binary.AppendUvarint(w.b, r.Seq)
	w.b = append(w.b, r.Digest[:]...)
}

func (w *snapWriter) lease(l *lease, credential, owner int) {
	w.text(l.id)
	w.num(credential)
	w.num(owner)
	w.text(l.session)
	w.num(l.version)
	w.text(string(l.delivery))
	w.text(l.purpose)
	w.text(l.uid)
	w.text(string(l.approvedBy))
	for _, t := range [...]time.Time{l.issued, l.expires, l.maxAt, l.orphanEnd, l.approvedTo} {
		w.time(t)
	}
	marks := byte(0)
	if l.keep {
		marks |= snapKeeps
	}
	if l.handle != nil {
		marks |= snapHandle
	}
	w.b = append(w.b, marks)
	if l.handle != nil {
		w.b = append(w.b, l.handle[:]...)
	}
}

// snapReader reads what a snapWriter wrote. It believes no length that there is no room for, and after the first fault
// reads nothing but zeros. Texts that come again and again are kept once.
type snapReader struct {
	b    []byte
	bad  bool
	seen map[string]string
}

func (r *snapReader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *snapReader) uint() uint64 {
	n, used := binary.Uvarint(r.b)
	if used <= 0 {
		r.bad = true
		return 0
	}
	r.take(used)
	return n
}

func (r *snapReader) num() int {
	n := r.uint()
	if n > 1<<31-1 {
		r.bad = true
		return 0
	}
	return int(n)
}

// count reads how many things follow, each of at least min bytes.
func (r *snapReader) count(min int) int {
	n := r.num()
	if r.bad || n > len(r.b)/min {
		r.bad = true
		return 0
	}
	return n
}

// place reads a place in a list of n.
func (r *snapReader) place(n int) int {
	at := r.num()
	if at >= n {
		r.bad = true
		return 0
	}
	return at
}

func (r *snapReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *snapReader) text() string { return string(r.take(r.num())) }

// known is a text that others may be equal to.
func (r *snapReader) known() string {
	b := r.take(r.num())
	if len(b) == 0 {
		return ""
	}
	if s, ok := r.seen[string(b)]; ok {
		return s
	}
	if r.seen == nil || len(r.seen) > 4096 {
		r.seen = map[string]string{}
	}
	s := string(b)
	r.seen[s] = s
	return s
}

func (r *snapReader) time() time.Time {
	b := r.take(8)
	if b == nil {
		return time.Time{}
	}
	n := int64(binary.BigEndian.Uint64(b))
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// ref reads a reference. As a rule its ID is id, and then the same string.
func (r *snapReader) ref(id string) (ref store.RecordRef) {
	ref.Kind, ref.ID = store.Kind(r.known()), id
	if b := r.take(r.num()); string(b) != id {
		ref.ID = string(b)
	}
	ref.Version, ref.Seq = r.num(), r.uint()
	copy(ref.Digest[:], r.take(len(ref.Digest)))
	return ref
}

func (r *snapReader) owners() []identity.Principal {
	all := make([]identity.Principal, r.count(4))
	for i := range all {
		p := &all[i]
		p.Type, p.Name = identity.Type(r.known()), r.text()
		proof, err := identity.ParseProof(r.known())
		r.bad = r.bad || err != nil
		p.Proof, p.By = proof, r.text()
	}
	return all
}

func (r *snapReader) lease(creds []*credential, owners []identity.Principal) *lease {
	l := &lease{id: r.text(), durable: true}
	at, owner := r.place(len(creds)), r.place(len(owners))
	if r.bad {
		return nil
	}
	l.cred, l.owner = creds[at], owners[owner]
	l.session, l.version = r.known(), r.num()
	l.delivery, l.purpose, l.uid, l.approvedBy = policy.Delivery(r.known()), r.known(), r.known(), policy.Approval(r.known())
	l.issued, l.expires, l.maxAt, l.orphanEnd, l.approvedTo = r.time(), r.time(), r.time(), r.time(), r.time()
	marks := r.byte()
	l.keep = marks&snapKeeps != 0
	if marks&snapHandle != 0 {
		l.handle = new([32]byte)
		copy(l.handle[:], r.take(32))
	}
	r.bad = r.bad || marks&^(snapKeeps|snapHandle) != 0
	return l
}

func (r *snapReader) ended(owners []identity.Principal) (e endedLease) {
	e.ID = r.text()
	owner := r.place(len(owners))
	if r.bad {
		return e
	}
	e.Owner, e.State = owners[owner], State(r.known())
	e.Issued, e.At = r.time(), r.time()
	return e
}
