package server

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"keylease/internal/lease"
	"keylease/internal/use"
)

// proxyCall is what of a request decides where it goes.
type proxyCall struct {
	handle string // "": none
	prefix string // "/l/<handle>" where the handle stood in the path
	path   string // as it was sent, without the prefix and the query
	query  string // as it was sent
}

// admissibleToProxy keeps web pages out, and requests that mean something to proxies and not to a service.
func admissibleToProxy(r *http.Request, peer *proxyPeer) *fault {
	switch {
	case !peer.local && !isLoopbackName(hostname(r.Host)): // by the socket tools call the service by its own name
		return forbidden("this Host is not served here", "Use the base URL of the lease.")
	case !originAllowed(r, nil):
		return forbidden("this Origin may not call keylease", "Call from a program and not from a web page.")
	case r.Method == http.MethodConnect:
		return badRequest(400, "CONNECT is refused: keylease passes requests to one service and is no tunnel",
			"Use the base URL of the lease instead of setting a proxy.")
	case !strings.HasPrefix(r.RequestURI, "/"):
		return badRequest(400, "the request's target is not a path: absolute URLs and * are refused", "Use the base URL of the lease instead of setting a proxy.")
	}
	for _, v := range r.Header["Upgrade"] {
		if !strings.EqualFold(strings.TrimSpace(v), "h2c") { // which a client does without
			return badRequest(501, "WebSocket and other upgrades are not passed on: what they carry can't be masked yet", "Use the service's plain HTTP or event-stream interface.")
		}
	}
	return nil
}

// readCall finds the handle: where the service's key would be, in any header, or as a prefix of the path.
func readCall(r *http.Request) (proxyCall, *fault) {
	c := proxyCall{}
	c.path, c.query, _ = strings.Cut(r.RequestURI, "?")
	if rest, ok := strings.CutPrefix(c.path, "/l/"); ok {
		if handle, rest, _ := strings.Cut(rest, "/"); isHandle(handle) {
			c.handle, c.prefix, c.path = handle, "/l/"+handle, "/"+rest
		}
	}
	if urlHoldsOurs(c.path) || urlHoldsOurs(c.query) {
		return c, badRequest(400, "the request's URL holds a handle or a token of keylease where it would be passed on", "Send the handle in a header, where the key would be, or begin the path with /l/HANDLE/.")
	}
	for name, values := range r.Header {
		if name == "Cookie" || name == "Referer" || name == "User-Agent" || name == "Origin" { // not where a key would be; see rewrite
			continue
		}
		for _, v := range values {
			for _, handle := range handlesIn(v) {
				if c.handle != "" && c.handle != handle {
					return c, badRequest(400, "the request carries more than one handle", "Send the handle of one lease, once.")
				}
				c.handle = handle
			}
		}
	}
	return c, nil
}

const (
	handleMark   = "klh_"
	handleLength = len(handleMark) + 26
)

func isHandle(s string) bool {
	if len(s) != handleLength || s[:len(handleMark)] != handleMark {
		return false
	}
	for i := len(handleMark); i < len(s); i++ {
		if c := s[i]; (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// handlesIn returns the handles in a header's value, which may be Basic authentication.
func handlesIn(v string) (all []string) {
	v = unbasic(v)
	for i := strings.Index(v, handleMark); i >= 0; i = strings.Index(v, handleMark) {
		v = v[i:]
		if len(v) >= handleLength && isHandle(v[:handleLength]) && (len(v) == handleLength || !isWord(v[handleLength])) {
			all, v = append(all, v[:handleLength]), v[handleLength:]
		} else {
			v = v[len(handleMark):]
		}
	}
	return all
}

// unbasic is user:password of Basic authentication, and any other value as it is.
func unbasic(v string) string {
	scheme, text, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return v
	}
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(text), "="))
	if err != nil {
		return v
	}
	return string(plain)
}

func isWord(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_'
}

// urlHoldsOurs reports whether a part of a URL holds a handle or a token of ours, also percent-encoded, and where other
// escapes in it make no sense.
func urlHoldsOurs(s string) bool {
	var plain strings.Builder
	for {
		before, rest, more := strings.Cut(s, "%")
		plain.WriteString(before)
		if !more {
			return holdsOurs([]string{plain.String()})
		}
		if c, err := url.PathUnescape("%" + rest[:min(2, len(rest))]); err == nil {
			plain.WriteString(c)
			rest = rest[2:]
		}
		s = rest
	}
}

// noLease is what is said to everybody whose lease is not live: it never was, it has ended, it is another user's, or no
// handle was sent.
func noLease() *fault {
	return refusing(http.StatusForbidden, lease.Refusal{Code: lease.NotAvailable, Message: "no live lease of yours answers to this request",
		Hint: "Send the api_key of a live lease where the service's key would be. If the lease has ended and the work is not done, call lease_credential again; do not look for this key elsewhere."})
}

// isGit reports whether a path is one of git's own. git does not send what it knows until it is asked: to a request of
// its that carries no handle the answer is the question, which tells nothing of any lease.
func isGit(path string) bool {
	return strings.HasSuffix(path, "/info/refs") || strings.HasSuffix(path, "/git-upload-pack") || strings.HasSuffix(path, "/git-receive-pack")
}

func gitChallenge() *fault {
	f := noLease()
	f.status, f.header = http.StatusUnauthorized, [2]string{"WWW-Authenticate", `Basic realm="keylease"`}
	return f
}

// notAllowed is what the holder of a live lease is told of a request that the lease is not for.
func notAllowed(err error) *fault {
	f := refusing(http.StatusForbidden, lease.Refusal{Code: "not_allowed", Message: err.Error()})
	if no, ok := err.(*use.Refused); ok {
		f.Message, f.Hint = no.Reason, no.Hint
	}
	return f
}

func badGateway(status int, message, hint string) *fault {
	return refusing(status, lease.Refusal{Code: "upstream_failed", Message: message, Hint: hint})
}
