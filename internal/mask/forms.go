package mask

import (
	"fmt"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

const lower, upper = "%02x", "%02X"

// What URL encoders leave as it is, beside letters and digits. "" is in all of them.
const (
	unreserved = "-_.~"                 // RFC 3986: Go's QueryEscape, Python's quote_plus, curl
	formData   = "-_.*"                 // Java's URLEncoder, URLSearchParams
	component  = "-_.~!'()*"            // encodeURIComponent
	wholeURI   = "-_.~!'()*;/?:@&=+$,#" // encodeURI
	segment    = "-_.~$&+=:@"           // Go's PathEscape
	goPath     = "-_.~$&+,/:;=@"        // Go's URL.EscapedPath
	pyPath     = "-_.~/"                // Python's quote
	userinfo   = "-_.~$&+,;="           // Go's Userinfo
	whatwgUser = "-_.~!$%&'()*+,"       // URL().password
)

// escapes are all ways to escape a text that are looked for, and those usual ones that are looked for twice over, and in
// base64. They are made when the first Masker is: a relay needs none.
var escapes = sync.OnceValues(func() (all, usual []*form) {
	for _, digits := range []string{lower, upper} {
		for _, keep := range []string{unreserved, formData, component, wholeURI, segment, goPath, pyPath, userinfo, whatwgUser} {
			all = append(all, inURL(keep, "", digits), inURL(keep, "+", digits))
		}
		for _, html := range []string{"", "<>&", "<>&'", `<>&'"`, "<>&'\"+`"} {
			for _, slash := range []string{"", `\/`} {
				all = append(all, inJSON(html, slash, digits, false), inJSON(html, slash, digits, true))
			}
		}
		usual = append(usual, inURL(component, "", digits), inURL(pyPath, "", digits), inURL(segment, "", digits),
			inJSON("<>&'\"+`", "", digits, false)) // the last is .NET's
	}
	usual = append(usual, inJSON("", "", lower, false), inJSON("<>&", "", lower, false), inJSON("", `\/`, lower, false))
	return append(all,
		pairs("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;"),
		pairs("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;"),
		pairs("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;"),
		pairs("&", "&amp;", "<", "&lt;", ">", "&gt;"),
		pairs("'", `'\''`),  // set -x of sh and bash
		pairs("'", `'"'"'`), // Python's shlex.quote
		pairs(`"`, `\"`, "$", `\$`, "`", "\\`", `\`, `\\`),              // declare -p, export -p
		pairs("'", `\'`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`), // repr, $'…'
		backslash(" !\"#$&'()*,;<>?[\\]^`{|}"),                          // printf %q
	), usual
})

// special says that some form changes c.
func special(c byte) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
}

// inURL is percent-encoding of all but keep; space is what stands for a space, "" for %20.
func inURL(keep, space, digits string) *form {
	f := &form{other: func(b []byte, _ rune, raw []byte) []byte {
		for _, c := range raw {
			b = fmt.Appendf(b, "%%"+digits, c)
		}
		return b
	}}
	for c := range byte(utf8.RuneSelf) {
		if (special(c) || c == '-' || c == '_' || c == '.') && strings.IndexByte(keep, c) < 0 {
			f.ascii[c] = fmt.Sprintf("%%"+digits, c)
		}
	}
	if space != "" {
		f.ascii[' '] = space
	}
	return f
}

// inJSON escapes for a JSON string what has to be, html as \u00xx, a slash as told, and with ascii all beyond ASCII.
func inJSON(html, slash, digits string, ascii bool) *form {
	f := pairs(`"`, `\"`, `\`, `\\`, "/", slash, "\b", `\b`, "\f", `\f`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
	for c := range byte(utf8.RuneSelf) {
		if c < ' ' && f.ascii[c] == "" || c == 0x7f && ascii || strings.IndexByte(html, c) >= 0 {
			f.ascii[c] = fmt.Sprintf(`\u00`+digits, c)
		}
	}
	if ascii {
		f.other = func(b []byte, r rune, _ []byte) []byte {
			for _, u := range utf16.Encode([]rune{r}) {
				b = fmt.Appendf(b, `\u`+digits+digits, u>>8, u&0xff)
			}
			return b
		}
	}
	return f
}

// pairs escapes one character as the string after it.
func pairs(fromTo ...string) *form {
	f := &form{}
	for i := 0; i < len(fromTo); i += 2 {
		f.ascii[fromTo[i][0]] = fromTo[i+1]
	}
	return f
}

// backslash puts one before each of set.
func backslash(set string) *form {
	f := &form{}
	for _, c := range []byte(set) {
		f.ascii[c] = `\` + string(rune(c))
	}
	return f
}
