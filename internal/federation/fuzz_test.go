package federation

import (
	"encoding/base64"
	"slices"
	"testing"
	"time"

	"keylease/internal/identity"
)

// Whatever a token's header and claims hold: one that is found fit names our issuer, our audience and an algorithm that is
// allowed, and its time has come and is not over; whom it stands for has a name by the rule, whose mapping let it through.
func FuzzToken(f *testing.F) {
	i := newIssuer(Issuer{Issuer: "https://issuer.example", Identities: []Mapping{
		{Match: map[string][]string{"repository": {"acme/*"}}, Name: "gh/{repository}"},
		{Match: map[string][]string{"groups": {"dev-*"}, "inner/kind": {"job"}}, Name: "job/{groups}"},
		{Match: map[string][]string{"email": {"*@example.com"}}, Type: "human"},
	}}, "https://keylease.example")
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []string{
		`{"iss":"https://issuer.example","aud":"https://keylease.example","exp":1800000100,"sub":"s","repository":"acme/web"}`,
		`{"iss":"https://issuer.example","aud":["x","https://keylease.example"],"exp":1.8000001e9,"nbf":1,"sub":"s","groups":["dev-a","ops"],"inner":{"kind":"job"}}`,
		`{"iss":"https://issuer.example","aud":"https://keylease.example","exp":1800000100,"sub":"s","email":"a@example.com","email_verified":"true"}`,
		`{"iss":"https://issuer.example","ISS":"x","aud":null,"exp":"1800000100","iat":9e99}`, `[]`, `{"exp":-1}`, `{"inner/kind":{"a":[[1]]}}`,
	} {
		f.Add([]byte(`{"alg":"RS256"}`), []byte(c))
	}
	f.Add([]byte(`{"alg":"none","typ":"JWT"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, head, payload []byte) {
		h, c, err := peek(base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(payload) + ".sig")
		if err != nil || i.unfit(h, c, now) != "" {
			return
		}
		if h.Algorithm != "RS256" && h.Algorithm != "ES256" {
			t.Fatalf("fit with the algorithm %q", h.Algorithm)
		}
		if exp, there, ok := c.moment("exp"); !there || !ok || !now.Before(exp) {
			t.Fatalf("fit after its time: %s", payload)
		}
		if nbf, _, ok := c.moment("nbf"); !ok || nbf.After(now.Add(leeway)) {
			t.Fatalf("fit before its time: %s", payload)
		}
		if c["iss"] != "https://issuer.example" || !slices.Contains(c.audience(), "https://keylease.example") {
			t.Fatalf("fit for somebody else: %s", payload)
		}
		e, err := i.entrant(c)
		if err != nil {
			return
		}
		if identity.CheckName(e.Name) != nil || e.Proof != identity.OIDC || e.By != "oidc:https://issuer.example#"+c.text("sub") || !e.Until.After(now) {
			t.Fatalf("%s stands for %+v", payload, e)
		}
		if e.Type == identity.Human && !c.emailVerified() {
			t.Fatalf("a human by an e-mail that nobody verified: %s", payload)
		}
	})
}
