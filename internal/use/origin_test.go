package use

import "testing"

func TestAKeyIsForTheAddressesOfItsUpstreamAlone(t *testing.T) {
	plan := func(u Upstream) *Plan {
		t.Helper()
		p, err := u.Plan()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	hosted := plan(Upstream{URL: "https://Git.Example.com:8443/scm", Header: "Authorization: Basic bot:{value}", Allow: []string{"* /**"}})
	plain := plan(Upstream{URL: "http://127.0.0.1:3000", Header: "Authorization: Bearer {value}", Allow: []string{"* /**"}})
	service := plan(Upstream{Service: "openai"})
	for _, c := range []struct {
		p      *Plan
		origin string
		user   string
		ok     bool
	}{
		{hosted, "https://git.example.com:8443", "bot", true},
		{hosted, "https://GIT.example.com.:8443", "bot", true},
		{hosted, "https://git.example.com", "", false},
		{hosted, "http://git.example.com:8443", "", false},
		{hosted, "https://git.example.com.evil.example:8443", "", false},
		{hosted, "https://example.com:8443", "", false},
		{plain, "http://127.0.0.1:3000", "", true},
		{plain, "https://127.0.0.1:3000", "", false},
		{service, "https://api.openai.com", "", true},
		{service, "https://api.openai.com:443", "", true},
		{service, "https://api.openai.com:444", "", false},
		{nil, "https://api.openai.com", "", false},
	} {
		o, err := ParseOrigin(c.origin)
		if err != nil {
			t.Fatal(err)
		}
		if user, ok := c.p.At(o); user != c.user || ok != c.ok {
			t.Errorf("%s: %q %v, want %q %v", c.origin, user, ok, c.user, c.ok)
		}
	}
	o, _ := ParseOrigin("https://api.openai.com")
	if _, ok := Lookup("openai").At(o); !ok {
		t.Error("a service is not at its own address")
	}
	if _, ok := Lookup("none").At(o); ok {
		t.Error("a service that is not there has an address")
	}
}

func TestAnOriginIsSchemeAndHostAlone(t *testing.T) {
	for _, s := range []string{"", "github.com", "ssh://github.com", "https://", "https://github.com/", "https://github.com/x", "https://a@github.com",
		"https://github.com?x", "https://github.com#x", "https:github.com", "https://git hub.com", "https://gıthub.com", "https://github.com:x", "https://github.com\n"} {
		if o, err := ParseOrigin(s); err == nil {
			t.Errorf("%q is read as %v", s, o)
		}
	}
}
