package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"
)

// The canonical encoding of an Entry, over which Hash is the SHA-256. n, k and v are uvarints; text is its length as
// a uvarint and then its bytes; other numbers are big-endian.
//
//	1 · seq u64 · prev [32] · salt [16] · time i64 (ns since 1970, UTC)
//	text: event, identity type, name, proof, by, session, client name, client version,
//	      credential, credential id
//	v version · text: lease id, purpose
//	n · n × (text field, text value), by field          details
//	n · n × (text kind, text id, v version, v seq, digest [32])   records
//
// It is what the sealed groups hold, too: the hash is not stored but computed, so reading is checking.
const entryFormat = 1

const headLen = 1 + 8 + 32 // what the committer puts in front of an encodeBody

// encodeBody appends all that is known when an Entry is submitted: from the salt to the details. It runs on the
// caller's time, not on the committer's.
func encodeBody(b []byte, e *Entry) []byte {
	b = append(b, e.Salt[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixNano()))
	b = appendText(b, string(e.Event))
	b = appendText(b, e.Identity.Type)
	b = appendText(b, e.Identity.Name)
	b = appendText(b, e.Identity.Proof)
	b = appendText(b, e.Identity.By)
	b = appendText(b, e.Identity.Session)
	b = appendText(b, e.Identity.ClientName)
	b = appendText(b, e.Identity.ClientVersion)
	b = appendText(b, e.Credential)
	b = appendText(b, e.CredentialID)
	b = binary.AppendUvarint(b, uint64(e.Version))
	b = appendText(b, e.LeaseID)
	b = appendText(b, e.Purpose)
	b = binary.AppendUvarint(b, uint64(len(e.Details)))
	for i := range e.Details {
		b = appendText(b, e.Details[i].Field)
		b = appendText(b, e.Details[i].Value)
	}
	return b
}

// appendEntry appends the whole encoding of e, whose body was encoded before.
func appendEntry(b []byte, e *Entry, body []byte) []byte {
	b = append(b, entryFormat)
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = append(b, e.Prev[:]...)
	b = append(b, body...)
	b = binary.AppendUvarint(b, uint64(len(e.Records)))
	for i := range e.Records {
		r := &e.Records[i]
		b = appendText(b, string(r.Kind))
		b = appendText(b, r.ID)
		b = binary.AppendUvarint(b, uint64(r.Version))
		b = binary.AppendUvarint(b, r.Seq)
		b = append(b, r.Digest[:]...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

var errEncoding = errors.New("an event is not encoded as it should be")

// decoder reads Entries. It remembers the texts that come again and again, so that a long replay makes few strings.
type decoder struct {
	seen map[string]string
	b    []byte
	bad  bool
}

const maxSeen = 4096

// entry decodes one encoding and computes its hash.
func (d *decoder) entry(b []byte) (*Entry, error) {
	d.b, d.bad = b, false
	if f := d.take(1); d.bad || f[0] != entryFormat {
		return nil, errEncoding
	}
	e := &Entry{Hash: sha256.Sum256(b)}
	e.Seq = d.u64()
	copy(e.Prev[:], d.take(len(e.Prev)))
	copy(e.Salt[:], d.take(len(e.Salt)))
	e.Time = time.Unix(0, int64(d.u64())).UTC()
	e.Event = Event(d.known())
	e.Identity = EntryIdentity{Type: d.known(), Name: d.known(), Proof: d.known(), By: d.known(), Session: d.known(),
		ClientName: d.known(), ClientVersion: d.known()}
	e.Credential, e.CredentialID = d.known(), d.known()
	e.Version = d.small()
	e.LeaseID, e.Purpose = d.text(), d.known()
	e.Details = d.details()
	e.Records = d.records()
	if d.bad || len(d.b) != 0 {
		return nil, errEncoding
	}
	return e, nil
}

func (d *decoder) details() Details {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	all := make(Details, n)
	for i := range all {
		all[i] = Detail{d.known(), d.text()}
	}
	if !all.inOrder() {
		d.bad = true // not the one encoding
	}
	return all
}

func (d *decoder) records() []RecordRef {
	n := d.count(4 + 32)
	if n == 0 {
		return nil
	}
	refs := make([]RecordRef, n)
	for i := range refs {
		r := &refs[i]
		r.Kind, r.ID = Kind(d.known()), d.known()
		r.Version, r.Seq = d.small(), d.uvarint()
		copy(r.Digest[:], d.take(len(r.Digest)))
	}
	return refs
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.b) {
		d.bad = true
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // a trailing zero byte: a longer form of the same number
		d.bad = true
		return 0
	}
	d.take(n)
	return v
}

func (d *decoder) small() int {
	v := d.uvarint()
	if v > 1<<31-1 {
		d.bad = true
		return 0
	}
	return int(v)
}

// count reads how many things follow, each of at least min bytes: more than there is room for is not believed.
func (d *decoder) count(min int) int {
	n := d.small()
	if n > len(d.b)/min {
		d.bad = true
		return 0
	}
	return n
}

func (d *decoder) bytes() []byte { return d.take(d.small()) }

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) known() string {
	b := d.bytes()
	if len(b) == 0 {
		return ""
	}
	if s, ok := d.seen[string(b)]; ok {
		return s
	}
	if d.seen == nil || len(d.seen) >= maxSeen {
		d.seen = make(map[string]string, 64)
	}
	s := string(b)
	d.seen[s] = s
	return s
}
