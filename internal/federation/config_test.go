package federation

import (
	"fmt"
	"strings"
	"testing"
)

func TestAConfigurationThatCouldMeanSomethingElseIsRefused(t *testing.T) {
	good := func() Config {
		return Config{Resource: ours, Issuers: []Issuer{{Issuer: "https://idp.example.com/a", Identities: []Mapping{
			{Match: map[string][]string{"sub": {"robot-*"}}, Name: "ci/{sub}"}}}}}
	}
	if err := good().firstFault(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"a resource in the clear":              func(c *Config) { c.Resource = "http://keys.example.com/mcp" },
		"a resource with a query":              func(c *Config) { c.Resource += "?a" },
		"a resource with a fragment":           func(c *Config) { c.Resource += "#" },
		"a resource that is a route's pattern": func(c *Config) { c.Resource = "https://keys.example.com/{x...}" },
		"a resource with dots for a path":      func(c *Config) { c.Resource = "https://keys.example.com/../mcp" },
		"no resource":                          func(c *Config) { c.Resource = "" },
		"an issuer in the clear":               func(c *Config) { c.Issuers[0].Issuer = "http://idp.example.com" },
		"an issuer with a fragment":            func(c *Config) { c.Issuers[0].Issuer += "#x" },
		"an issuer with a password":            func(c *Config) { c.Issuers[0].Issuer = "https://a:b@idp.example.com" },
		"an issuer twice":                      func(c *Config) { c.Issuers = append(c.Issuers, c.Issuers[0]) },
		"no identities":                        func(c *Config) { c.Issuers[0].Identities = nil },
		"everybody":                            func(c *Config) { c.Issuers[0].Identities[0].Match = nil },
		"a claim without patterns":             func(c *Config) { c.Issuers[0].Identities[0].Match["sub"] = nil },
		"an empty pattern":                     func(c *Config) { c.Issuers[0].Identities[0].Match["sub"] = []string{""} },
		"no name":                              func(c *Config) { c.Issuers[0].Identities[0].Name = "" },
		"a name with capitals":                 func(c *Config) { c.Issuers[0].Identities[0].Name = "CI/{sub}" },
		"two claims with nothing between them": func(c *Config) { c.Issuers[0].Identities[0].Name = "ci/{sub}{job}" },
		"a brace that is open":                 func(c *Config) { c.Issuers[0].Identities[0].Name = "ci/{sub" },
		"alg none":                             func(c *Config) { c.Issuers[0].Algorithms = []string{"none"} },
		"an HMAC":                              func(c *Config) { c.Issuers[0].Algorithms = []string{"RS256", "HS256"} },
		"an unknown scope":                     func(c *Config) { c.Issuers[0].Scopes = []string{"keylease:*"} },
		"an unknown type":                      func(c *Config) { c.Issuers[0].Identities[0].Type = "admin" },
		"a human with another name":            func(c *Config) { c.Issuers[0].Identities[0].Type = "human" },
		"a certificate by nothing":             func(c *Config) { c.Certificates = []Certificate{{Name: "{san}"}} },
		"a certificate by two things": func(c *Config) {
			c.Certificates = []Certificate{{DNS: []string{"*"}, URI: []string{"*"}, Name: "{san}"}}
		},
		"a human by a DNS name":                   func(c *Config) { c.Certificates = []Certificate{{DNS: []string{"*"}, Type: "human"}} },
		"a path of a DNS name":                    func(c *Config) { c.Certificates = []Certificate{{DNS: []string{"*"}, Name: "{path}"}} },
		"a claim of a certificate":                func(c *Config) { c.Certificates = []Certificate{{SPIFFE: []string{"*"}, Name: "{sub}"}} },
		"a certificate that may be named nothing": func(c *Config) { c.Certificates = []Certificate{{SPIFFE: []string{"*"}}} },
	} {
		c := good()
		change(&c)
		if d, err := New(c, Options{}); err == nil {
			d.Close()
			t.Errorf("%s was taken", what)
		}
		c.Check(func(_ []any, format string, args ...any) {
			if text := fmt.Sprintf(format, args...); strings.Contains(text, "%!") {
				t.Errorf("%s: %s", what, text)
			}
		})
	}
}
