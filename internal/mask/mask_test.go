package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// The keys are made up.
const (
	plainKey   = "sk-fake-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	specialKey = `p@ss+w/rd="<é☃𝄞>&'\ 7`
	pem        = "-----BEGIN FAKE KEY-----\n" +
		"MIIEfakefakefake0123456789+/abcdefghijklmnopqrstuvwxyzABCDEFGHIJ\n" +
		"KLMNOPQRSTUVWXYZ0123456789fakefakefakefake+/0123456789abcdefghij\n" +
		"c2hvcnQ=\n-----END FAKE KEY-----\n"
)

// spellings are made by the standard library and by hand, not by the code under test: name to text, and of the text the
// part that depends on the value alone.
func spellings(v string) map[string]string {
	all := map[string]string{
		"raw":          v,
		"hex":          hex.EncodeToString([]byte(v)),
		"HEX":          strings.ToUpper(hex.EncodeToString([]byte(v))),
		"query":        url.QueryEscape(v),
		"path":         url.PathEscape(v),
		"query lower":  lowerPercent(url.QueryEscape(v)),
		"url path":     (&url.URL{Path: v}).EscapedPath(),
		"url twice":    url.PathEscape(url.PathEscape(v)),
		"html":         html.EscapeString(v),
		"json":         inner(jsonOf(v, true)),
		"json no html": inner(jsonOf(v, false)),
		"json slash":   strings.ReplaceAll(inner(jsonOf(v, false)), "/", `\/`),
		"json twice":   inner(jsonOf(inner(jsonOf(v, true)), true)),
		"json of url":  inner(jsonOf(url.PathEscape(v), true)),
	}
	for phase := range 3 {
		before := strings.Repeat("u", phase)
		first, last := (8*phase+5)/6, 8*(phase+len(v))/6
		for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding} {
			text := enc.EncodeToString([]byte(before + v))[first:last]
			all[fmt.Sprintf("base64 %s %d", name, phase)] = text
			if len(v) > 20 { // as base64(1) does
				for name, br := range map[string]string{"unix": "\n", "dos": "\r\n", "json": `\n`} {
					for _, at := range []int{1, 7, 8, 19} {
						all[fmt.Sprintf("base64 %d broken at %d %s", phase, at, name)] = text[:at] + br + text[at:]
					}
				}
			}
			if name == "std" {
				all[fmt.Sprintf("base64 in query %d", phase)] = url.QueryEscape(text)
				all[fmt.Sprintf("base64 in json %d", phase)] = strings.ReplaceAll(text, "/", `\/`)
			}
		}
	}
	return all
}

func jsonOf(v string, html bool) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(html)
	_ = e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n")
}

func inner(s string) string { return s[1 : len(s)-1] }

func lowerPercent(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '%' {
			copy(b[i:], bytes.ToLower(b[i:i+3]))
		}
	}
	return string(b)
}

// pieces cuts text at places that rapid draws.
func pieces(t *rapid.T, text string) (all []string) {
	most := rapid.SampledFrom([]int{1, 3, 17, 400}).Draw(t, "most")
	for len(text) > 0 {
		n := rapid.IntRange(1, min(most, len(text))).Draw(t, "n")
		all, text = append(all, text[:n]), text[n:]
	}
	return all
}

// through sends the pieces through a Writer and a Reader, which have to agree.
func through(t *rapid.T, m *Masker, all []string) string {
	var out strings.Builder
	w := m.Writer(&out)
	readers := []io.Reader{}
	for _, p := range all {
		readers = append(readers, strings.NewReader(p))
		if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	read, err := io.ReadAll(m.Reader(io.MultiReader(readers...)))
	if err != nil || string(read) != out.String() {
		t.Fatalf("a Reader makes %q of what a Writer makes %q of (%v)", read, out.String(), err)
	}
	return out.String()
}

var values = rapid.OneOf(
	rapid.StringMatching(`[A-Za-z0-9_-]{8,60}`),
	rapid.StringMatching(`[ -~]{8,40}`),
	rapid.StringMatching(`[+/="<>&'\\é☃𝄞 a-c%]{8,30}`),
	rapid.StringMatching(`[ab]{8,12}`), // overlaps itself
	rapid.Just(plainKey), rapid.Just(specialKey), rapid.Just(pem), rapid.Just(strings.ReplaceAll(pem, "\n", "\r\n")), rapid.Just("one\r\ntwo\nthree"),
)

// TestD5NoSpellingLeavesWhole: any value, every spelling, cut anyhow. The text around is of characters that no spelling
// has, so that eight bytes in a row of the spelling in the output are the value's.
func TestD5NoSpellingLeavesWhole(t *testing.T) {
	around := rapid.StringMatching(`[\x01\x02;]{0,20}`)
	rapid.Check(t, func(t *rapid.T) {
		v := strings.TrimSpace(values.Draw(t, "value"))
		if len(v) < least {
			t.Skip("too short")
		}
		m := New([]byte(v + rapid.SampledFrom([]string{"", "\n", " \r\n"}).Draw(t, "end")))
		for name, spelled := range spellings(v) {
			if strings.ContainsAny(spelled, "\x01\x02;") && !strings.Contains(name, "html") {
				continue
			}
			before, after := around.Draw(t, "before"), around.Draw(t, "after")
			var all []string
			if rapid.Bool().Draw(t, "in pieces") {
				all = pieces(t, before+spelled+after)
			} else {
				all = []string{before + spelled + after}
			}
			out := through(t, m, all)
			if !strings.HasPrefix(out, before) || !strings.HasSuffix(out, after) {
				t.Fatalf("%s: what stands around is changed: %q in %q", name, out, before+"…"+after)
			}
			for i := 0; i+least <= len(spelled); i++ {
				if strings.Contains(strings.ReplaceAll(out, "[secret]", "\x00"), spelled[i:i+least]) {
					t.Fatalf("%s: %q shows in %q", name, spelled[i:i+least], out)
				}
			}
			if !m.Contains([]byte(before+spelled+after)) || m.String(before+spelled+after) != out {
				t.Fatalf("%s: Contains or String do not agree with a Writer", name)
			}
		}
	})
}

// TestAStreamIsMaskedAsTheWholeTextWouldBe compares with the plainest masker there is: it looks for every pattern at
// every place of the whole text. The few letters make values that overlap themselves and each other.
func TestAStreamIsMaskedAsTheWholeTextWouldBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vs := rapid.SliceOfN(rapid.StringMatching(`[ab]{8,11}|[abc]{9,20}|a{8,10}|(ab){4,6}|(aab){3,5}`), 1, 3).Draw(t, "values")
		m := &Masker{}
		for _, v := range vs {
			m.add([]byte(v), false)
		}
		m.index()
		parts := append([]string{"a", "b", "ab", "c", "\n", "aaaaaaa", "-----"}, vs...)
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom(parts)).Draw(t, "text"), "")
		if got, want := through(t, m, pieces(t, text)), plainly(text, vs); got != want {
			t.Fatalf("%q with %q:\n got %q\nwant %q", text, vs, got, want)
		}
	})
}

func plainly(text string, vs []string) string {
	var out strings.Builder
	done := 0
	for i := range text {
		end := 0
		for _, v := range vs {
			if strings.HasPrefix(text[i:], v) {
				end = max(end, i+len(v))
			} else if len(text)-i >= least && strings.HasPrefix(v, text[i:]) {
				end = len(text)
			}
		}
		if end <= done {
			if end == 0 && i >= done {
				out.WriteByte(text[i])
				done = i + 1
			}
			continue
		}
		if i >= done {
			out.WriteString("[secret]")
		}
		done = end
	}
	return out.String()
}

func TestSecretsThatOverlapAreMaskedToTheirEnd(t *testing.T) {
	m := New([]byte("abcabcabcabc"), []byte("bcabcabcabc-and-on"))
	for text, want := range map[string]string{
		"> abcabcabcabcab <":         "> [secret]ab <",
		"> abcabcabcabcabc <":        "> [secret] <",
		"> abcabcabcabc-and-on <":    "> [secret] <",
		"> abcabcabcabcabcabcabcabc": "> [secret]",
	} {
		if out := m.String(text); out != want {
			t.Errorf("%q: %q, want %q", text, out, want)
		}
	}
}

// TestTextWithoutSecretsIsUnchanged: also where it holds seven bytes of a secret.
func TestTextWithoutSecretsIsUnchanged(t *testing.T) {
	m := New([]byte(plainKey), []byte(specialKey), []byte(pem))
	b64 := base64.StdEncoding.EncodeToString([]byte(plainKey))
	parts := []string{"a", "\n", "key: ", "s", "sk-fake", specialKey[:7], pem[:24], b64[:7], b64[:3] + "\n", "%", `\`, "\r\n", "é", "\xff"}
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom(parts)).Draw(t, "text"), "|")
		text += rapid.StringMatching(`[ -~\n]{0,50}\.`).Draw(t, "more")
		if out := through(t, m, pieces(t, text)); out != text || m.Contains([]byte(text)) || m.String(text) != text {
			t.Fatalf("%q became %q", text, out)
		}
	})
}

// TestD5APEMIsMaskedLineByLine: a line of it alone, the whole with other line breaks, and from within JSON.
func TestD5APEMIsMaskedLineByLine(t *testing.T) {
	account := `{"type": "service_account", "private_key": ` + jsonOf(pem, false) + `}`
	for name, value := range map[string]string{"pem": pem, "account": account, "one line": strings.ReplaceAll(pem, "\n", `\n`)} {
		m := New([]byte(value))
		for i, line := range strings.Split(pem, "\n")[1:3] {
			for how, text := range map[string]string{
				"raw": line, "json": strings.ReplaceAll(line, "/", `\/`), "query": url.QueryEscape(line),
				"hex": hex.EncodeToString([]byte(line)), "base64": base64.StdEncoding.EncodeToString([]byte(line))[:85],
			} {
				if out := m.String("> " + text + " <"); out != "> [secret] <" {
					t.Errorf("%s, line %d, %s: %q", name, i, how, out)
				}
			}
		}
	}
	m := New([]byte(pem))
	for _, br := range []string{"\n", "\r\n", `\n`, `\\n`, `\r\n`, " ", ""} {
		if out := m.String(strings.ReplaceAll(strings.TrimSpace(pem), "\n", br)); out != "[secret]" {
			t.Errorf("with %q: %q", br, out)
		}
	}
	if text := "-----BEGIN FAKE KEY-----\nof somebody else's"; m.String(text) != text {
		t.Errorf("the first line of every PEM became %q", m.String(text))
	}
}

// TestBasicAuthenticationIsMasked: the key is a part of what is encoded, at any phase.
func TestBasicAuthenticationIsMasked(t *testing.T) {
	m := New([]byte(plainKey))
	for _, user := range []string{"", "u", "me", "bot"} {
		out := m.String("Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+plainKey)) + "\r\n")
		if !strings.Contains(out, "[secret]") || len(out) > len("Basic [secret]\r\n")+len(user)*2+6 {
			t.Errorf("user %q: %q", user, out)
		}
	}
}

// TestD5ShortSecretsDoNotBlankTheOutput: they are not masked, and whoever asks is told.
func TestD5ShortSecretsDoNotBlankTheOutput(t *testing.T) {
	text := "port 5432, user admin, 7 bytes: hunter2"
	for _, v := range []string{"5432", "admin", "hunter2"} {
		if m := New([]byte(v)); m.String(text) != text || !m.Short() {
			t.Errorf("%q: short %v, %q", v, m.Short(), m.String(text))
		}
	}
	if m := New([]byte("hunter22"), nil); m.String("hunter22") != "[secret]" || m.Short() {
		t.Errorf("8 bytes: short %v, %q", m.Short(), m.String("hunter22"))
	}
}

func TestAnEndThatCutsASecretIsMasked(t *testing.T) {
	m := New([]byte(plainKey))
	for n, want := range map[int]string{7: "> sk-fake", 8: "> [secret]", 40: "> [secret]"} {
		if out := m.String("> " + plainKey[:n]); out != want {
			t.Errorf("%d bytes: %q", n, out)
		}
		broken := m.Reader(io.MultiReader(strings.NewReader("> "+plainKey[:n]), iotest.ErrReader(io.ErrUnexpectedEOF)))
		if out, err := io.ReadAll(broken); string(out) != want || err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes and an error: %q, %v", n, out, err)
		}
	}
}

func TestAMaskerDoesNotPrintAndIsWiped(t *testing.T) {
	m := New([]byte(plainKey))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if s := fmt.Sprintf(verb, m); s != "[masker]" {
			t.Errorf("%s prints %q", verb, s)
		}
	}
	kept := m.patterns
	m.Wipe()
	for _, p := range kept[:cap(kept)] {
		if p.key != 0 || bytes.ContainsFunc(p.text, func(r rune) bool { return r != 0 }) {
			t.Fatal("a pattern is left")
		}
	}
	if m.Contains([]byte(plainKey)) {
		t.Error("a wiped Masker masks")
	}
}

// FuzzMask: what a Writer makes of a text in two pieces is what Bytes makes of the whole, and nothing of it is the value.
func FuzzMask(f *testing.F) {
	f.Add([]byte(plainKey), []byte("> "+plainKey+" <"), 9)
	f.Add([]byte("abababab"), []byte("ababababababab"), 3)
	f.Add([]byte(pem), []byte(strings.ReplaceAll(pem, "\n", `\n`)), 40)
	f.Add([]byte("a\nb\r\nc d\xff\xfe"), []byte("YQpiDQpj\nIGT//g=="), 8)
	f.Fuzz(func(t *testing.T, value, text []byte, at int) {
		if len(value) > 1000 || bytes.Contains([]byte("[secret][secret]"), value) {
			return
		}
		m := New(value)
		var out bytes.Buffer
		w := m.Writer(&out)
		at = min(max(at, 0), len(text))
		for _, p := range [][]byte{text[:at], text[at:]} {
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if whole := m.Bytes(text); !bytes.Equal(whole, out.Bytes()) {
			t.Fatalf("in two pieces %q, whole %q", &out, whole)
		}
		for _, part := range bytes.Split(out.Bytes(), []byte("[secret]")) {
			if len(value) >= least && !m.Short() && bytes.Contains(part, value) && !bytes.Contains(value, []byte("[secret]")) {
				t.Fatalf("the value is in %q", part)
			}
		}
	})
}
