package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"
)

// spell adds every spelling of a value: as it is, escaped as text, base64, hex; then those of its lines. What stands
// around a value, a line break mostly, is no secret: it is seldom printed with it.
func (m *Masker) spell(value []byte) {
	if len(value) < least {
		return
	}
	unix := bytes.ReplaceAll(value, []byte("\r\n"), []byte("\n"))
	whole := [][]byte{
		value,
		unix,
		bytes.ReplaceAll(unix, []byte("\n"), []byte("\r\n")),
		[]byte(string([]rune(string(value)))), // what most encoders of JSON make of a value that is not UTF-8
	}
	for i, v := range whole {
		if !has(whole[:i], v) {
			m.text(v)
			m.codes(v, true)
		}
	}
	for _, br := range []string{" ", ""} { // as echo $KEY has it, and as tools do that want base64 without breaks
		m.add(bytes.ReplaceAll(unix, []byte("\n"), []byte(br)), false)
	}
	for _, l := range lines(value) {
		m.text(l)
		m.codes(l, false)
	}
}

func has(all [][]byte, v []byte) bool {
	return slices.ContainsFunc(all, func(w []byte) bool { return bytes.Equal(v, w) })
}

// lineLeast is the length under which a line of a value is not masked by itself: "{", "}," and "[default]" are no secrets.
const lineLeast = 16

// lines are what of a value of several lines is masked by itself. A PEM inside of JSON, or in a variable, has its line
// breaks as `\n`: those part lines too. A PEM's first and last line are the same in every PEM.
func lines(value []byte) (all [][]byte) {
	for _, l := range bytes.Split(bytes.ReplaceAll(value, []byte(`\n`), []byte("\n")), []byte("\n")) {
		l = bytes.TrimSpace(bytes.ReplaceAll(l, []byte(`\r`), nil))
		if len(l) >= lineLeast && len(l) < len(value) && !bytes.Contains(l, []byte("-----")) {
			all = append(all, l)
		}
	}
	return all
}

// add takes over b, one spelling.
func (m *Masker) add(b []byte, wraps bool) {
	if len(b) >= least {
		m.patterns = append(m.patterns, pattern{binary.BigEndian.Uint64(b), b, wraps})
	}
}

// text adds v as text, escaped in every form, and escaped twice in usual ones.
func (m *Masker) text(v []byte) {
	m.add(bytes.Clone(v), false)
	if !slices.ContainsFunc(v, special) {
		return
	}
	forms, usual := escapes()
	for _, once := range distinct(forms, v) {
		m.add(once, false)
	}
	for _, once := range distinct(usual, v) {
		m.escaped(once)
	}
}

// escaped adds what v becomes in usual forms.
func (m *Masker) escaped(v []byte) {
	_, usual := escapes()
	for _, twice := range distinct(usual, v) {
		m.add(twice, false)
	}
}

// distinct are the ways in which fs escape v, other than v itself.
func distinct(fs []*form, v []byte) (all [][]byte) {
	for _, f := range fs {
		if b := f.apply(v); b != nil && !has(all, b) {
			all = append(all, b)
		}
	}
	return all
}

// codes adds v in base64 and hex, and as escapes of every byte. With wraps they may be broken into lines.
func (m *Masker) codes(v []byte, wraps bool) {
	for phase := range 3 {
		std := inBase64(v, phase)
		m.code(std, wraps)
		if bytes.ContainsAny(std, "+/") {
			m.code([]byte(strings.NewReplacer("+", "-", "/", "_").Replace(string(std))), wraps)
			m.escaped(std)
		}
	}
	lower := hex.AppendEncode(nil, v)
	m.code(lower, wraps)
	m.code(bytes.ToUpper(lower), wraps)
	for _, digits := range []string{"0123456789abcdef", "0123456789ABCDEF"} {
		for _, mark := range []string{`\x`, `%`} {
			var b []byte
			for _, c := range v {
				b = append(append(b, mark...), digits[c>>4], digits[c&15])
			}
			m.add(b, false)
		}
	}
}

// inBase64 is what depends on v alone, and not on its neighbours, where v begins at a byte that is phase after a multiple
// of three: of the first and the last byte up to four bits are in characters that are left out. Padding is not part of it.
func inBase64(v []byte, phase int) []byte {
	all := base64.RawStdEncoding.AppendEncode(nil, append(make([]byte, phase), v...))
	return all[(8*phase+5)/6 : 8*(phase+len(v))/6]
}

// code adds b, in base64 or hex. base64(1), PEM, MIME and xxd -p break lines. Breaks after the eighth character are seen
// to in ends; for those before, each is a pattern.
func (m *Masker) code(b []byte, wraps bool) {
	m.add(b, wraps)
	for i := 1; wraps && i < least; i++ {
		for _, br := range lineBreaks {
			m.add(slices.Concat(b[:i], []byte(br), b[i:]), true)
		}
	}
}

var lineBreaks = [...]string{"\n", "\r\n", `\n`}

// lineBreak is the length of the line break, or the part of one, that b is or begins with.
func lineBreak(b []byte) int {
	for _, br := range lineBreaks {
		if n := min(len(b), len(br)); string(b[:n]) == br[:n] {
			return n
		}
	}
	return 0
}

// form says how a text is escaped: what stands for each byte of ASCII ("" for itself), and for the others.
type form struct {
	ascii [utf8.RuneSelf]string
	other func(b []byte, r rune, raw []byte) []byte // nil: as they are
}

// apply returns v escaped, nil if it is the same.
func (f *form) apply(v []byte) []byte {
	b, changed := make([]byte, 0, len(v)+len(v)/2), false
	for len(v) > 0 {
		r, n := utf8.DecodeRune(v)
		switch {
		case r < utf8.RuneSelf && f.ascii[r] != "":
			b, changed = append(b, f.ascii[r]...), true
		case r >= utf8.RuneSelf && f.other != nil:
			b, changed = f.other(b, r, v[:n]), true
		default:
			b = append(b, v[:n]...)
		}
		v = v[n:]
	}
	if !changed {
		return nil
	}
	return b
}
