package server

import (
	"context"
	"maps"
	"net/http"
	"net/textproto"
	"strings"
)

// notPassedOn are request headers beside those that a plan names. Cookie, Referer and Origin are a browser's, Range would
// cut a key in two, Expect is answered here, and an Upgrade would take the upstream's connection out of the masking and is
// an error to HTTP/2. What else is in it is between the client and us.
var notPassedOn = map[string]bool{"Cookie": true, "Cookie2": true, "Referer": true, "Origin": true, "Range": true, "If-Range": true, "Expect": true, "Te": true,
	"Via": true, "Forwarded": true, "Http2-Settings": true, "Alt-Used": true, "Accept-Encoding": true, "X-Method": true, "X-Override-Url": true, "Max-Forwards": true,
	"Content-Location": true, "Connection": true, "Upgrade": true, "Dnt": true, "Early-Data": true, "Cf-Connecting-Ip": true, "X-Cluster-Client-Ip": true}

var notPassedOnPrefixes = [...]string{"Proxy-", "X-Forwarded-", "X-Original-", "X-Rewrite-", "X-Http-Method", "X-Method-Over", "Sec-Fetch-", "Access-Control-", "X-Keylease-"}

// outgoing makes of the client's request the one that the upstream gets.
func (t *passing) outgoing(ctx context.Context) (*http.Request, error) {
	to := t.Target.URL
	to.RawQuery = t.call.query
	out := (&http.Request{Method: t.Target.Method, URL: to, Host: to.Host, Header: maps.Clone(t.in.Header),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	h := out.Header
	for _, name := range t.Lease.Plan.Drop() {
		delete(h, name)
	}
	for _, name := range t.Lease.Plan.Carriers() {
		delete(h, name)
	}
	dropHops(h)
	for name, values := range h {
		if !passesOn(name) || holdsOurs(values) {
			delete(h, name)
		}
	}
	h["Accept-Encoding"] = []string{"identity"} // what is masked is the text itself, and a stream is not held up
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // else net/http would name itself
	}
	if err := t.Target.Slot.Set(h, t.Value.Bytes()); err != nil {
		return nil, slotError{err}
	}
	return out, nil
}

// dropHops drops what belongs to one connection, and what its Connection header says does.
func dropHops(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			delete(h, textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)))
		}
	}
	for _, name := range hops {
		delete(h, name)
	}
}

var hops = [...]string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// passesOn reports whether a header of this name may go upstream. Some servers take _ for -, so that a name with one
// could be any of those that are dropped.
func passesOn(name string) bool {
	if notPassedOn[name] || textproto.CanonicalMIMEHeaderKey(name) != name {
		return false
	}
	for _, prefix := range notPassedOnPrefixes {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	for i := range len(name) {
		if c := name[i]; c != '-' && (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// holdsOurs reports whether a header holds a handle or a token of ours, which are nobody else's business.
func holdsOurs(values []string) bool {
	for _, v := range values {
		if v = unbasic(v); strings.Contains(v, handleMark) {
			return true
		}
		for i := strings.Index(v, "kl_"); i >= 0; i = strings.Index(v, "kl_") {
			if v = v[i+3:]; len(v) >= 40 && strings.IndexFunc(v[:40], func(r rune) bool { return !isWord(byte(r)) }) < 0 {
				return true
			}
		}
	}
	return false
}
