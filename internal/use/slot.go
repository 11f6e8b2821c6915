package use

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// valueMark is where the key goes in a header.
const valueMark = "{value}"

// Slot is the header in which a service takes its key. URLs are never slots: they are logged everywhere.
type Slot struct {
	Header        string // canonical name
	before, after string
	basic         bool // what is around the value, and it, are base64-encoded as user:password
}

// Set puts the key where the service wants it, in place of all that was there. The error says that the value can't
// be sent in a header, and does not repeat it.
func (s Slot) Set(h http.Header, value []byte) error {
	if s.Header == "" {
		return fmt.Errorf("there is no header to put the key into")
	}
	text := s.before + string(value) + s.after
	switch {
	case s.basic:
		text = "Basic " + base64.StdEncoding.EncodeToString([]byte(text))
	case strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return fmt.Errorf("the credential's value holds a control character, which no header can carry")
	}
	h[s.Header] = []string{text}
	return nil
}

// notSlots are headers that say something to proxies and connections, or that keylease sets.
var notSlots = []string{"Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Connection", "Upgrade", "Te", "Trailer", "Keep-Alive",
	"Expect", "Accept-Encoding", "Range", "Forwarded", "Via", "Date"}

// parseSlot reads "Name: text {value} text". "Authorization: Basic user:{value}" is base64-encoded by keylease.
func parseSlot(s string) (Slot, error) {
	name, text, ok := strings.Cut(s, ":")
	text = strings.TrimSpace(text)
	switch {
	case !ok || text == "":
		return Slot{}, fmt.Errorf(`write the header's name and text, as in "Authorization: Bearer {value}"`)
	case !isHeaderName(name):
		return Slot{}, fmt.Errorf("the header's name can hold letters, digits and - alone")
	case strings.Count(text, valueMark) != 1:
		return Slot{}, fmt.Errorf("the header must hold {value} once: there the key goes")
	case strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r >= 0x7f }):
		return Slot{}, fmt.Errorf("the header must be plain ASCII text")
	}
	slot := Slot{Header: textproto.CanonicalMIMEHeaderKey(name)}
	if slices.Contains(notSlots, slot.Header) || strings.HasPrefix(slot.Header, "Proxy-") || strings.HasPrefix(slot.Header, "X-Forwarded-") {
		return Slot{}, fmt.Errorf("this header says something else than a key")
	}
	if scheme, userinfo, _ := strings.Cut(text, " "); strings.EqualFold(scheme, "Basic") && strings.Contains(userinfo, ":") {
		slot.basic, text = true, strings.TrimSpace(userinfo)
	}
	slot.before, slot.after, _ = strings.Cut(text, valueMark)
	return slot, nil
}

func isHeaderName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '-' && (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// Carriers are the request headers, in canonical form, in which a client may send the handle. All of them are taken out of
// a request before the key is put in. The list is the Plan's own.
func (p *Plan) Carriers() []string {
	if p == nil {
		return carriersOf(nil)
	}
	return p.carriers
}

func carriersOf(p *Plan) []string {
	set := map[string]bool{}
	for _, name := range Carriers() {
		set[name] = true
	}
	if p != nil {
		for _, h := range p.hosts {
			set[h.slot.Header] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}
