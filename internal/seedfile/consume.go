package seedfile

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"keylease/internal/strictyaml"
)

// What stands in the place of a value that the store has, in YAML and in JSON.
const (
	consumedYAML = `valueFrom: {store: true}`
	consumedJSON = `"valueFrom": {"store": true}`
)

// Consume returns data with the literal values of the named items taken out; each item then says
// valueFrom: {store: true}. Every other byte stays as it is, comments included. Names that the file does not have,
// or has without a literal value, are left alone. The result is read again and compared before it is returned, so
// what comes back differs from data in nothing else. A value that also stands in a comment stays there.
func Consume(file string, data []byte, names []string) ([]byte, error) {
	items, before, err := read(file, data)
	if err != nil {
		return nil, err
	}
	d := strictyaml.Open(file, data)
	var out []byte
	done := 0
	for _, i := range inFileOrder(items, names) {
		span, err := d.Span(at("credentials", i, "value"))
		if err != nil {
			return nil, fmt.Errorf("taking the value of %s out of %s: %w", items[i].Name, file, err)
		}
		if span.Start < done {
			return nil, errRewrite(file)
		}
		out = append(out, data[done:span.Start]...)
		out = append(out, replacement(span)...)
		done = span.End
		yes := true
		before.Credentials[i].Value, before.Credentials[i].ValueFrom = nil, &fromShape{Store: &yes}
	}
	out = append(out, data[done:]...)
	if _, after, err := read(file, out); err != nil || !reflect.DeepEqual(before, after) {
		return nil, errRewrite(file) // not err: it would be about a file that nobody has
	}
	return out, nil
}

func errRewrite(file string) error {
	return fmt.Errorf("taking the values out of %s: %w", file, errors.New("its layout is not understood well enough to change nothing else: replace each value by "+consumedYAML+" by hand"))
}

// inFileOrder returns the indexes of the named items that hold a literal value.
func inFileOrder(items []Item, names []string) []int {
	var list []int
	for i := range items {
		if items[i].Literal && slices.Contains(names, items[i].Name) {
			list = append(list, i)
		}
	}
	return list
}

func replacement(s strictyaml.Span) string {
	text := consumedYAML
	if s.Quoted {
		text = consumedJSON
	}
	if s.Comment != "" {
		text += " " + s.Comment
	}
	return text
}
