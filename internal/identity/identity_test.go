package identity

import (
	"context"
	"strings"
	"testing"
)

func TestNamesAreBytesAndNothingElse(t *testing.T) {
	for _, name := range []string{"claude-code", "0", "a@b.example", "ci/repo:main", "x._@+:/-", strings.Repeat("a", MaxName)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "ROOT", " root", "root\t", "root ", "-a", "*", "a*", "a?", "a[b]", "{a}", "a\x00", "a\n",
		"ａ", "a\u202e", "a%2fb", "a\\b", strings.Repeat("a", MaxName+1)} {
		if CheckName(name) == nil {
			t.Errorf("%q was taken for a name", name)
		}
	}
}

func TestProofIsAnOrderInWhichTwoAreEqual(t *testing.T) {
	for _, c := range []struct {
		p, min Proof
		want   bool
	}{{Declared, Declared, true}, {Declared, Token, false}, {Token, Token, true}, {Token, OIDC, false},
		{OIDC, Token, true}, {OIDC, MTLS, true}, {MTLS, OIDC, true}} {
		if got := c.p.AtLeast(c.min); got != c.want {
			t.Errorf("%s at least %s: %v", c.p, c.min, got)
		}
	}
	for _, p := range []Proof{Declared, Token, OIDC, MTLS} {
		if got, err := ParseProof(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	if _, err := ParseProof("root"); err == nil {
		t.Error("a proof was made up")
	}
}

func TestWithoutATransportNobodyIsCalling(t *testing.T) {
	if c, ok := From(context.Background()); ok || c != (Caller{}) {
		t.Errorf("%+v", c)
	}
	want := Caller{Principal: Principal{Type: Agent, Name: "a", By: "uid:1"}, Session: "s"}
	if c, ok := From(With(context.Background(), want)); !ok || c != want {
		t.Errorf("%+v", c)
	}
}
