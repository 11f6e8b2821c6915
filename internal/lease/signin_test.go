package lease

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"keylease/internal/secret"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

func (w *world) signsIn(name string, metadata map[string]string, u *use.Upstream, p policy.CredentialPolicy) {
	w.t.Helper()
	if _, err := w.Put(context.Background(), operator, NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte("sk-fake-" + name)),
		Metadata: metadata, Upstream: u, Policy: p}); err != nil {
		w.t.Fatal(err)
	}
}

// TestAProgramIsGivenAKeyForTheOperatorsAddressesAlone: a program that does as it is told would send it anywhere.
func TestAProgramIsGivenAKeyForTheOperatorsAddressesAlone(t *testing.T) {
	w := newWorld(t)
	w.signsIn("by-host", map[string]string{"host": "git.example.com", "username": "bot"}, nil, policy.CredentialPolicy{})
	w.signsIn("by-service", map[string]string{"service": "openai"}, nil, policy.CredentialPolicy{})
	w.signsIn("by-upstream", nil, &use.Upstream{URL: "https://code.example.com:8443", Header: "Authorization: Basic ci:{value}", Allow: []string{"* /**"}}, policy.CredentialPolicy{})
	w.signsIn("anything", nil, nil, policy.CredentialPolicy{})
	w.signsIn("twice-a", map[string]string{"host": "two.example.com"}, nil, policy.CredentialPolicy{})
	w.signsIn("twice-b", map[string]string{"host": "two.example.com"}, nil, policy.CredentialPolicy{})
	w.signsIn("value-only", map[string]string{"host": "three.example.com"}, nil, policy.CredentialPolicy{Delivery: []policy.Delivery{policy.Value}})
	w.signsIn("not-yours", map[string]string{"host": "four.example.com"}, nil,
		policy.CredentialPolicy{AllowedIdentities: []policy.Matcher{{Type: "agent", Name: "other"}}})
	for _, c := range []struct {
		credential, origin string
		gets, user         string
		code               Code
	}{
		{"", "https://git.example.com", "by-host", "bot", ""},
		{"by-host", "https://GIT.example.com:443", "by-host", "bot", ""},
		{"", "https://api.openai.com", "by-service", "", ""},
		{"", "https://code.example.com:8443", "by-upstream", "ci", ""},
		{"by-upstream", "https://code.example.com", "", "", InvalidArgument},
		{"by-host", "http://git.example.com", "", "", InvalidArgument},
		{"by-host", "https://git.example.com.evil.example", "", "", InvalidArgument},
		{"by-host", "https://evil.example", "", "", InvalidArgument},
		{"anything", "https://git.example.com", "", "", InvalidArgument},
		{"by-host", "https://git.example.com/path", "", "", InvalidArgument},
		{"", "https://evil.example", "", "", NotAvailable},
		{"", "https://two.example.com", "", "", InvalidArgument},
		{"twice-b", "https://two.example.com", "twice-b", "", ""},
		{"", "https://three.example.com", "", "", NotAvailable},
		{"value-only", "https://three.example.com", "", "", DeliveryUnavailable},
		{"", "https://four.example.com", "", "", NotAvailable},
		{"not-yours", "https://four.example.com", "", "", NotAvailable},
		{"not-yours", "https://evil.example", "", "", NotAvailable}, // and not: it is for another address
		{"unknown", "https://evil.example", "", "", NotAvailable},
	} {
		u, err := w.Exec(context.Background(), w.agent("a"), ExecRequest{Credential: c.credential, Origin: c.origin, Keep: true, Program: "git"})
		if c.code != "" {
			if r := AsRefusal(err); r == nil || r.Code != c.code {
				t.Errorf("%q at %s: %v, want %s", c.credential, c.origin, err, c.code)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q at %s: %v", c.credential, c.origin, err)
			continue
		}
		if string(u.Value.Bytes()) != "sk-fake-"+c.gets || u.User != c.user {
			t.Errorf("%q at %s: got %s as %q", c.credential, c.origin, u.Lease.Credential, u.User)
		}
		u.End(Outcome{})
	}
}

// TestAKeptLeaseLastsItsTime: whoever asked goes on with the value, so its lease is not given back for them, ends with
// no session, serves the next call, and is renewed for it when half of it is over.
func TestAKeptLeaseLastsItsTime(t *testing.T) {
	w := newWorld(t)
	w.signsIn("aws", nil, nil, policy.CredentialPolicy{MaxLeaseTTL: 25 * time.Minute})
	ask := func() Grant {
		t.Helper()
		c := w.agent("a")
		defer w.Detach(context.Background(), c.Session)
		u, err := w.Exec(context.Background(), c, ExecRequest{Credential: "aws", Keep: true, TTL: 10 * time.Minute, Program: "aws"})
		if err != nil {
			t.Fatal(err)
		}
		defer u.End(Outcome{})
		return u.Lease
	}
	pass := func(d time.Duration) { w.settled(); w.pass(d) } // what was used is on disk before the clock jumps
	first := ask()
	pass(3 * time.Minute) // more than the grace
	if again := ask(); again.LeaseID != first.LeaseID || !again.ExpiresAt.Equal(first.ExpiresAt) {
		t.Errorf("the next call got %v until %v, want %v until %v", again.LeaseID, again.ExpiresAt, first.LeaseID, first.ExpiresAt)
	}
	pass(4 * time.Minute)
	renewed := ask()
	if renewed.LeaseID != first.LeaseID || !renewed.ExpiresAt.After(first.ExpiresAt) || w.told(store.EventLeaseRenewed) != 1 {
		t.Errorf("with less than half of it left: %v until %v", renewed.LeaseID, renewed.ExpiresAt)
	}
	w.restart(false)
	if again := ask(); again.LeaseID != first.LeaseID || w.told(store.EventLeaseOrphaned) != 0 {
		t.Errorf("after a restart: %v", again.LeaseID)
	}
	pass(30 * time.Minute)
	if next := ask(); next.LeaseID == first.LeaseID || w.told(store.EventLeaseReleased) != 0 {
		t.Error("the lease outlived its ceiling, or was given back")
	}
	w.settled()
	used := 0
	if err := w.Entries(context.Background(), EntryFilter{Event: string(store.EventLeaseUsed)}, func(e *store.Entry) error {
		if e.Details.Get("phase") == "begun" && e.Details.Get("program") == "aws" {
			used++
		}
		return nil
	}); err != nil || used != 5 {
		t.Errorf("%d of 5 calls are written down as begun (%v)", used, err)
	}
}

// TestNoKeyForAProgramWhenItIsTakenAway: a freeze and the policy of now hold for the next call.
func TestNoKeyForAProgramWhenItIsTakenAway(t *testing.T) {
	w := newWorld(t)
	w.signsIn("git", map[string]string{"host": "git.example.com"}, nil, policy.CredentialPolicy{})
	ask := func() error {
		u, err := w.Exec(context.Background(), w.agent("a"), ExecRequest{Origin: "https://git.example.com", Keep: true})
		if err == nil {
			u.End(Outcome{})
		}
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Freeze(context.Background(), operator, "test"); err != nil {
		t.Fatal(err)
	}
	if r := wantCode(t, ask(), Unavailable); r.Reason != "frozen" {
		t.Errorf("%+v", r)
	}
	if _, err := w.Thaw(context.Background(), operator); err != nil {
		t.Fatal(err)
	}
	w.setPolicy("version: 1\nrules:\n  - {name: none, credentials: [\"*\"], effect: deny}\n")
	if r := wantCode(t, ask(), NotAvailable); strings.Contains(r.Message, "git") {
		t.Errorf("a denied credential is named: %+v", r)
	}
}

// TestAProgramWaitsForAPersonsYes: it asks once, is refused until then with the question's id, and gets the key with the
// yes, on one lease.
func TestAProgramWaitsForAPersonsYes(t *testing.T) {
	w := newWorld(t)
	w.signsIn("git", map[string]string{"host": "git.example.com"}, nil, policy.CredentialPolicy{Approval: policy.Operator})
	c := w.agent("a")
	ask := func() (*Use, error) {
		return w.Exec(context.Background(), c, ExecRequest{Origin: "https://git.example.com", Keep: true, Purpose: "git signs in"})
	}
	var waits *NeedsApproval
	for range 2 {
		if _, err := ask(); !errors.As(err, &waits) {
			t.Fatal(err)
		}
	}
	if n := w.told(store.EventApprovalAsked); n != 1 {
		t.Fatalf("a person was asked %d times", n)
	}
	if _, err := w.Approve(context.Background(), operator, waits.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		u.End(Outcome{})
	}
	if n := w.told(store.EventLeaseCreated); n != 1 {
		t.Errorf("one yes opened %d leases", n)
	}
}
