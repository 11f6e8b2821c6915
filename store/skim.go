package store

import (
	"bytes"
	"crypto/sha256"
)

// skim reads of an Entry what verifying needs — Seq, Prev and Hash, into e — and finds every fault of its encoding that
// entry finds, without making anything of the rest: that is most of the work.
func (d *decoder) skim(b []byte, e *Entry) error {
	d.b, d.bad = b, false
	if f := d.take(1); d.bad || f[0] != entryFormat {
		return errEncoding
	}
	e.Hash = sha256.Sum256(b)
	e.Seq = d.u64()
	copy(e.Prev[:], d.take(len(e.Prev)))
	d.take(len(e.Salt) + 8)
	for range 1 + 7 + 2 { // event, identity, credential
		d.bytes()
	}
	d.small()
	d.bytes()
	d.bytes()
	var last []byte
	for i := range d.count(2) {
		field := d.bytes()
		d.bytes()
		if i > 0 && bytes.Compare(field, last) <= 0 {
			d.bad = true
		}
		last = field
	}
	for range d.count(4 + 32) {
		d.bytes()
		d.bytes()
		d.small()
		d.uvarint()
		d.take(len(Digest{}))
	}
	if d.bad || len(d.b) != 0 {
		return errEncoding
	}
	return nil
}
