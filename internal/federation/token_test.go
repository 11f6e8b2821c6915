package federation

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"keylease/internal/identity"
	"keylease/internal/issuertest"
)

const ours = "https://keys.example.com/mcp"

type claimsOf = issuertest.Claims

// rig is one issuer, a directory that knows it, and a clock turned by hand.
type rig struct {
	*issuertest.Issuer
	*Directory
	t *testing.T

	mu    sync.Mutex
	clock time.Time
	told  []string
}

func newRig(t *testing.T, change ...func(*Issuer)) *rig {
	t.Helper()
	r := &rig{Issuer: issuertest.New(t), t: t, clock: time.Now().Truncate(time.Second)}
	shape := Issuer{Issuer: r.URL, Identities: []Mapping{
		{Match: map[string][]string{"sub": {"robot-*"}}, Name: "ci/{sub}"},
		{Match: map[string][]string{"email": {"*@example.com"}}, Type: "human"},
		{Match: map[string][]string{"groups": {"team-*"}}, Name: "{groups}"},
		{Match: map[string][]string{"kubernetes.io/namespace": {"agents"}}, Name: "k8s/{kubernetes.io/serviceaccount/name}"},
		{Match: map[string][]string{"repository": {"acme/*"}, "ref": {"refs/heads/main", "refs/tags/*"}}, Name: "gh/{repository}"},
	}}
	for _, c := range change {
		c(&shape)
	}
	d, err := New(Config{Resource: ours, Issuers: []Issuer{shape}}, Options{Now: r.now, Trouble: func(_ string, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.told = append(r.told, err.Error())
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	r.Directory = d
	return r
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) sleep(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

func (r *rig) good(more claimsOf) claimsOf { return r.Good(ours, r.now(), more) }

// wantRefused wants a token to stand for nobody, for this reason.
func (r *rig) wantRefused(what, token, why string) {
	r.t.Helper()
	e, err := r.Bearer(r.t.Context(), token)
	var no *Refused
	if !errors.As(err, &no) || no.Why != why {
		r.t.Errorf("%s: got %v as %+v, want %q", what, err, e.Principal, why)
	}
	if e != (Entrant{}) {
		r.t.Errorf("%s: refused, and stands for %+v", what, e)
	}
}

func (r *rig) wantName(what, token, name string) Entrant {
	r.t.Helper()
	e, err := r.Bearer(r.t.Context(), token)
	if err != nil || e.Name != name || e.Proof != identity.OIDC {
		r.t.Errorf("%s: %v, %+v; want %q", what, err, e, name)
	}
	return e
}

func TestAGoodTokenStandsForItsSubjectUntilItExpires(t *testing.T) {
	r := newRig(t)
	c := r.good(nil)
	e := r.wantName("good", r.Token(c), "ci/robot-1")
	if e.Type != identity.Agent || e.By != "oidc:"+r.URL+"#robot-1" || e.Scopes != identity.AllScopes || e.Until.Unix() != c["exp"] {
		t.Errorf("%+v", e)
	}
	token := r.Token(c)
	r.sleep(10*time.Minute - time.Second)
	r.wantName("in its last second", token, "ci/robot-1")
	r.sleep(time.Second)
	r.wantRefused("at its exp", token, whyExpired)

	again := r.wantName("the next token of the same subject", r.Token(r.good(nil)), "ci/robot-1")
	if again.Principal != e.Principal {
		t.Errorf("another token is another principal: %+v", again.Principal)
	}
	r.wantName("ours among several audiences", r.Token(r.good(claimsOf{"aud": []string{"https://other.example", ours}})), "ci/robot-1")
	r.wantName("no typ", issuertest.Sign(t, r.Key(), "RS256", "", r.good(nil)), "ci/robot-1")
	if e := r.wantName("no scope", r.Token(r.good(claimsOf{"scope": nil})), "ci/robot-1"); e.Scopes != 0 {
		t.Errorf("scopes from nowhere: %v", e.Scopes)
	}
	if e := r.wantName("scp", r.Token(r.good(claimsOf{"scope": "openid", "scp": []string{"keylease:list"}})), "ci/robot-1"); e.Scopes != identity.MayList {
		t.Errorf("scp: %v", e.Scopes)
	}
}

func TestB6ATokenThatIsNotRightStandsForNobody(t *testing.T) {
	r, other := newRig(t), issuertest.New(t)
	signing := r.Key()
	public := signing.Public()
	secret, err := public.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	hmac := jose.JSONWebKey{Key: secret, KeyID: r.Key().KeyID}
	now := r.now()
	token := func(more claimsOf) string { return r.Token(r.good(more)) }
	good := token(nil)
	cut := strings.LastIndexByte(good, '.')
	for _, c := range []struct{ what, token, why string }{
		{"not base64", "a.!.c", whyMalformed},
		{"empty parts", "..", whyMalformed},
		{"not JSON", "bm8.bm8.bm8", whyMalformed},
		{"null", "bnVsbA.bnVsbA.bm8", whyMalformed},
		{"too long", token(claimsOf{"fill": strings.Repeat("a", MaxToken)}), whyMalformed},
		{"another issuer", other.Token(other.Good(ours, now, nil)), whyIssuer},
		{"no issuer", token(claimsOf{"iss": nil}), whyIssuer},
		{"the issuer with a slash", token(claimsOf{"iss": r.URL + "/"}), whyIssuer},
		{"our issuer's name, another's key", issuertest.Sign(t, other.Key(), "RS256", "JWT", r.good(nil)), whyUnknownKey},
		{"another's key under our key's id", issuertest.Sign(t, jose.JSONWebKey{Key: other.Key().Key, KeyID: r.Key().KeyID}, "RS256", "JWT", r.good(nil)), whySignature},
		{"no signature", good[:cut+1], whySignature},
		{"signature of another token", good[:cut] + token(nil)[strings.LastIndexByte(token(nil), '.'):], whySignature},
		{"alg none", issuertest.Unsigned(t, claimsOf{"alg": "none", "typ": "JWT"}, r.good(nil)), whyAlgorithm},
		{"alg None", issuertest.Unsigned(t, claimsOf{"alg": "None", "typ": "JWT"}, r.good(nil)), whyAlgorithm},
		{"no alg", issuertest.Unsigned(t, claimsOf{"typ": "JWT"}, r.good(nil)), whyAlgorithm},
		{"HS256 with the public key", issuertest.Sign(t, hmac, "HS256", "JWT", r.good(nil)), whyAlgorithm},
		{"an algorithm that is not listed", issuertest.Sign(t, r.Key(), "RS512", "JWT", r.good(nil)), whyAlgorithm},
		{"another audience", token(claimsOf{"aud": "https://other.example"}), whyAudience},
		{"our audience and more of it", token(claimsOf{"aud": ours + "/x"}), whyAudience},
		{"no audience", token(claimsOf{"aud": nil}), whyAudience},
		{"an audience that is a pattern", token(claimsOf{"aud": "*"}), whyAudience},
		{"expired", token(claimsOf{"exp": now.Unix() - 1}), whyExpired},
		{"exp is text", token(claimsOf{"exp": "2099-01-01"}), whyExpired},
		{"exp is too far", token(claimsOf{"exp": 1e300}), whyExpired},
		{"no exp", token(claimsOf{"exp": nil}), whyNoExpiry},
		{"nbf in the future", token(claimsOf{"nbf": now.Unix() + 62}), whyNotYet},
		{"nbf is text", token(claimsOf{"nbf": "soon"}), whyNotYet},
		{"iat in the future", token(claimsOf{"iat": now.Unix() + 62}), whyNotYet},
		{"no sub", token(claimsOf{"sub": nil, "groups": "team-red"}), whySubject},
		{"empty sub", token(claimsOf{"sub": "", "groups": "team-red"}), whySubject},
		{"sub with bidi characters", token(claimsOf{"sub": "robot-\u202e1"}), whySubject},
		{"sub too long", token(claimsOf{"sub": "robot-" + strings.Repeat("1", 255)}), whySubject},
		{"bound to a key", token(claimsOf{"cnf": claimsOf{"jkt": "x"}}), whyBound},
		{"a logout token", issuertest.Sign(t, r.Key(), "RS256", "logout+jwt", r.good(nil)), whyKind},
		{"nobody's claims", token(claimsOf{"sub": "somebody"}), whyNobody},
		{"a name that none can have", token(claimsOf{"sub": "robot-*"}), whyName},
		{"a name with capitals", token(claimsOf{"sub": "robot-A"}), whyName},
		{"a sub like a path", token(claimsOf{"sub": "robot-%2f.."}), whyName},
	} {
		r.wantRefused(c.what, c.token, c.why)
	}
	r.wantName("nbf within the leeway", token(claimsOf{"nbf": now.Unix() + 58}), "ci/robot-1")
}

func TestClaimsBecomeNamesOnlyByTheConfigurationsOwnPatterns(t *testing.T) {
	r := newRig(t)
	as := func(more claimsOf) string {
		more["sub"] = "someone"
		return r.Token(r.good(more))
	}
	r.wantName("both claims hold", as(claimsOf{"repository": "acme/web", "ref": "refs/heads/main"}), "gh/acme/web")
	r.wantRefused("one claim holds", as(claimsOf{"repository": "acme/web", "ref": "refs/heads/evil"}), whyNobody)
	r.wantRefused("a claim is missing", as(claimsOf{"repository": "acme/web"}), whyNobody)
	r.wantRefused("a claim that is a pattern itself", as(claimsOf{"repository": "*", "ref": "refs/heads/main"}), whyNobody)
	r.wantRefused("claims in another case", as(claimsOf{"Repository": "acme/web", "ref": "refs/heads/main"}), whyNobody)
	r.wantName("nested", as(claimsOf{"kubernetes.io": claimsOf{"namespace": "agents", "serviceaccount": claimsOf{"name": "builder"}}}), "k8s/builder")
	r.wantRefused("nested, not there", as(claimsOf{"kubernetes.io": claimsOf{"namespace": "agents"}}), whyName)

	r.wantName("the one group that matches", as(claimsOf{"groups": []string{"admins", "team-red"}}), "team-red")
	r.wantRefused("which of two groups?", as(claimsOf{"groups": []string{"team-blue", "team-red"}}), whyName)

	e := r.wantName("a verified e-mail", as(claimsOf{"email": "ann@example.com", "email_verified": true}), "ann@example.com")
	if e.Type != identity.Human {
		t.Errorf("%+v", e.Principal)
	}
	r.wantRefused("an e-mail that nobody verified", as(claimsOf{"email": "ann@example.com"}), whyNobody)
	r.wantRefused("an e-mail that is said to be unverified", as(claimsOf{"email": "ann@example.com", "email_verified": false}), whyNobody)

	g := newRig(t, func(i *Issuer) { i.Scopes = []string{"keylease:list"} })
	if e := g.wantName("scopes by configuration", g.Token(g.good(nil)), "ci/robot-1"); e.Scopes != identity.MayList {
		t.Errorf("the token's own scopes count beside the configured: %v", e.Scopes)
	}
}

func TestKeysRotateAndNobodyMakesUsHammerTheIssuer(t *testing.T) {
	r := newRig(t)
	old := r.Token(r.good(nil))
	r.wantName("first", old, "ci/robot-1")
	if n := len(r.Requests()); n != 2 {
		t.Fatalf("%d requests for the first token", n)
	}
	r.Rotate()
	fresh := r.Token(r.good(nil))
	r.wantRefused("a new key within the pause", fresh, whyUnknownKey)
	r.sleep(FetchPause)
	r.wantName("a new key", fresh, "ci/robot-1")
	r.wantRefused("a key that was taken away", old, whyUnknownKey)

	before := len(r.Requests())
	stranger := issuertest.New(t)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			_, _ = r.Bearer(t.Context(), issuertest.Sign(t, stranger.Key(), "RS256", "JWT", r.good(nil)))
		})
	}
	all.Wait()
	if n := len(r.Requests()) - before; n > 2 {
		t.Errorf("50 forged tokens made %d requests to the issuer", n)
	}
	r.sleep(FetchPause)
	before = len(r.Requests())
	for range 5 { // a key id that is there: its key need not be fetched to know that the signature is wrong
		r.wantRefused("forged", issuertest.Sign(t, jose.JSONWebKey{Key: stranger.Key().Key, KeyID: r.Key().KeyID}, "RS256", "JWT", r.good(nil)), whySignature)
	}
	if n := len(r.Requests()) - before; n != 0 {
		t.Errorf("forged signatures made %d requests to the issuer", n)
	}
}

func TestAKeyThatIsTakenAwayIsNotBelievedForLong(t *testing.T) {
	r := newRig(t)
	long := r.Token(r.good(claimsOf{"exp": r.now().Add(24 * time.Hour).Unix()}))
	r.wantName("before", long, "ci/robot-1")
	r.Rotate()
	r.sleep(freshKeys)
	r.wantName("old keys serve while new ones are fetched", long, "ci/robot-1")
	r.fetching.Wait()
	r.wantRefused("after", long, whyUnknownKey)
}

func TestAnIssuerThatIsDownIsNobodysDefault(t *testing.T) {
	r := newRig(t)
	r.Down(true)
	token := r.Token(r.good(claimsOf{"exp": r.now().Add(24 * time.Hour).Unix()}))
	for range 3 {
		if e, err := r.Bearer(t.Context(), token); !errors.Is(err, ErrUnavailable) || e != (Entrant{}) {
			t.Errorf("%v, %+v", err, e)
		}
	}
	if n := len(r.Requests()); n != 1 || len(r.told) != 1 || strings.Contains(r.told[0], token) {
		t.Errorf("%d requests, told %q", n, r.told)
	}
	r.wantRefused("expired, issuer down", r.Token(r.good(claimsOf{"exp": r.now().Unix()})), whyExpired)
	r.Down(false)
	r.sleep(FetchPause)
	r.wantName("up again", token, "ci/robot-1")
	r.Down(true)
	r.sleep(staleKeys - time.Second)
	r.wantName("keys of an issuer that went down", token, "ci/robot-1")
	r.fetching.Wait()
	r.sleep(time.Second)
	if _, err := r.Bearer(t.Context(), token); !errors.Is(err, ErrUnavailable) {
		t.Errorf("keys are believed for ever: %v", err)
	}
	r.Down(false)
	r.Misname("https://other.example")
	r.sleep(FetchPause)
	if _, err := r.Bearer(t.Context(), token); !errors.Is(err, ErrUnavailable) {
		t.Errorf("discovery that speaks for another issuer is believed: %v", err)
	}
}

func TestACallerWhoLeavesDoesNotEndTheFetchForOthers(t *testing.T) {
	r := newRig(t)
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := r.Bearer(gone, r.Token(r.good(nil))); err == nil {
		t.Log("the fetch was faster")
	}
	r.fetching.Wait()
	r.wantName("the next caller", r.Token(r.good(nil)), "ci/robot-1")
	if n := len(r.Requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

func TestB9NothingOfACallersGoesToTheIssuer(t *testing.T) {
	r := newRig(t)
	token := r.Token(r.good(nil))
	r.wantName("good", token, "ci/robot-1")
	for _, q := range r.Requests() {
		if q.Header.Get("Authorization") != "" || q.Header.Get("Cookie") != "" || q.URL.RawQuery != "" || q.ContentLength > 0 || q.Method != http.MethodGet {
			t.Errorf("the issuer was sent %s %s %v", q.Method, q.URL, q.Header)
		}
	}
}

func TestKeySetsAreBoundedAndChosenFrom(t *testing.T) {
	for what, body := range map[string]string{"empty": `{"keys":[]}`, "no keys": `{}`, "not JSON": `<html>`,
		"symmetric": `{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a"}]}`,
		"small":     `{"keys":[{"kty":"RSA","n":"` + strings.Repeat("u", 170) + `","e":"AQAB"}]}`,
		"many":      `{"keys":[` + strings.Repeat(`{},`, 100) + `{}]}`} {
		if keys, err := readKeys([]byte(body)); err == nil {
			t.Errorf("%s: %d keys", what, len(keys))
		}
	}
}

func BenchmarkBearer(b *testing.B) {
	i := issuertest.New(b)
	d, err := New(Config{Resource: ours, Issuers: []Issuer{{Issuer: i.URL, Identities: []Mapping{{Match: map[string][]string{"sub": {"*"}}, Name: "ci/{sub}"}}}}}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	token := i.Token(i.Good(ours, time.Now(), nil))
	for b.Loop() {
		if _, err := d.Bearer(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAnIssuersOwnAuthorityIsTrustedForItAlone(t *testing.T) {
	idp, ca := issuertest.NewOverTLS(t)
	var told []string
	file, readable := ca, true
	c := Config{Resource: ours, Issuers: []Issuer{{Issuer: idp.URL, CAFile: "/ca.pem", Identities: []Mapping{
		{Match: map[string][]string{"sub": {"robot-*"}}, Name: "ci/{sub}"}}}}}
	clock := time.Now()
	for _, step := range []struct {
		what   string
		change func() // before the start
		later  func() // before the first token
		ok     bool
	}{
		{"with its authority", func() {}, func() {}, true},
		{"with a file that becomes unreadable", func() {}, func() { readable = false }, false},
		{"with a file that is none any more", func() { readable = true }, func() { file = []byte("none") }, false},
		{"without", func() { c.Issuers[0].CAFile = "" }, func() {}, false},
	} {
		step.change()
		d, err := New(c, Options{Now: func() time.Time { return clock }, Trouble: func(_ string, err error) { told = append(told, err.Error()) },
			ReadFile: func(string) ([]byte, error) {
				if !readable {
					return nil, errors.New("no such file")
				}
				return file, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		step.later()
		e, err := d.Bearer(t.Context(), idp.Token(idp.Good(ours, clock, nil)))
		if ok := err == nil && e.Name == "ci/robot-1"; ok != step.ok || !ok && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, %+v", step.what, err, e)
		}
		d.Close()
	}
	if len(told) != 3 {
		t.Errorf("told %q", told)
	}
	c.Issuers[0].CAFile = "/ca.pem"
	for what, read := range map[string]func(string) ([]byte, error){
		"caFile of " + idp.URL: func(string) ([]byte, error) { return nil, errors.New("no such file") },
		"holds no certificate": func(string) ([]byte, error) { return []byte("none"), nil },
	} {
		if d, err := New(c, Options{ReadFile: read}); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("starts with a file like that: %v, %v", d, err)
		}
	}
}

func TestWhatAnIssuerAnswersIsBoundedAndStaysSecure(t *testing.T) {
	for what, answer := range map[string]http.HandlerFunc{
		"a huge set": func(w http.ResponseWriter, _ *http.Request) {
			for range 20 {
				_, _ = w.Write([]byte(strings.Repeat(" ", 64<<10)))
			}
		},
		"a redirect into the clear": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/keys", http.StatusFound)
		},
		"a redirect without end": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) },
		"a page":                 func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		r := newRig(t)
		r.Answer("/keys", answer)
		if _, err := r.Bearer(t.Context(), r.Token(r.good(nil))); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	r := newRig(t)
	r.Answer("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"issuer":"` + r.URL + `","jwks_uri":"http://192.0.2.1/keys"}`))
	})
	if _, err := r.Bearer(t.Context(), r.Token(r.good(nil))); !errors.Is(err, ErrUnavailable) || !strings.Contains(strings.Join(r.told, ""), "names no https address") {
		t.Errorf("keys in the clear: %v, %q", err, r.told)
	}
}
