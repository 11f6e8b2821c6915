package lease

import (
	"context"
	"slices"
	"strings"
	"testing"

	"keylease/internal/identity"
	"keylease/policy"
)

// TestEachCallerIsOfferedWhatItCanUse: least exposing first, and the list, the grant and the refusal agree.
func TestEachCallerIsOfferedWhatItCanUse(t *testing.T) {
	w := newWorld(t)
	w.service("service")
	w.put("plain", "sk-fake-plain", policy.CredentialPolicy{})
	w.put("spoken", "sk-fake-spoken", policy.CredentialPolicy{Delivery: []policy.Delivery{policy.Value}})
	local := w.agent("local")
	web := identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "web", Proof: identity.Token, By: "uid:1"}, Transport: "http"}
	far := web
	far.Remote = true
	for _, c := range []struct {
		who  string
		by   identity.Caller
		what string
		open []policy.Delivery
		gets policy.Delivery
	}{
		{"a local caller", local, "service", policy.Deliveries(), policy.Proxy},
		{"a local caller", local, "plain", []policy.Delivery{policy.Exec, policy.Value}, policy.Value},
		{"a local caller", local, "spoken", []policy.Delivery{policy.Value}, policy.Value},
		{"a caller over HTTP", web, "service", []policy.Delivery{policy.Proxy, policy.Value}, policy.Proxy},
		{"a caller over HTTP", web, "plain", []policy.Delivery{policy.Value}, policy.Value},
		{"a caller from elsewhere", far, "service", []policy.Delivery{policy.Value}, policy.Value},
	} {
		page, err := w.List(context.Background(), c.by, ListRequest{Match: c.what})
		if err != nil || len(page.Credentials) != 1 || !slices.Equal(page.Credentials[0].Deliveries, c.open) {
			t.Errorf("%s is shown %v of %s (%v), want %v", c.who, page.Credentials, c.what, err, c.open)
		}
		g := w.leaseBy(c.by, c.what, "")
		if g.Delivery != c.gets || !slices.Equal(g.Open, c.open) {
			t.Errorf("%s got %s by %s, of %v; want %s of %v", c.who, c.what, g.Delivery, g.Open, c.gets, c.open)
		}
		for _, way := range policy.Deliveries() {
			g, err := w.Lease(context.Background(), c.by, Request{Credential: c.what, Delivery: way})
			if slices.Contains(c.open, way) {
				if err != nil || g.Delivery != way {
					t.Errorf("%s asked for %s by %s: %v %v", c.who, c.what, way, g.Delivery, err)
				}
				continue
			}
			r := wantCode(t, err, DeliveryUnavailable)
			if !strings.HasPrefix(r.Message, string(way)+" is not open to you here: ") || !strings.Contains(r.Hint, "Open to you: "+wayList(c.open)+".") {
				t.Errorf("%s, %s by %s: %q %q", c.who, c.what, way, r.Message, r.Hint)
			}
		}
	}
}

// TestARefusedDeliverySaysWhyAndWhoseTheRemedyIs: in words, and the operator's remedy where there is one.
func TestARefusedDeliverySaysWhyAndWhoseTheRemedyIs(t *testing.T) {
	w := newWorld(t)
	w.service("service")
	w.put("plain", "sk-fake-plain", policy.CredentialPolicy{})
	w.put("unseen", "sk-fake-unseen", policy.CredentialPolicy{Delivery: []policy.Delivery{policy.Proxy, policy.Exec}})
	local := w.agent("local")
	web := identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "web", Proof: identity.Token, By: "uid:1"}, Transport: "http"}
	far := web
	far.Remote = true
	for _, c := range []struct {
		by           identity.Caller
		what         string
		way          policy.Delivery
		says, remedy string
	}{
		{local, "plain", policy.Proxy, "no upstream", "keylease put … --service"},
		{far, "service", policy.Proxy, "you call from another", "Open to you: value."},
		{web, "service", policy.Exec, "local socket alone", "Open to you: proxy, value."},
		{local, "unseen", policy.Value, "the policy does not allow it", "Open to you: exec."},
		{web, "unseen", "", "no upstream, which says to which service it may go; exec is not open", "Ask the operator"},
	} {
		_, err := w.Lease(context.Background(), c.by, Request{Credential: c.what, Delivery: c.way})
		r := wantCode(t, err, DeliveryUnavailable)
		if !strings.Contains(r.Message, c.says) || !strings.Contains(r.Hint, c.remedy) {
			t.Errorf("%s by %q: %q %q", c.what, c.way, r.Message, r.Hint)
		}
	}
}
