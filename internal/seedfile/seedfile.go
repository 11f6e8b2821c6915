// Package seedfile reads the file that an admin gives keylease its credentials in. Its rule: all or nothing. A file
// with one fault gives no item, and every fault is listed with its line; none repeats a value.
package seedfile

import (
	"maps"
	"slices"

	"keylease/internal/credtype"
	"keylease/internal/secret"
	"keylease/internal/strictyaml"
	"keylease/internal/use"
	"keylease/policy"
)

// Item is one credential as the file has it. Its value is in the file (Literal), somewhere else (ValueFrom), or in
// the store already (Consumed): exactly one of the three.
type Item struct {
	Name      string
	Type      string
	Value     secret.Secret // empty unless Literal
	ValueFrom *ValueFrom
	Metadata  map[string]string
	Policy    policy.CredentialPolicy
	Expose    *use.Expose   // nil: not in the file
	Upstream  *use.Upstream // nil: not in the file
	Line      int           // of the item, from 1
	Literal   bool          // the value stands in the file: Consume takes it out
	Consumed  bool          // valueFrom: {store: true}, as Consume leaves it
}

// ValueFrom says where a value is to be read. Exactly one field is set. Whoever reads it checks it with
// credtype.Check, as Parse does with a literal one.
type ValueFrom struct {
	Env  string // an environment variable of the process that seeds
	File string // a file
}

type fileShape struct {
	Credentials []itemShape `yaml:"credentials"`
}

type itemShape struct {
	Name      *string                 `yaml:"name"`
	Type      *string                 `yaml:"type"`
	Value     *string                 `yaml:"value"`
	ValueFrom *fromShape              `yaml:"valueFrom"`
	Metadata  map[string]string       `yaml:"metadata"`
	Policy    policy.CredentialFields `yaml:"policy"`
	Expose    *use.Expose             `yaml:"expose"`
	Upstream  *use.Upstream           `yaml:"upstream"`
}

type fromShape struct {
	Env   *string `yaml:"env"`
	File  *string `yaml:"file"`
	Store *bool   `yaml:"store"`
}

// Parse reads a seed file, YAML or JSON. file is its name in errors, which are strictyaml.Faults.
func Parse(file string, data []byte) ([]Item, error) {
	items, _, err := read(file, data)
	return items, err
}

func read(file string, data []byte) ([]Item, fileShape, error) {
	d := strictyaml.Open(file, data)
	var f fileShape
	d.Decode(&f)
	if !d.Has(nil) {
		return nil, f, d.Err()
	}
	if !d.Has(at("credentials")) {
		d.Faultf(nil, "the file needs credentials: a list of what to store")
	}
	r := reader{d}
	items := make([]Item, 0, len(f.Credentials))
	first := map[string]int{}
	for i, s := range f.Credentials {
		path := at("credentials", i)
		it := r.item(s, path)
		if line, dup := first[it.Name]; dup && it.Name != "" {
			d.Faultf(path.Join("name"), "another credential has this name: it was on line %d already", line)
		} else {
			first[it.Name] = d.Line(path.Join("name"))
		}
		items = append(items, it)
	}
	if err := d.Err(); err != nil {
		return nil, f, err
	}
	return items, f, nil
}

func at(path ...any) strictyaml.Path { return path }

// reader turns shapes into items, telling the document of every fault.
type reader struct{ *strictyaml.Document }

func (r reader) item(s itemShape, path strictyaml.Path) Item {
	it := Item{Line: r.Line(path), Metadata: s.Metadata}
	if it.Name = r.need(s.Name, path, "name", "the credential needs a name"); s.Name != nil {
		r.note(credtype.CheckName(it.Name), path.Join("name"))
	}
	if it.Type = r.need(s.Type, path, "type", "the credential needs a type, such as api-key"); s.Type != nil {
		r.note(credtype.CheckType(it.Type), path.Join("type"))
	}
	r.metadata(s.Metadata, path.Join("metadata"))
	r.value(s, path, &it)
	it.Policy = s.Policy.Policy(r.Document, path.Join("policy"))
	it.Expose, it.Upstream = s.Expose, s.Upstream
	it.Expose.Check(r.Document, path.Join("expose"))
	it.Upstream.Check(r.Document, path.Join("upstream"))
	return it
}

// need returns a field that must be there.
func (r reader) need(s *string, path strictyaml.Path, field, fault string) string {
	if s != nil {
		return *s
	}
	if !r.Has(path.Join(field)) {
		r.Faultf(path, "%s", fault)
	}
	return ""
}

// note makes a fault of err, whose text must not repeat a value.
func (r reader) note(err error, path strictyaml.Path) {
	if err != nil {
		r.Faultf(path, "%v", err)
	}
}

func (r reader) metadata(m map[string]string, path strictyaml.Path) {
	if len(m) > credtype.MaxMetadata {
		r.note(credtype.CheckMetadata(m), path)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		r.note(credtype.CheckMetadataField(key, m[key]), path.Join(key))
	}
}

func (r reader) value(s itemShape, path strictyaml.Path, it *Item) {
	literal, from := r.Has(path.Join("value")), r.Has(path.Join("valueFrom"))
	switch {
	case literal && from:
		r.Faultf(path.Join("valueFrom"), "the credential has both value and valueFrom; keep one")
	case literal && s.Value != nil:
		it.Literal, it.Value = true, secret.New([]byte(*s.Value))
		err := credtype.CheckValue(it.Value.Bytes())
		if err == nil && credtype.CheckType(it.Type) == nil {
			_, err = credtype.Check(it.Type, it.Value.Bytes(), nil)
		}
		r.note(err, path.Join("value"))
	case from && s.ValueFrom != nil:
		r.valueFrom(*s.ValueFrom, path.Join("valueFrom"), it)
	case !literal && !from:
		r.Faultf(path, "the credential has no value: write value, or valueFrom: {env: NAME} or {file: PATH}, or {store: true} if the store has it already")
	}
}

func (r reader) valueFrom(s fromShape, path strictyaml.Path, it *Item) {
	n := 0
	for _, field := range []string{"env", "file", "store"} {
		if r.Has(path.Join(field)) {
			n++
		}
	}
	switch {
	case n != 1:
		r.Faultf(path, "valueFrom needs exactly one of env, file and store")
	case s.Env != nil:
		it.ValueFrom = &ValueFrom{Env: *s.Env}
		if !isEnvName(*s.Env) {
			r.Faultf(path.Join("env"), "env must be the name of an environment variable: letters, digits and _, no digit first")
		}
	case s.File != nil:
		it.ValueFrom = &ValueFrom{File: *s.File}
		if *s.File == "" || credtype.CheckText(*s.File) != nil {
			r.Faultf(path.Join("file"), "file must be the path of a file")
		}
	case s.Store != nil:
		if it.Consumed = *s.Store; !*s.Store {
			r.Faultf(path.Join("store"), "store can only be true: the value is in the store already")
		}
	}
}

func isEnvName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
