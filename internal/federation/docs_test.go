package federation

import (
	"encoding/json"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"keylease/internal/strictyaml"
)

// TestTheDocumentedConfigurationsNameWhomTheySay: what docs/identity.md tells people to write, with claims as those
// issuers make them.
func TestTheDocumentedConfigurationsNameWhomTheySay(t *testing.T) {
	text, err := os.ReadFile("../../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	issuers, certificates := map[string]*issuer{}, []certificateRule{}
	for _, block := range regexp.MustCompile("(?s)```yaml\n# keylease.yaml\n(.*?)```").FindAllSubmatch(text, -1) {
		var c struct {
			HTTP         string            `yaml:"http"`
			AllowedHosts []string          `yaml:"allowedHosts"`
			TLS          map[string]string `yaml:"tls"`
			Resource     string            `yaml:"resource"`
			Issuers      []Issuer          `yaml:"issuers"`
			Certificates []Certificate     `yaml:"certificates"`
		}
		doc := strictyaml.Open("docs/identity.md", block[1])
		doc.Decode(&c)
		Config{c.Resource, c.Issuers, c.Certificates}.Check(func(at []any, format string, args ...any) { doc.Faultf(at, format, args...) })
		if err := doc.Err(); err != nil {
			t.Fatal(err)
		}
		for _, i := range c.Issuers {
			issuers[i.Issuer] = newIssuer(i, c.Resource)
		}
		for _, r := range c.Certificates {
			certificates = append(certificates, newCertificateRule(r))
		}
	}
	for _, c := range []struct{ issuer, claims, name string }{
		{"https://token.actions.githubusercontent.com", `{"sub":"repo:acme/web:ref:refs/heads/main","repository":"acme/web","repository_owner":"acme",
			"repository_owner_id":"1234567","repository_id":"7654321","ref":"refs/heads/main","event_name":"push"}`, "gh/acme/web"},
		{"https://token.actions.githubusercontent.com", `{"sub":"repo:Acme/Api:environment:production","repository":"Acme/Api",
			"repository_owner_id":"1234567","repository_id":"99","ref":"refs/heads/x","event_name":"push","environment":"production"}`, "gh/id/99"},
		{"https://token.actions.githubusercontent.com", `{"sub":"repo:acme/web:pull_request","repository":"acme/web","ref":"refs/pull/1/merge","event_name":"pull_request"}`, ""},
		{"https://token.actions.githubusercontent.com", `{"sub":"repo:evil/acme:ref:refs/heads/main","repository":"evil/acme","ref":"refs/heads/main","event_name":"push"}`, ""},
		{"https://gitlab.com", `{"sub":"project_path:acme/web:ref_type:branch:ref:main","project_path":"acme/web","ref":"main","ref_protected":"true"}`, "gl/acme/web"},
		{"https://gitlab.com", `{"sub":"project_path:acme/web:ref_type:branch:ref:x","project_path":"acme/web","ref":"x","ref_protected":"false"}`, ""},
		{"https://kubernetes.default.svc.cluster.local", `{"sub":"system:serviceaccount:agents:builder","kubernetes.io":{"namespace":"agents",
			"pod":{"name":"builder-0","uid":"1"},"serviceaccount":{"name":"builder","uid":"2"}}}`, "k8s/agents/builder"},
		{"https://kubernetes.default.svc.cluster.local", `{"sub":"system:serviceaccount:web:builder","kubernetes.io":{"namespace":"web","serviceaccount":{"name":"builder"}}}`, ""},
		{"https://login.example.com/realms/acme", `{"sub":"1","email":"ann@example.com","email_verified":true,"scope":"openid keylease:lease"}`, "ann@example.com"},
		{"https://login.example.com/realms/acme", `{"sub":"1","email":"ann@example.com","email_verified":false}`, ""},
		{"https://login.example.com/realms/acme", `{"sub":"2","azp":"codex-web","groups":["staff","team-red"]}`, "team/team-red"},
		{"https://login.example.com/realms/acme", `{"sub":"3","client_id":"agent-7"}`, "idp/agent-7"},
	} {
		claims, err := readClaims([]byte(c.claims))
		if err != nil || issuers[c.issuer] == nil {
			t.Fatalf("%s: %v", c.issuer, err)
		}
		e, err := issuers[c.issuer].entrant(claims)
		if e.Name != c.name || (err == nil) != (c.name != "") {
			t.Errorf("%s: %v, %q; want %q", c.claims, err, e.Name, c.name)
		}
		var said map[string]any
		if json.Unmarshal([]byte(c.claims), &said) == nil && err == nil && !strings.HasSuffix(e.By, "#"+said["sub"].(string)) {
			t.Errorf("%s is %s", c.claims, e.By)
		}
	}
	if len(certificates) != 2 {
		t.Fatalf("%d documented certificates", len(certificates))
	}
	for i, want := range []struct{ san, name string }{{"spiffe://example.org/agents/builder", "agents/builder"}, {"a.agents.example.com", "host/a.agents.example.com"}} {
		if u, err := url.Parse(want.san); err != nil || !matchesAny(certificates[i].globs, u.String()) {
			t.Errorf("%s does not match", want.san)
		}
		if e, err := certificates[i].entrant(want.san, time.Time{}); err != nil || e.Name != want.name {
			t.Errorf("%s: %v, %q", want.san, err, e.Name)
		}
	}
}
