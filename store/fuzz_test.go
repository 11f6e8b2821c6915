package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
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

// spliced is b with at most cut bytes from at on replaced by with.
func spliced(b, with []byte, at, cut uint16) []byte {
	from := int(at) % (len(b) + 1)
	return slices.Concat(b[:from], with, b[min(len(b), from+int(cut)):])
}

// What was sealed opens at its own place alone, and only as it was: any other byte, and any other kind, id, version or
// event, is refused without a panic.
func FuzzUnseal(f *testing.F) {
	keys, err := newKeyring(testKey, make([]byte, 16), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	plain := []byte(`{"id":"cr_1","name":"openai-prod"}`)
	sealed := seal(keys.record, plain, keys.recordAAD(KindCredential, "cr_1", 0, 5))
	dek, aead, err := newDataKey()
	root, err2 := newRootKeys(testKey, make([]byte, 32), 1)
	if err := errors.Join(err, err2); err != nil {
		f.Fatal(err)
	}
	wrapped := seal(root.kek, dek, keys.dataKeyAAD(keys.valueKey("cr_1", 1)))
	value := seal(aead, []byte("sk-fake-1"), keys.recordAAD(KindValue, "cr_1", 1, 5))
	f.Add([]byte{}, uint16(0), uint16(0), "credential", "cr_1", 0, uint64(5))
	f.Add([]byte{0}, uint16(0), uint16(1), "credential", "cr_1", 0, uint64(5))
	f.Add([]byte{}, uint16(20), uint16(999), "value", "cr_1", 1, uint64(5))
	f.Add([]byte("x"), uint16(999), uint16(0), "data key", "cr_1", 1, uint64(4))
	f.Add([]byte{}, uint16(0), uint16(0), "", "credentialcr_1", 0, uint64(5))
	f.Fuzz(func(t *testing.T, with []byte, at, cut uint16, kind, id string, version int, seq uint64) {
		aad := keys.recordAAD(Kind(kind), id, version, seq)
		keyAAD := keys.dataKeyAAD(keys.valueKey(id, version))
		for _, c := range []struct {
			tried              []byte
			sealed, aad, plain []byte
			open               func([]byte) ([]byte, error)
		}{
			{aad, sealed, keys.recordAAD(KindCredential, "cr_1", 0, 5), plain, func(b []byte) ([]byte, error) { return open(keys.record, b, aad) }},
			{keyAAD, wrapped, keys.dataKeyAAD(keys.valueKey("cr_1", 1)), dek, func(b []byte) ([]byte, error) { return open(root.kek, b, keyAAD) }},
			{aad, value, keys.recordAAD(KindValue, "cr_1", 1, 5), []byte("sk-fake-1"), func(b []byte) ([]byte, error) { return open(aead, b, aad) }},
		} {
			changed := spliced(c.sealed, with, at, cut)
			got, err := c.open(changed)
			if own := bytes.Equal(changed, c.sealed) && bytes.Equal(c.tried, c.aad); own != (err == nil) || own && !bytes.Equal(got, c.plain) {
				t.Errorf("at its place as it was: %v, and yet %v", own, err)
			}
		}
	})
}

// A trail of six groups in which bytes, places or whole groups were changed is found out, unless nothing was changed:
// reading it fails, or it does not end where the known head says.
func FuzzTrail(f *testing.F) {
	keys, err := newKeyring(testKey, make([]byte, 16), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	var g sealer
	var whole [][]byte
	var end Digest
	for i := range 6 {
		c := leaseCreated(i)
		c.Entry.Seq, c.Entry.Time, c.Entry.Prev = uint64(i+1), day, end
		encoded := appendEntry(nil, &c.Entry, encodeBody(nil, &c.Entry))
		sealed, err := g.seal(keys, c.Entry.Seq, end, 1, append([]byte{byte(len(encoded)) | 0x80, byte(len(encoded) >> 7)}, encoded...))
		if err != nil {
			f.Fatal(err)
		}
		whole, end = append(whole, slices.Clone(sealed)), sha256.Sum256(encoded)
	}
	read := func(groups [][]byte) (Digest, error) { // as walk does
		w := walker{groups: groupReader{keys: keys}, from: 1, next: 1, to: 6, fn: func(*Entry) error { return nil }}
		for _, b := range groups {
			if err := w.group(w.next, b); err != nil {
				return Digest{}, err
			}
		}
		return w.prev, nil
	}
	f.Add([]byte{}, uint16(0), uint16(0), uint8(0), uint8(0), uint8(0))
	f.Add([]byte{1}, uint16(60), uint16(1), uint8(3), uint8(0), uint8(0))
	f.Add([]byte{}, uint16(0), uint16(0), uint8(3), uint8(4), uint8(1))
	f.Add([]byte{}, uint16(0), uint16(0), uint8(5), uint8(0), uint8(2))
	f.Add([]byte{}, uint16(0), uint16(0), uint8(1), uint8(2), uint8(3))
	f.Fuzz(func(t *testing.T, with []byte, at, cut uint16, a, b, how uint8) {
		changed := slices.Clone(whole)
		i, j := int(a)%len(changed), int(b)%len(changed)
		changed[i] = spliced(changed[i], with, at, cut)
		switch how % 5 {
		case 1:
			changed[i], changed[j] = changed[j], changed[i]
		case 2:
			changed = slices.Delete(changed, i, i+1)
		case 3:
			changed = slices.Insert(changed, i, changed[j])
		case 4:
			changed = changed[:i]
		}
		last, err := read(changed)
		found := err != nil || last != end
		if same := slices.EqualFunc(changed, whole, bytes.Equal); found == same {
			t.Errorf("unchanged: %v, found out: %v (%v)", same, found, err)
		}
	})
}

// The small files that are read before anything is trusted — key check and anchor —, the signed head and the manifest of a
// snapshot are taken as they were written or refused, whatever stands in their place.
func FuzzSmallFiles(f *testing.F) {
	keys, err := newKeyring(testKey, make([]byte, 16), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	h := head{7, Digest{1}}
	kept := anchored{epoch: 2, head: h, time: day, marks: markOpen}
	anchored, signed := encodeAnchor(keys, kept), keys.signHead(signedHead{2, h, day})
	m := manifest{head: h, chunks: 3, size: 1 << 20}
	f.Add(anchored)
	f.Add(signed)
	f.Add(m.encode())
	f.Add([]byte(`{"format":1,"store_id":"00000000000000000000000000000000","salt":"0000000000000000000000000000000000000000000000000000000000000000","key_source":"file","check":"00"}`))
	f.Add([]byte(`{"format":1,"store_id":"zz"}`))
	f.Add(bytes.Repeat([]byte("["), 5000))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := keys.verifyHead(b); (err == nil) != bytes.Equal(b, signed) || err == nil && got.head != h {
			t.Errorf("the signed head: %+v %v", got, err)
		}
		if got, err := decodeManifest(b); err == nil && !bytes.Equal(got.encode(), b) {
			t.Errorf("the manifest: %+v", got)
		}
		path := filepath.Join(dir, "anchor")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		got, err := (&anchor{file: file}).read(keys)
		if (err == nil) != bytes.Equal(b, anchored) || err == nil && got != kept || err != nil && !errors.Is(err, ErrIntegrity) {
			t.Errorf("the anchor: %+v %v", got, err)
		}
		if err := os.WriteFile(filepath.Join(dir, keycheckName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		kc, err := readKeycheck(dir)
		if err != nil {
			if !errors.Is(err, ErrIntegrity) {
				t.Errorf("the key check: %v", err)
			}
			return
		}
		_, _ = kc.keys(testKey) // whatever it holds can be hashed
	})
}

// A backup is read back only as it was written: any other byte is refused, without a panic and without reading ahead of
// what was checked.
func FuzzBackup(f *testing.F) {
	s := mustOpen(f, testOptions(f))
	putCredential(f, s, "cr_1", 1, "the record", "sk-fake-1")
	record(f, s, leaseCreated(1))
	file, _ := backup(f, s)
	n := uint16(len(file))
	f.Add([]byte{}, uint16(0), uint16(0))
	f.Add([]byte{}, uint16(0), n)
	f.Add([]byte{}, n/2, n)
	f.Add([]byte{255, 255, 255, 255}, uint16(8), uint16(4))
	f.Add([]byte{2}, uint16(600), uint16(1))
	f.Add([]byte("x"), n, uint16(0))
	f.Fuzz(func(t *testing.T, with []byte, at, cut uint16) {
		changed := spliced(file, with, at, cut)
		r, err := openTestBackup(bytes.NewReader(changed))
		if err == nil {
			err = r.items(func(_, _ []byte) error { return nil })
		}
		switch {
		case bytes.Equal(changed, file) != (err == nil):
			t.Errorf("as it was: %v, and yet %v", bytes.Equal(changed, file), err)
		case err != nil && !errors.Is(err, ErrBackup) && !errors.Is(err, ErrWrongKey) && !errors.Is(err, ErrIntegrity):
			t.Errorf("it is not said what is wrong: %v", err)
		}
	})
}
