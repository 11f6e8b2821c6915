package use

import (
	"fmt"
	"net/url"
	"strings"
)

// ParseOrigin reads scheme://host[:port], as programs that sign in somewhere say where.
func ParseOrigin(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !isHost(u.Hostname()) || u.Opaque != "" || u.User != nil ||
		u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fmt.Errorf("the address must be https:// and a host, with a port where it is not the usual one")
	}
	return u, nil
}

// At reports whether the upstream has an address at origin, and as which user one signs in there with the key; "" where
// the key goes without one.
func (p *Plan) At(origin *url.URL) (user string, ok bool) {
	if p == nil {
		return "", false
	}
	return signIn(p.hosts, origin)
}

// At is as Plan's, for the service's own addresses. A nil Service has none.
func (s *Service) At(origin *url.URL) (user string, ok bool) {
	if s == nil {
		return "", false
	}
	hosts := make([]host, len(s.hosts))
	for i, h := range s.hosts {
		hosts[i] = h.host
	}
	return signIn(hosts, origin)
}

func signIn(hosts []host, origin *url.URL) (user string, ok bool) {
	for _, h := range hosts {
		if SameOrigin(h.base, origin) {
			ok = true
			if user = h.slot.user(); user != "" {
				return user, true
			}
		}
	}
	return "", ok
}

// SameOrigin reports whether two addresses are one scheme, host and port.
func SameOrigin(a, b *url.URL) bool {
	name := func(u *url.URL) string { return strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")) }
	return a.Scheme == b.Scheme && name(a) == name(b) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"https": "443", "http": "80"}[u.Scheme]
}

// user is the one that the slot sends along with the key; "": none.
func (s Slot) user() string {
	if !s.basic {
		return ""
	}
	user, _, _ := strings.Cut(s.before, ":")
	return user
}
