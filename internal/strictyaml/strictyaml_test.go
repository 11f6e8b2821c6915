package strictyaml_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"keylease/internal/strictyaml"
)

type shape struct {
	Name   string              `yaml:"name"`
	Count  *int                `yaml:"count"`
	Rate   float64             `yaml:"rate"`
	On     bool                `yaml:"on"`
	Tags   []string            `yaml:"tags"`
	Labels map[string]string   `yaml:"labels"`
	Lists  map[string][]string `yaml:"lists"`
	Inner  []struct {
		MaxLeaseTTL string `yaml:"maxLeaseTTL"`
	} `yaml:"inner"`
	Later *struct{} `yaml:"later,unsupported"`
}

func TestYAMLAndJSONReadTheSame(t *testing.T) {
	five := 5
	want := shape{Name: "a: b", Count: &five, Rate: 1.5, On: true, Tags: []string{"x", "30m"},
		Labels: map[string]string{"k": "😀"}, Lists: map[string][]string{"l": {"v"}}}
	want.Inner = append(want.Inner, struct {
		MaxLeaseTTL string `yaml:"maxLeaseTTL"`
	}{"4h"})
	for _, text := range []string{
		"name: 'a: b'\ncount: 5\nrate: 1.5\non: true\ntags: [x, 30m]\nlabels: {k: 😀}\nlists: {l: [v]}\ninner:\n  - maxLeaseTTL: 4h\n",
		"\ufeff---\r\nname: \"a: b\"\r\ncount: 5 # five\r\nrate: 1.5\r\non: true\r\ntags:\r\n- x\r\n- 30m\r\nlabels:\r\n  k: 😀\r\nlists:\r\n  l: [v]\r\ninner: [{maxLeaseTTL: 4h}]\r\n",
		"{\n\t\"name\": \"a: b\",\n\t\"count\":\t5, \"rate\": 1.5, \"on\": true,\n\t\"tags\": [\"x\", \"30m\"],\n\t\"labels\": {\"k\": \"\\ud83d\\uDE00\"}, \"lists\": {\"l\": [\"v\"]}, \"inner\": [{\"maxLeaseTTL\": \"4h\"}]}",
	} {
		var got shape
		if err := strictyaml.Decode("f", []byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	var got shape // an escaped backslash does not begin a surrogate pair
	if err := strictyaml.Decode("f", []byte(`{"name": "\\ud83d\\ude00"}`), &got); err != nil || got.Name != `\ud83d\ude00` {
		t.Errorf("%q %v", got.Name, err)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"empty", " \n", "f:1: the file is empty"},
		{"not UTF-8", "name: a\nname: \xff", "f:2: the file is not UTF-8 text"},
		{"too long", strings.Repeat("#", 1<<20+1), "f:1: the file is 1048577 bytes long; at most 1048576 are read"},
		{"two documents", "name: a\n---\nname: b", "f:2: the file holds a second document (after ---); only one is read"},
		{"a tab", "inner:\n\t- maxLeaseTTL: 4h", "f:2: a text begins with a tab, @, ` or %: put it in quotes, and indent with spaces"},
		{"not closed", "name: \"a\ncount: 5\n", "f:3: a quote or bracket is not closed"},
		{"a colon too many", "name: a: b", "f:1: there is a \":\" where none can be: put the text in quotes, or look at the indentation"},
		{"a stray indent", "name: a\n  count: 5", "f:2: there is a \":\" where none can be: put the text in quotes, or look at the indentation"},
		{"an alias", "name: &a x\ntags: [*a]", "f:1: &name (an anchor) is not allowed in this file: put a text that begins with & in quotes\nf:2: *name (an alias) is not allowed in this file: put a text that begins with * in quotes"},
		{"an unquoted glob", "tags: [*]", "f:1: "},
		{"a tag", "name: !!binary aGk=", "f:1: !name (a tag) is not allowed in this file: put a text that begins with ! in quotes"},
		{"a merge", "inner: [{<<: {}}]", "f:1: a field's name must be text: put it in quotes"},
		{"twice, deep", "labels:\n  a: x\n  a: y", "f:3: field \"a\" is here twice: it was on line 2 already"},
		{"near names", "nam: a\nTags: []\nlabel: {}\ninner: [{max_lease_ttl: 4h}]",
			"f:1: unknown field \"nam\": did you mean \"name\"?\nf:2: unknown field \"Tags\": did you mean \"tags\"?\nf:3: unknown field \"label\": did you mean \"labels\"?\nf:4: unknown field \"max_lease_ttl\": did you mean \"maxLeaseTTL\"?"},
		{"far name", "elsewhere: a", "f:1: unknown field \"elsewhere\": the fields here are name, count, rate, on, tags, labels, lists, inner"},
		{"for later", "later: {a: b}", "f:1: field \"later\" is not supported by this version of keylease"},
		{"wrong kinds", "name: 1\ncount: 1.5\nrate: x\non: yes\ntags: a\nlabels: [a]\nlists: {l: v}\ninner: {}",
			"f:1: name must be text: put it in quotes\nf:2: count must be a whole number\nf:3: rate must be a number\nf:4: on must be true or false\nf:5: tags must be a list: write [ … ] or lines that begin with -\nf:6: labels must be names with values, as in {name: value}\nf:7: field \"l\" in lists must be a list: write [ … ] or lines that begin with -\nf:8: inner must be a list: write [ … ] or lines that begin with -"},
		{"nulls", "name:\ntags: [~]", "f:1: name has no value: it must be text: put it in quotes\nf:2: an item of tags has no value: it must be text: put it in quotes"},
		{"infinite", "rate: .inf", "f:1: rate must be a number"},
		{"text that looks like text", "labels: {a: 0123, b: true, c: 2026-01-01}",
			"f:1: field \"a\" in labels must be text: put it in quotes\nf:1: field \"b\" in labels must be text: put it in quotes\nf:1: field \"c\" in labels must be text: put it in quotes"},
	} {
		var s shape
		err := strictyaml.Decode("f", []byte(c.file), &s)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || (err.Error() != c.want && c.name != "an unquoted glob") {
			t.Errorf("%s:\n%v\nwant:\n%s", c.name, err, c.want)
		}
	}
}

func TestABillionLaughs(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x]\n")
	for i := range 30 {
		fmt.Fprintf(&b, "a%d: &a%d [*a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i)
	}
	if err := strictyaml.Decode("f", []byte(b.String()), new(shape)); err == nil {
		t.Error("accepted")
	}
	if err := strictyaml.Decode("f", []byte(strings.Repeat("[", 1<<19)), new(shape)); err == nil {
		t.Error("accepted")
	}
}

func TestFaultsFindTheirLine(t *testing.T) {
	d := strictyaml.Open("f", []byte("name: x\ninner:\n  - maxLeaseTTL: 1h\n  -\n    maxLeaseTTL: 2h\n"))
	d.Decode(new(shape))
	d.Faultf(strictyaml.Path{"inner", 1, "maxLeaseTTL"}, "last")
	d.Faultf(strictyaml.Path{"inner", 0}, "middle")
	d.Faultf(strictyaml.Path{"inner", 7, "x"}, "nearest above")
	d.Faultf(nil, "first")
	want := "f:1: first\nf:2: nearest above\nf:3: middle\nf:5: last"
	if got := d.Err().Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if d.Has(strictyaml.Path{"inner", 2}) || !d.Has(strictyaml.Path{"inner", 1, "maxLeaseTTL"}) {
		t.Error("Has is wrong")
	}
}

func TestNearest(t *testing.T) {
	known := []string{"name", "type", "value", "valueFrom", "metadata", "policy"}
	for s, want := range map[string]string{"nmae": "name", "vale": "value", "valuefrom": "valueFrom", "value_from": "valueFrom",
		"meta": "", "polcy": "policy", "sk-fake-123": "", "": "", "x": ""} {
		if got := strictyaml.Nearest(s, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", s, got, want)
		}
	}
}

// The canary is shaped like a key, with digits and dashes: wherever it lands in a file, no error may say it.
const canary = "sk-fake-C4N4RY-7"

func TestNoFaultRepeatsAValue(t *testing.T) {
	for _, file := range []string{
		"name: [CANARY]", "count: CANARY", "CANARY", "- CANARY", "{CANARY: CANARY}", "name: *CANARY", "name: &CANARY x", "name: !CANARY x", "%CANARY\n---\na",
		"name: 'CANARY", "name: a\n CANARY: x", "name: \"\\CANARY\"", "name: @CANARY", "CANARY: 1\nCANARY: 2", "labels: {CANARY: 1}", "? CANARY", "name: CANARY: CANARY",
		"name: |\nCANARY", "name: x\nCANARY\n", "labels:\n  CANARY: [x]", "%TAG !e! CANARY\n---\nname: !e!x y", "on: CANARY", "tags: CANARY", "name: a\n---\nCANARY",
		"name: \x01CANARY", "name: CANARY\xff", "{\"name\": CANARY", "[CANARY",
	} {
		err := strictyaml.Decode("f", []byte(strings.ReplaceAll(file, "CANARY", canary)), new(shape))
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%q: %v", file, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"name: " + canary, "{\"name\": \"" + canary + "\"}", "tags: [" + canary + ", x]\ninner:\n- maxLeaseTTL: |\n    " + canary + "\n", canary + ": x", "- " + canary} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s shape
		d := strictyaml.Open("f", data)
		d.Decode(&s)
		if err := d.Err(); err != nil && strings.Contains(err.Error(), canary) {
			t.Fatalf("%q repeats a value: %v", data, err)
		}
		for _, path := range []strictyaml.Path{{"name"}, {"inner", 0, "maxLeaseTTL"}} {
			if span, err := d.Span(path); err == nil && (span.Start < 0 || span.End > len(data) || span.Start >= span.End) {
				t.Fatalf("%q: %+v", data, span)
			}
		}
	})
}
