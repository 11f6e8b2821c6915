package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// Details are what an Entry says beyond its fields, by field name, each name once. They are few and made with every
// lease: a sorted slice is one allocation where a map is five, and it lies as it is encoded. Set keeps the order.
type Details []Detail

// Detail is one of them.
type Detail struct{ Field, Value string }

// DetailsOf makes Details of pairs: a field, its value, the next field.
func DetailsOf(pairs ...string) Details {
	if len(pairs)%2 != 0 {
		panic(fmt.Sprintf("store: a detail without a value: %q", pairs))
	}
	d := make(Details, 0, len(pairs)/2+1) // one more is often set
	for i := 0; i < len(pairs); i += 2 {
		d.Set(pairs[i], pairs[i+1])
	}
	return d
}

func (d Details) find(field string) (at int, found bool) {
	for at < len(d) && d[at].Field < field {
		at++
	}
	return at, at < len(d) && d[at].Field == field
}

// Get returns the value of field; "" if d says nothing of it.
func (d Details) Get(field string) string {
	if at, found := d.find(field); found {
		return d[at].Value
	}
	return ""
}

// Set gives field a value. It changes d in place: what is shared has to be cloned first.
func (d *Details) Set(field, value string) {
	at, found := d.find(field)
	if !found {
		*d = slices.Insert(*d, at, Detail{Field: field})
	}
	(*d)[at].Value = value
}

// inOrder reports whether d is as Set makes it.
func (d Details) inOrder() bool {
	for i := 1; i < len(d); i++ {
		if d[i-1].Field >= d[i].Field {
			return false
		}
	}
	return true
}

// All passes each field with its value, by field.
func (d Details) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, one := range d {
			if !yield(one.Field, one.Value) {
				return
			}
		}
	}
}

// Map returns d as a map.
func (d Details) Map() map[string]string { return maps.Collect(d.All()) }

// MarshalJSON writes an object.
func (d Details) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	text := json.NewEncoder(&b)
	text.SetEscapeHTML(false) // whoever encodes the Entry says whether
	b.WriteByte('{')
	for i, one := range d {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := text.Encode(one.Field); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := text.Encode(one.Value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads an object.
func (d *Details) UnmarshalJSON(b []byte) error {
	var m map[string]string
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*d = make(Details, 0, len(m))
	for _, field := range slices.Sorted(maps.Keys(m)) {
		*d = append(*d, Detail{field, m[field]})
	}
	return nil
}
