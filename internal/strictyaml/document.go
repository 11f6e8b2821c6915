// Package strictyaml reads the files that people write for keylease, YAML or JSON (which is YAML), into structs.
// Its rule: anything it does not fully understand is a fault, every fault is listed with its line, and no fault
// repeats a value, since the file may be a seed file and the value a secret.
package strictyaml

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Fault is one thing wrong with a file. Line is 1 for the first line.
type Fault struct {
	File    string
	Line    int
	Message string
}

func (f Fault) Error() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Message) }

// Faults is everything wrong with a file, in the order of its lines.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Document is a file on its way to being believed: its nodes, and the faults found so far.
type Document struct {
	file   string
	data   []byte
	root   *yaml.Node // nil when the file could not be parsed at all
	lines  []int      // where each line begins; nil until Span needs it
	faults Faults
	bad    map[*yaml.Node]bool // values that Decode could not read: one fault each is enough
}

// Path leads from the top of a document to one of its values: field names (string) and indexes (int).
type Path []any

// Join returns the path to what lies under p.
func (p Path) Join(more ...any) Path { return append(slices.Clone(p), more...) }

// Decode reads data into the struct that into points to, or returns Faults.
func Decode(file string, data []byte, into any) error {
	d := Open(file, data)
	d.Decode(into)
	return d.Err()
}

// Open parses data. What is wrong with it is kept for Err; a Document that could not be parsed decodes nothing.
func Open(file string, data []byte) *Document {
	d := &Document{file: file, data: data, bad: map[*yaml.Node]bool{}}
	if len(data) > MaxSize {
		d.fault(1, fmt.Sprintf("the file is %d bytes long; at most %d are read", len(data), MaxSize))
		return d
	}
	if !utf8.Valid(data) {
		d.fault(1+bytes.Count(data[:validPrefix(data)], []byte("\n")), "the file is not UTF-8 text")
		return d
	}
	root, err := parse(data)
	switch {
	case err != nil:
		d.fault(syntaxFault(err))
		return d
	case root == nil:
		d.fault(1, "the file is empty")
		return d
	}
	d.vet(root)
	if len(d.faults) == 0 {
		d.root = root
	}
	return d
}

// parse returns the root of data's one document; nil for a file that holds none.
func parse(data []byte) (root *yaml.Node, err error) {
	defer func() {
		if recover() != nil { // the text of a panic may hold part of the file
			err = fmt.Errorf("yaml: the parser gave up")
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(plainJSON(data)))
	var first, second yaml.Node
	if err := dec.Decode(&first); err != nil || len(first.Content) == 0 {
		if err != nil && err.Error() == "EOF" {
			return nil, nil
		}
		return nil, err
	}
	if err := dec.Decode(&second); err == nil {
		return nil, fmt.Errorf("yaml: line %d: %s", second.Line, secondDocument)
	} else if err.Error() != "EOF" {
		return nil, err
	}
	return first.Content[0], nil
}

const secondDocument = "a second document"

// A surrogate pair, or any other escape but \u…: so that a \ which is itself escaped begins no pair.
var surrogates = regexp.MustCompile(`\\(?:[^u]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})`)

// plainJSON rewrites the two things in JSON that the YAML parser refuses: tabs between tokens, and characters
// written as two \u escapes. Lines stay where they are.
func plainJSON(data []byte) []byte {
	if !json.Valid(data) {
		return data
	}
	data = bytes.ReplaceAll(data, []byte("\t"), []byte(" ")) // valid JSON holds no bare tab inside a string
	return surrogates.ReplaceAllFunc(data, func(pair []byte) []byte {
		if len(pair) == 2 {
			return pair
		}
		hi, _ := strconv.ParseUint(string(pair[2:6]), 16, 32)
		lo, _ := strconv.ParseUint(string(pair[8:12]), 16, 32)
		return fmt.Appendf(nil, `\U%08X`, (hi-0xd800)<<10|(lo-0xdc00)+0x10000)
	})
}

func validPrefix(data []byte) int {
	n := 0
	for n < len(data) {
		r, size := utf8.DecodeRune(data[n:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		n += size
	}
	return n
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntaxFault says in our words what the parser found: its own may repeat parts of the file.
func syntaxFault(err error) (line int, message string) {
	line, text := 1, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
	}
	for _, known := range syntaxWords {
		if strings.Contains(text, known.theirs) {
			return line, known.ours
		}
	}
	return line, "the file is not valid YAML or JSON here"
}

var syntaxWords = []struct{ theirs, ours string }{
	{secondDocument, "the file holds a second document (after ---); only one is read"},
	{"mapping values are not allowed", `there is a ":" where none can be: put the text in quotes, or look at the indentation`},
	{"cannot start any token", "a text begins with a tab, @, ` or %: put it in quotes, and indent with spaces"},
	{"could not find expected ':'", `a field has no ":" after its name, or a text that goes on over lines is not indented`},
	{"unexpected end of stream", "a quote or bracket is not closed"},
	{"did not find expected ',' or", "a list or {…} is not closed, or a comma is missing"},
	{"did not find expected key", "the indentation does not fit the lines above"},
	{"did not find expected '-'", "the indentation of this list does not fit the lines above"},
	{"control characters", "the file holds control characters"},
	{"unknown escape", `a text in double quotes holds a \ that begins no known escape: use single quotes`},
	{"unknown anchor", "*name (an alias) is not allowed in this file: put a text that begins with * in quotes"},
	{"exceeded max depth", "the file is nested too deeply"},
}

// vet refuses what YAML has and these files do not need: each is a way to say one thing and mean another.
func (d *Document) vet(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		d.fault(n.Line, "*name (an alias) is not allowed in this file: put a text that begins with * in quotes")
		return
	case n.Anchor != "":
		d.fault(n.Line, "&name (an anchor) is not allowed in this file: put a text that begins with & in quotes")
	case n.Style&yaml.TaggedStyle != 0:
		d.fault(n.Line, "!name (a tag) is not allowed in this file: put a text that begins with ! in quotes")
	}
	if n.Kind == yaml.MappingNode {
		d.vetKeys(n)
	}
	for _, c := range n.Content {
		d.vet(c)
	}
}

func (d *Document) vetKeys(n *yaml.Node) {
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str" {
			d.fault(k.Line, "a field's name must be text: put it in quotes")
			continue
		}
		if line, dup := seen[k.Value]; dup {
			d.fault(k.Line, fmt.Sprintf("%s is here twice: it was on line %d already", fieldName(k.Value), line))
			continue
		}
		seen[k.Value] = k.Line
	}
}

// Err returns the Faults found so far, or nil.
func (d *Document) Err() error {
	if len(d.faults) == 0 {
		return nil
	}
	faults := slices.Clone(d.faults)
	slices.SortStableFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return faults
}

// Faultf adds a fault at the value that path leads to, or at the nearest thing above it that is there. It adds
// nothing where Decode found a value of the wrong kind: what is wrong there has been said. The caller must not put
// a value of the file into the message, unless it is known to be no secret.
func (d *Document) Faultf(path Path, format string, args ...any) {
	if _, value, found := d.find(path); found && d.bad[value] {
		return
	}
	d.fault(d.Line(path), fmt.Sprintf(format, args...))
}

func (d *Document) fault(line int, message string) {
	d.faults = append(d.faults, Fault{d.file, max(line, 1), message})
}

// Line returns the line of the field or list item that path leads to, or of the nearest thing above it.
func (d *Document) Line(path Path) int {
	key, value, _ := d.find(path)
	switch {
	case key != nil:
		return key.Line
	case value != nil:
		return value.Line
	}
	return 1
}

// Has reports whether the file holds something at path, be it right or wrong.
func (d *Document) Has(path Path) bool {
	_, _, found := d.find(path)
	return found
}

// find walks down path as far as it goes. key is nil for a list's items and for the root.
func (d *Document) find(path Path) (key, value *yaml.Node, found bool) {
	value = d.root
	for _, step := range path {
		k, v := child(value, step)
		if v == nil {
			return key, value, false
		}
		key, value = k, v
	}
	return key, value, value != nil
}

func child(n *yaml.Node, step any) (key, value *yaml.Node) {
	if n == nil {
		return nil, nil
	}
	switch s := step.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && s < len(n.Content) {
			return nil, n.Content[s]
		}
	case string:
		if n.Kind != yaml.MappingNode {
			return nil, nil
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == s {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}
