package server

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of one JSON-RPC message, checked before anything decodes it.
const (
	maxLine    = 64 << 10 // bytes, the line end not counted
	maxDepth   = 32
	maxMembers = 256  // object members at all levels together
	maxTokens  = 2048 // an initialize of the busiest client has about 60
	maxNumber  = 64   // digits: nothing in the protocol counts further
)

var (
	errLineTooLong = fmt.Errorf("the message is longer than %d bytes", maxLine)
	errNotJSON     = errors.New("the message is not valid JSON")
)

// protocolMembers are the names that encoding/json would also accept in another case. Written otherwise they are
// refused, so that no two readers of one message can disagree about what it says.
var protocolMembers = foldedSet("jsonrpc", "id", "method", "params", "result", "error", "name", "arguments", "_meta",
	"protocolVersion", "clientInfo", "capabilities", "version", "title", "requestId", "reason", "cursor", "uri",
	"progressToken", "task", "level", "notifications", "inputResponses", "requestState",
	"io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientInfo",
	"io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel")

func foldedSet(names ...string) map[string]string {
	set := make(map[string]string, len(names))
	for _, name := range names {
		set[fold(name)] = name
	}
	return set
}

// fold maps every name that encoding/json takes for the same one to one string: case, and the letters ſ and K that
// fold to s and k.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= unicode.MaxASCII {
			return lower(r)
		}
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return lower(least)
	}, s)
}

func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

// strictLevel is one open object or array of the message.
type strictLevel struct {
	object bool
	names  []string // folded; at most maxMembers in all, so that looking through them is cheap
	name   string   // the member being read
}

// strictJSON reports why line must not be given to a decoder: it is not exactly one JSON object, is too big or deep,
// names a member twice (in any case), writes a protocol member in another case, or hides a control character in a
// name. The error never repeats anything of the line.
func strictJSON(line []byte) error {
	if len(line) > maxLine {
		return errLineTooLong
	}
	dec := jsontext.NewDecoder(bytes.NewReader(line), jsontext.AllowDuplicateNames(true)) // told apart by fold below
	switch dec.PeekKind() {
	case '{':
	case jsontext.KindInvalid:
		return errNotJSON
	default:
		return errors.New("the message is not one JSON object")
	}
	var levels []strictLevel
	members := 0
	for tokens := 0; ; tokens++ {
		tok, err := dec.ReadToken()
		if errors.Is(err, io.EOF) && len(levels) == 0 {
			return nil
		}
		if err != nil {
			return errNotJSON
		}
		if len(levels) == 0 && tokens > 0 {
			return errors.New("there is something after the JSON object")
		}
		if tokens > maxTokens {
			return errors.New("the message has too many parts")
		}
		switch tok.Kind() {
		case '{', '[':
			if len(levels) == maxDepth {
				return fmt.Errorf("the message is nested more than %d deep", maxDepth)
			}
			levels = append(levels, strictLevel{object: tok.Kind() == '{'})
			continue
		case '}', ']':
			levels = levels[:len(levels)-1]
			continue
		case '0':
			if len(tok.String()) > maxNumber {
				return errors.New("the message holds a number that is too long")
			}
		}
		top := &levels[len(levels)-1]
		if _, n := dec.StackIndex(dec.StackDepth()); !top.object || n%2 == 0 {
			continue // a value
		}
		if members++; members > maxMembers {
			return fmt.Errorf("the message has more than %d members", maxMembers)
		}
		if err := top.member(tok.String(), inArguments(levels)); err != nil {
			return err
		}
	}
}

// member takes note of a name of this object.
func (l *strictLevel) member(name string, foreign bool) error {
	if strings.ContainsFunc(name, unicode.IsControl) {
		return errors.New("a member's name holds a control character")
	}
	folded := fold(name)
	if slices.Contains(l.names, folded) {
		return errors.New("a member is named twice (names that differ only in case count as the same)")
	}
	if exact, known := protocolMembers[folded]; known && exact != name && !foreign {
		return fmt.Errorf("a member is written in the wrong case: use %q", exact)
	}
	l.names, l.name = append(l.names, folded), name
	return nil
}

// inArguments reports whether the innermost level lies inside params.arguments, whose names are the tool's own (its
// schema refuses unknown ones).
func inArguments(levels []strictLevel) bool {
	return len(levels) > 2 && levels[0].name == "params" && levels[1].name == "arguments"
}

// readLine returns the next line without its end. A line longer than max gives errLineTooLong; what is left of it
// stays unread. An unfinished last line is io.ErrUnexpectedEOF: whoever sent it did not finish saying it.
func readLine(r *bufio.Reader, max int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			line = bytes.TrimRight(line, "\r\n")
			if len(line) > max {
				return nil, errLineTooLong
			}
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(line) > max+2 {
				return nil, errLineTooLong
			}
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// skipLine reads on to the end of the line.
func skipLine(r *bufio.Reader) error {
	for {
		if _, err := r.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// cleanText is s without control, bidi and other invisible characters, and at most max bytes of it. Foreign words pass
// here before they are kept or shown.
func cleanText(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	for len(s) > max {
		_, size := lastRune(s)
		s = s[:len(s)-size]
	}
	return s
}
