package strictyaml

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Span is where a field, name and value, stands in the bytes of the file.
type Span struct {
	Start, End int
	Quoted     bool   // the name is in double quotes, as JSON has it
	Comment    string // a comment between | or > and the text below it, which End would take along
}

var errSpan = errors.New("can't tell where the value begins and ends: rewrite it by hand")

// Span finds the field at path, whose value must be text. The parser tells where a value begins but not where it
// ends, so a caller who cuts by Span parses the result again and compares before believing it.
func (d *Document) Span(path Path) (Span, error) {
	key, value, found := d.find(path)
	if !found || key == nil || value.Kind != yaml.ScalarNode {
		return Span{}, errSpan
	}
	s := Span{Start: d.offset(key)}
	at := d.offset(value)
	if s.Start < 0 || at < s.Start {
		return Span{}, errSpan
	}
	s.Quoted = d.data[s.Start] == '"'
	switch {
	case value.Style&yaml.DoubleQuotedStyle != 0:
		s.End = endOfQuoted(d.data, at, '"')
	case value.Style&yaml.SingleQuotedStyle != 0:
		s.End = endOfQuoted(d.data, at, '\'')
	case value.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		s.End, s.Comment = endOfBlock(d.data, at, key.Column-1)
	default:
		s.End = endOfPlain(d.data, at, value.Value)
	}
	if s.End < at {
		return Span{}, errSpan
	}
	return s, nil
}

// offset returns where n begins, or -1. The parser counts columns in characters.
func (d *Document) offset(n *yaml.Node) int {
	if d.lines == nil {
		d.lines = lineStarts(d.data)
	}
	if n.Line < 1 || n.Line > len(d.lines) {
		return -1
	}
	at := d.lines[n.Line-1]
	for column := 1; column < n.Column && at < len(d.data); column++ {
		_, size := utf8.DecodeRune(d.data[at:])
		at += size
	}
	if at >= len(d.data) {
		return -1
	}
	return at
}

// lineStarts returns where each line begins. A byte order mark is part of no line.
func lineStarts(data []byte) []int {
	at := 0
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		at = len("\ufeff")
	}
	starts := []int{at}
	for at < len(data) {
		n := lineBreak(data[at:])
		if at += max(n, 1); n > 0 {
			starts = append(starts, at)
		}
	}
	return starts
}

// lineBreak returns how long the line break is that data begins with: 0 for none. YAML 1.1 knows more of them
// than "\n".
func lineBreak(data []byte) int {
	for _, br := range []string{"\r\n", "\n", "\r", "\u0085", "\u2028", "\u2029"} {
		if bytes.HasPrefix(data, []byte(br)) {
			return len(br)
		}
	}
	return 0
}

// endOfLine returns where the line that holds at ends, before its break.
func endOfLine(data []byte, at int) int {
	for at < len(data) && lineBreak(data[at:]) == 0 {
		at++
	}
	return at
}

func endOfQuoted(data []byte, at int, quote byte) int {
	if data[at] != quote {
		return -1
	}
	for i := at + 1; i < len(data); i++ {
		switch {
		case quote == '"' && data[i] == '\\':
			i++
		case data[i] != quote:
		case quote == '\'' && i+1 < len(data) && data[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return -1
}

// endOfPlain follows value through data: only the white space between its words may differ, where it is folded.
func endOfPlain(data []byte, at int, value string) int {
	end := at
	for i := range len(value) {
		if isSpace(value[i]) {
			continue
		}
		for end < len(data) && isSpace(data[end]) {
			end++
		}
		if end == len(data) || data[end] != value[i] {
			return -1
		}
		end++
	}
	return end
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// endOfBlock returns where the text below | or > ends, before its last line break: the first line that is indented
// less than the text's first ends it, and blank lines after it are not taken along.
func endOfBlock(data []byte, at, keyIndent int) (end int, comment string) {
	head := endOfLine(data, at)
	if i := bytes.IndexByte(data[at:head], '#'); i >= 0 {
		comment = string(bytes.TrimRight(data[at+i:head], " \t"))
	}
	indent := -1
	if digit := bytes.IndexAny(data[at:head], "123456789"); digit == 1 || digit == 2 {
		indent = keyIndent + int(data[at+digit]-'0')
	}
	end = head
	for next := head; next < len(data); {
		begin := next + lineBreak(data[next:])
		next = endOfLine(data, begin)
		line := data[begin:next]
		depth := len(line) - len(bytes.TrimLeft(line, " "))
		blank := len(bytes.TrimSpace(line)) == 0
		switch {
		case blank && (indent < 0 || depth <= indent):
			continue
		case indent < 0 && depth > keyIndent:
			indent = depth
		}
		if indent < 0 || depth < indent {
			break
		}
		end = next
	}
	return end, comment
}
