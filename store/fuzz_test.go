package store

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"testing"
	"time"
)

func sample() (*Entry, []byte) {
	c := leaseCreated(1)
	e := &c.Entry
	e.Seq, e.Time, e.Salt, e.Prev = 5, day, Salt{1}, Digest{2}
	e.Records = []RecordRef{{KindCredential, "cr_1", 0, 5, Digest{3}}, {KindValue, "cr_1", 2, 5, Digest{4}}}
	encoded := appendEntry(nil, e, encodeBody(nil, e))
	e.Hash = sha256.Sum256(encoded)
	return e, encoded
}

func TestEncodingComesBack(t *testing.T) {
	e, encoded := sample()
	var d decoder
	for range 2 { // the second time from remembered texts
		back, err := d.entry(encoded)
		if err != nil || !reflect.DeepEqual(e, back) {
			t.Fatalf("%v\n%+v\n%+v", err, e, back)
		}
	}
}

// The encoding on disk and under the hash is a contract: who holds an exported trail recomputes it.
func TestHashOfAnEntryDoesNotChange(t *testing.T) {
	e, _ := sample()
	const want = "80040b9c728da8c3ff20cff03d0e8c97b82c7c05436da44b254f23edc7879725"
	if got, _ := e.Hash.MarshalText(); string(got) != want {
		t.Errorf("got %s", got)
	}
}

// Whatever decodes has exactly one encoding: the bytes it came from.
func FuzzEntry(f *testing.F) {
	_, encoded := sample()
	f.Add(encoded)
	f.Add(encoded[:60])
	f.Add([]byte{})
	empty := &Entry{Time: time.Unix(0, 0)}
	f.Add(appendEntry(nil, empty, encodeBody(nil, empty)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d decoder
		e, err := d.entry(b)
		if err != nil {
			return
		}
		if again := appendEntry(nil, e, encodeBody(nil, e)); !bytes.Equal(again, b) {
			t.Errorf("two encodings:\n%x\n%x", b, again)
		}
	})
}

// A group that was not sealed by us does not open, and what is inside one that was can't make the walk misbehave.
func FuzzGroup(f *testing.F) {
	keys, err := newKeyring(testKey, make([]byte, 16), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	_, encoded := sample()
	f.Add([]byte{}, uint16(0))
	f.Add(append([]byte{byte(len(encoded)) | 0x80, byte(len(encoded) >> 7)}, encoded...), uint16(1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, uint16(9))
	f.Fuzz(func(t *testing.T, b []byte, count uint16) {
		w := walker{groups: groupReader{keys: keys}, from: 1, next: 5, to: ^uint64(0), fn: func(*Entry) error { return nil }}
		if err := w.group(5, b); err == nil {
			t.Error("a group that nobody sealed opens")
		}
		var g sealer
		sealed, err := g.seal(keys, 5, Digest{2}, int(count), b)
		if err != nil {
			t.Fatal(err)
		}
		_ = w.group(5, sealed) // may be refused; must return
	})
}
