package strictyaml

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Decode fills the struct that into points to. Fields are those with a `yaml:"name"` tag; of type string, bool,
// int, float64, a slice, a map with string keys, a struct, or a pointer to one of these (nil: not in the file).
// A tag of `yaml:"name,unsupported"` is a field that a later version will know: it is refused by name.
// Text is never read as a number or the other way round, and null is nothing's value.
func (d *Document) Decode(into any) {
	if d.root != nil {
		d.decode(d.root, reflect.ValueOf(into).Elem(), "the file")
	}
}

func (d *Document) decode(n *yaml.Node, v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, v.Elem(), name)
	case reflect.Struct:
		d.decodeStruct(n, v, name)
	case reflect.Slice:
		d.decodeSlice(n, v, name)
	case reflect.Map:
		d.decodeMap(n, v, name)
	default:
		d.decodeScalar(n, v, name)
	}
}

func (d *Document) decodeStruct(n *yaml.Node, v reflect.Value, name string) {
	if n.Kind != yaml.MappingNode {
		d.mismatch(n, name+" must be fields with values")
		return
	}
	fields, later, known := fieldsOf(v)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if f, ok := fields[key.Value]; ok {
			d.decode(value, f, key.Value)
			continue
		}
		if later[key.Value] {
			d.fault(key.Line, fmt.Sprintf("field %q is not supported by this version of keylease", key.Value))
			continue
		}
		d.fault(key.Line, unknownField(key.Value, known))
	}
}

func fieldsOf(v reflect.Value) (fields map[string]reflect.Value, later map[string]bool, known []string) {
	fields, later = map[string]reflect.Value{}, map[string]bool{}
	for i := range v.NumField() {
		name, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case name == "":
		case option == "unsupported":
			later[name] = true
		default:
			fields[name] = v.Field(i)
			known = append(known, name)
		}
	}
	return fields, later, known
}

func (d *Document) decodeSlice(n *yaml.Node, v reflect.Value, name string) {
	if n.Kind != yaml.SequenceNode {
		d.mismatch(n, name+" must be a list: write [ … ] or lines that begin with -")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, c := range n.Content {
		d.decode(c, v.Index(i), "an item of "+name)
	}
}

func (d *Document) decodeMap(n *yaml.Node, v reflect.Value, name string) {
	if n.Kind != yaml.MappingNode {
		d.mismatch(n, name+" must be names with values, as in {name: value}")
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.Content)/2))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, item := n.Content[i], reflect.New(v.Type().Elem()).Elem()
		d.decode(n.Content[i+1], item, fieldName(key.Value)+" in "+name)
		v.SetMapIndex(reflect.ValueOf(key.Value), item)
	}
}

func (d *Document) decodeScalar(n *yaml.Node, v reflect.Value, name string) {
	tag := n.ShortTag()
	ok := n.Kind == yaml.ScalarNode
	var want string
	switch v.Kind() {
	case reflect.String:
		want = "must be text: put it in quotes"
		if ok = ok && (tag == "!!str" || v.Type() == reflect.TypeFor[Name]() && tag == "!!int" && plainNumber(n.Value)); ok {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		want = "must be true or false"
		if ok = ok && tag == "!!bool" && (n.Value == "true" || n.Value == "false"); ok {
			v.SetBool(n.Value == "true")
		}
	case reflect.Int:
		want = "must be a whole number"
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if ok = ok && tag == "!!int" && err == nil; ok {
			v.SetInt(i)
		}
	case reflect.Float64:
		want = "must be a number"
		f, err := strconv.ParseFloat(n.Value, 64)
		if ok = ok && (tag == "!!int" || tag == "!!float") && err == nil && !math.IsInf(f, 0) && !math.IsNaN(f); ok {
			v.SetFloat(f)
		}
	default:
		panic("strictyaml: a struct has a field of type " + v.Type().String())
	}
	if !ok && tag == "!!null" && n.Kind == yaml.ScalarNode {
		d.mismatch(n, name+" has no value: it "+want)
		return
	}
	if !ok {
		d.mismatch(n, name+" "+want)
	}
}

// Name is text that may be written like a number, as the name of a user may be the user's number.
type Name string

// plainNumber says that every reader of YAML takes s for the same number.
func plainNumber(s string) bool {
	i, err := strconv.ParseInt(s, 10, 64)
	return err == nil && strconv.FormatInt(i, 10) == s
}

func (d *Document) mismatch(n *yaml.Node, message string) {
	d.bad[n] = true
	d.fault(n.Line, message)
}
