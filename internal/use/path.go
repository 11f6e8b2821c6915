package use

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a path may have that is passed on: bytes, and segments, since rules are held against each of its beginnings.
const (
	MaxPath     = 8 << 10
	MaxSegments = 128
)

// methods are the ones that pass. CONNECT and TRACE make something else of a proxy than a way to one service.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// Kind sorts what is refused.
type Kind string

const (
	Malformed  Kind = "malformed"   // it could mean one thing here and another at the service
	NotAllowed Kind = "not_allowed" // no rule of the credential allows it
	Guarded    Kind = "guarded"     // it is kept apart, and no rule names it
)

// Refused says why a request is not passed on, and what to do. It repeats nothing of the request but a method that is
// known and the credential's own rules, so that a key in a URL is not repeated either.
type Refused struct {
	Kind   Kind
	Reason string
	Hint   string
}

func (r *Refused) Error() string { return r.Reason }

func malformed(reason string) *Refused {
	return &Refused{Malformed, reason, "Write the path plainly: segments with single / between them, and %XX only for characters that need it."}
}

func checkMethod(method string) *Refused {
	switch {
	case slices.Contains(methods, method):
		return nil
	case method == "CONNECT":
		return &Refused{Malformed, "CONNECT is refused: keylease passes requests to one service and is no tunnel", "Use the base URL of the lease instead of setting a proxy."}
	}
	return &Refused{Malformed, "the method is not one that keylease passes on: " + strings.Join(methods, ", "), "Use one of these, in upper case."}
}

// segments reads the path of a request, as it came over the wire, into the one form that is matched and sent: each
// segment is percent-encoded as RFC 3986 has it (unreserved characters bare, hex in upper case). What readers of paths
// have been found to disagree on is refused, not repaired. An encoded slash stays %2F inside its segment; who calls
// says where one may be. A path that ends in / has an empty last segment.
func segments(path string) ([]string, *Refused) {
	switch {
	case len(path) > MaxPath:
		return nil, malformed("the path is longer than 8 KiB")
	case path == "" || path[0] != '/':
		return nil, malformed("the path does not begin with /: absolute URLs and * are refused")
	}
	raw := strings.Split(path[1:], "/")
	if len(raw) > MaxSegments {
		return nil, malformed(fmt.Sprintf("the path has more than %d parts", MaxSegments))
	}
	segs := make([]string, len(raw))
	for i, s := range raw {
		seg, refused := segment(s)
		if refused != nil {
			return nil, refused
		}
		if seg == "" && i < len(raw)-1 {
			return nil, malformed("the path holds // or an empty segment")
		}
		segs[i] = seg
	}
	return segs, nil
}

const upperHex = "0123456789ABCDEF"

func segment(s string) (string, *Refused) {
	var out strings.Builder
	var bytes []byte // the segment decoded, to see whether it is text
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '%' {
			if why := bare(c); why != "" {
				return "", malformed(why)
			}
			out.WriteByte(c)
			bytes = append(bytes, c)
			continue
		}
		if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			return "", malformed("the path holds a % that two hex digits do not follow")
		}
		c = unhex(s[i+1])<<4 | unhex(s[i+2])
		i += 2
		if why := encoded(c); why != "" {
			return "", malformed(why)
		}
		bytes = append(bytes, c)
		if unreserved(c) {
			out.WriteByte(c)
			continue
		}
		out.WriteByte('%')
		out.WriteByte(upperHex[c>>4])
		out.WriteByte(upperHex[c&15])
	}
	if why := text(bytes); why != "" {
		return "", malformed(why)
	}
	seg := out.String()
	for part := range strings.SplitSeq(seg, "%2F") {
		if part != "" && strings.Trim(part, ".") == "" {
			return "", malformed("the path holds a segment of dots")
		}
		if part == "" && seg != "" {
			return "", malformed("the path holds an encoded slash with nothing on one side")
		}
	}
	return seg, nil
}

// bare says why c can't stand in a path as it is; "" when it can.
func bare(c byte) string {
	switch {
	case unreserved(c) || strings.IndexByte("!$&'()*+,=:@", c) >= 0:
		return ""
	case c == '\\':
		return `the path holds a \, which some servers read as /`
	case c == ';':
		return "the path holds a ;, after which some servers read no further"
	case c == '?' || c == '#':
		return "the path holds a ? or #"
	case c < 0x20 || c == 0x7f:
		return "the path holds a control character"
	case c >= 0x80:
		return "the path holds a byte that is not ASCII: percent-encode it"
	}
	return "the path holds a character that has to be percent-encoded"
}

// encoded says why c can't stand in a path percent-encoded; "" when it can.
func encoded(c byte) string {
	switch {
	case c == '.':
		return "the path holds an encoded dot (%2E)"
	case c == '\\':
		return "the path holds an encoded backslash (%5C)"
	case c == '%':
		return "the path holds an encoded % (%25): it would be decoded twice"
	case c == ';' || c == '?' || c == '#':
		return "the path holds an encoded ; ? or #, after which some servers read no further"
	case c < 0x20 || c == 0x7f:
		return "the path holds an encoded control character"
	}
	return ""
}

// text refuses what is not UTF-8 (an overlong dot is not) and, beyond ASCII, all but letters, marks and digits: among the
// signs are those that some servers take for a dot or a slash.
func text(b []byte) string {
	if !utf8.Valid(b) {
		return "the path holds bytes that are not UTF-8 text"
	}
	for _, r := range string(b) {
		wide := r >= 0xff00 && r <= 0xffef
		if r >= 0x80 && (wide || !unicode.IsLetter(r) && !unicode.IsMark(r) && !unicode.IsNumber(r)) {
			return "the path holds a sign that some servers read as another"
		}
	}
	return ""
}

func unreserved(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// keyParams are names under which services take a key from a URL: there it would stand in their logs. overrides are
// names under which some take another method than the one that the rules were asked about.
var (
	keyParams = []string{"access_token", "private_token", "job_token", "oauth_token", "api_key", "apikey", "api-key", "x-api-key", "token",
		"auth_token", "authorization", "client_secret"}
	overrides = []string{"_method", "_httpmethod", "x-http-method-override", "x-method-override", "_http_method", "$httpmethod", "http_method"}
	tenants   = []string{"sudo"} // GitLab: act as another user
)

// asRead is a parameter's name as the most generous server reads it: case and the spaces around it do not count, nor what
// follows a [ or, to PHP, a NUL; PHP takes a dot, a space or a [ at the beginning for an underscore.
func asRead(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(name)), "\x00")
	if strings.HasPrefix(name, "[") {
		name = "_" + name[1:]
	}
	name, _, _ = strings.Cut(name, "[")
	return strings.NewReplacer(".", "_", " ", "_").Replace(name)
}

// CheckQuery refuses a query that carries a key or another method than the request's. All else of a query is no part of
// the rules and is passed on as it came.
func CheckQuery(raw string) error {
	if len(raw) > 4*MaxPath {
		return &Refused{Malformed, "the query is longer than 32 KiB", "Send what is long in the body."}
	}
	for i := range len(raw) {
		if c := raw[i]; c <= 0x20 || c == 0x7f || c >= 0x80 || c == '#' {
			return &Refused{Malformed, "the query holds a space, a #, a control character or a byte that is not ASCII", "Percent-encode it."}
		}
	}
	for pair := range strings.FieldsFuncSeq(raw, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		if err != nil {
			return &Refused{Malformed, "the query holds a % that two hex digits do not follow", "Percent-encode it as %25."}
		}
		plain = asRead(plain)
		switch {
		case slices.Contains(overrides, plain):
			return &Refused{Malformed, "the query asks for another method than the request's own", "Send the request with the method that you mean."}
		case slices.Contains(tenants, plain):
			return &Refused{Malformed, "the query asks to act as somebody else", "Leave that parameter out."}
		case slices.Contains(keyParams, plain):
			return &Refused{Malformed, "the query carries a key; keylease puts keys into headers only", "Leave that parameter out: send the handle in a header, where the key would be."}
		}
	}
	return nil
}
