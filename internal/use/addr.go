package use

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// dialing is which addresses the name of an upstream may be resolved to. The zero dialing: public ones.
type dialing struct {
	only     netip.Addr // the url names this address itself
	loopback bool       // the url names localhost
	private  bool       // the admin says that the name has a private address
}

// address reads the url that the admin wrote; nil where there is none or it is faulty.
func (p *Plan) address(u Upstream, s *Service, bad func(string, ...any)) *url.URL {
	if u.URL == "" {
		if u.Private {
			bad("private is about the host in url, and there is none", "private")
		}
		return nil
	}
	base, err := url.Parse(u.URL)
	switch {
	case err != nil || base.Opaque != "" || base.Host == "" || base.Hostname() == "" || strings.ContainsAny(u.URL, "{}"):
		text := "url must be a URL such as https://api.example.com"
		if strings.Contains(u.URL, valueMark) {
			text = "keys are never put into URLs, which are logged everywhere: write {value} in header"
		}
		bad(text, "url")
		return nil
	case base.Scheme != "https" && base.Scheme != "http":
		bad("url must begin with https:// (or http://, which anybody between can read)", "url")
	case base.User != nil:
		bad("url must hold no user or password: write the key's place in header", "url")
	case base.RawQuery != "" || base.ForceQuery || base.Fragment != "":
		bad("url must hold no ? or #", "url")
	case !isHost(base.Hostname()):
		bad("the host in url must be a name or an address, in plain ASCII", "url")
	}
	if path := strings.TrimSuffix(base.EscapedPath(), "/"); path != "" {
		if segs, refused := segments(path); refused != nil {
			bad("url: "+refused.Reason, "url")
		} else if "/"+strings.Join(segs, "/") != path || strings.Contains(path, "%2F") {
			bad("the path in url must be written plainly, without encoded characters", "url")
		}
	}
	base.Host = strings.ToLower(base.Host)
	if s == nil && u.Service == "" {
		if known := serviceAt(base.Hostname()); known != "" {
			bad("this is the address of a service in the catalogue: write service: "+known+", with header and allow where they differ", "url")
		}
	}
	p.dial = dialing{private: u.Private}
	if ip, err := netip.ParseAddr(base.Hostname()); err == nil {
		p.dial.only = ip.Unmap().WithZone("")
	} else if name := strings.TrimSuffix(base.Hostname(), "."); name == "localhost" || strings.HasSuffix(name, ".localhost") {
		p.dial.loopback = true
	}
	return base
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	digits := true
	for i := range len(s) {
		c := s[i]
		if c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c == '-' {
			digits = false
		} else if c != '.' && (c < '0' || c > '9') {
			return false
		}
	}
	return !digits && len(s) <= 253 // 127.1 and 2130706433 are addresses to some resolvers
}

// apart are addresses that no public service has, beside those that netip has a word for.
var apart = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("fec0::/10"),
}

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !a.IsLoopback() && !a.IsLinkLocalUnicast() &&
		!slices.ContainsFunc(apart, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (d dialing) check(a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("the upstream's address is not one")
	}
	a = a.Unmap().WithZone("")
	switch {
	case d.only.IsValid():
		if a != d.only {
			return fmt.Errorf("the upstream's address is not the one in its url")
		}
		return nil
	case d.loopback:
		if !a.IsLoopback() {
			return fmt.Errorf("localhost leads to an address that is not this machine's own")
		}
		return nil
	case public(a), d.private && a.IsPrivate():
		return nil
	}
	return fmt.Errorf("the upstream's name leads to an address that is not public; if that is meant, write private: true, or the address itself in url")
}
