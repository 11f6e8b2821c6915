package use_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"keylease/internal/use"
)

// ask says what a plan makes of one request: where it goes, or the kind of refusal.
func ask(p *use.Plan, request string) string {
	method, path, _ := strings.Cut(request, " ")
	got, err := p.Route(method, path)
	var r *use.Refused
	if errors.As(err, &r) {
		return string(r.Kind)
	}
	return got.URL.String()
}

func expect(t *testing.T, p *use.Plan, answers map[string][]string) {
	t.Helper()
	for want, requests := range answers {
		for _, request := range requests {
			got := ask(p, request)
			if want == "passes" && strings.HasPrefix(got, "https://") {
				continue
			}
			if got != want {
				t.Errorf("%s: %s, want %s", request, got, want)
			}
		}
	}
}

func TestWorkCallsPassAndTheRestDoesNot(t *testing.T) {
	for service, answers := range map[string]map[string][]string{
		"openai": {
			"passes": {"POST /v1/responses", "GET /v1/models", "POST /v1/audio/speech", "POST /v1/embeddings"},
			"https://api.openai.com/v1/chat/completions": {"POST /v1/chat/completions", "POST /v1/%63hat/completions"},
			"not_allowed": {"GET /v1/files", "POST /v1/batches", "GET /v1/organization/admin_api_keys", "DELETE /v1/models/x", "GET /v1/chat/completions", "POST /V1/chat/completions", "POST /v1/chat/completions/"},
		},
		"anthropic": {
			"https://api.anthropic.com/v1/messages": {"POST /v1/messages"},
			"not_allowed":                           {"POST /v1/messages/batches", "GET /v1/organizations/api_keys", "GET /v1/files", "PUT /v1/messages"},
		},
		"github": {
			"https://api.github.com/repos/o/r/issues":        {"GET /repos/o/r/issues", "POST /repos/o/r/issues"},
			"https://github.com/o/r.git/info/refs":           {"GET /o/r.git/info/refs"},
			"https://github.com/o/r/git-upload-pack":         {"POST /o/r/git-upload-pack"},
			"https://api.github.com/repos/o/r/compare/a...b": {"GET /repos/o/r/compare/a...b"},
			"not_allowed": {"POST /user/keys", "PUT /repos/o/r/pulls/1/merge", "POST /graphql", "POST /repos/o/r/keys", "DELETE /repos/o/r", "GET /orgs/o/members"},
			"guarded":     {"GET /repos/o/r/keys", "GET /repos/o/r/hooks/1", "GET /repos/o/r/actions/secrets", "GET /repos/o/r/HOOKS", "GET /repos/o/r/hooks.json", "GET /repos/o/r/h%20ooks", "GET /repositories/1/hooks", "GET /repos/o/r/actions/runners/x"},
			"malformed":   {"GET /repos/o%2fr/issues", "GET /repos/o/r/issues/../keys"},
		},
		"stripe": {
			"https://api.stripe.com/v1/customers/cus_1": {"GET /v1/customers/cus_1", "POST /v1/customers/cus_1"},
			"not_allowed": {"POST /v1/webhook_endpoints", "POST /v1/payouts", "POST /v1/refunds", "DELETE /v1/customers/cus_1", "GET /v1/accounts"},
			"guarded":     {"POST /v1/customers/cus_1/bank_accounts"},
		},
		"npm": {
			"https://registry.npmjs.org/react":                      {"GET /react"},
			"https://registry.npmjs.org/@a%2Fb":                     {"GET /@a%2fb", "GET /@a%2Fb"},
			"https://registry.npmjs.org/@a/b/-/b-1.0.0.tgz":         {"GET /@a/b/-/b-1.0.0.tgz"},
			"https://registry.npmjs.org/-/package/@a%2Fb/dist-tags": {"GET /-/package/@a%2fb/dist-tags"},
			"malformed":   {"GET /a%2fb", "GET /@a%2f..%2fb", "GET /@a%2f%2fb", "GET /@a%2fb%2f-%2fx", "GET /-%2fnpm%2fv1%2ftokens", "GET /x/@a%2fb"},
			"not_allowed": {"PUT /react", "GET /-/npm/v1/tokens", "POST /-/npm/v1/tokens", "PUT /-/user/org.couchdb.user:me"},
			"guarded":     {"GET /-/all"},
		},
		"gitlab": {
			"https://gitlab.com/api/v4/projects/a%2Fb%2Fc/issues":                 {"GET /api/v4/projects/a%2fb%2fc/issues"},
			"https://gitlab.com/api/v4/projects/1/repository/files/src%2Fmain.go": {"GET /api/v4/projects/1/repository/files/src%2Fmain.go"},
			"https://gitlab.com/a/b/c.git/info/refs":                              {"GET /a/b/c.git/info/refs"},
			"not_allowed":                                                         {"POST /api/v4/personal_access_tokens", "GET /api/v4/users/1/impersonation_tokens", "PUT /api/v4/projects/1/merge_requests/2/merge", "POST /api/graphql"},
			"guarded":                                                             {"GET /api/v4/projects/1/hooks", "GET /api/v4/projects/1/hooks.json", "GET /api/v4/projects/a%2Fb/members/all", "GET /api/v4/projects/1%2Fhooks", "GET /api/v4/projects/1/variables/X"},
			"malformed":                                                           {"GET /api/v4/projects/1/issues%2F2", "GET /api%2Fv4/projects", "GET /api/v4/projects/..%2Fuser", "GET /api/v4/projects/a%2fb/hooks%2f1"},
		},
		"huggingface": {
			"https://huggingface.co/o/r/resolve/main/config.json": {"GET /o/r/resolve/main/config.json", "HEAD /o/r/resolve/main/config.json"},
			"passes":      {"GET /api/models/o/r", "GET /datasets/o/r/resolve/main/x/y.parquet", "POST /api/models/o/r/commit/main", "GET /o/r/info/refs"},
			"not_allowed": {"GET /api/settings/webhooks", "POST /api/repos/create", "GET /settings/tokens", "DELETE /api/models/o/r"},
			"guarded":     {"GET /api/models/o/r/xet-write-token/main", "GET /api/models/gpt2/xet-read-token/main", "GET /api/spaces/o/r/secrets", "GET /api/spaces/o/r/jwt"},
		},
		"slack": {
			"https://slack.com/api/chat.postMessage": {"POST /api/chat.postMessage"},
			"passes":                                 {"POST /api/reactions.add", "GET /api/conversations.list"},
			"not_allowed":                            {"POST /api/admin.users.invite", "POST /api/apps.connections.open", "POST /api/oauth.v2.access", "POST /api/tooling.tokens.rotate", "GET /api/rtm.connect", "POST /api/conversations.invite"},
		},
	} {
		t.Run(service, func(t *testing.T) { expect(t, plan(t, use.Upstream{Service: service}), answers) })
	}
}

// D6: a broad rule of the admin's opens work, and not what is kept apart; that takes a rule that says the same words.
func TestD6WhatIsGuardedHasToBeNamed(t *testing.T) {
	for _, s := range use.Services() {
		broad := plan(t, use.Upstream{Service: s.Name, Allow: []string{"* /**"}})
		for _, guarded := range s.Guarded {
			methods, path, _ := strings.Cut(guarded, " ")
			method := strings.Split(strings.Replace(methods, "*", "POST", 1), ",")[0]
			path = strings.ReplaceAll(path, "*", "x")
			for _, form := range []string{path, path + "/more/below", strings.ToUpper(path), path + ".json"} {
				if got := ask(broad, method+" "+form); got != "guarded" {
					t.Errorf("%s: %s %s under * /**: %s", s.Name, method, form, got)
				}
			}
			named := plan(t, use.Upstream{Service: s.Name, Allow: []string{guarded}})
			if got := ask(named, method+" "+path); !strings.HasPrefix(got, "https://") {
				t.Errorf("%s: %s, named by the admin: %s", s.Name, guarded, got)
			}
		}
	}
	expect(t, plan(t, use.Upstream{Service: "github", Allow: []string{"* /repos/**", "GET /repos/*/*/keys", "POST /graphql", "* /user/k*", "* /orgs/*/*", "POST /repos/acme/app/hooks"}}), map[string][]string{
		"https://api.github.com/repos/o/r/keys":       {"GET /repos/o/r/keys"},
		"https://api.github.com/graphql":              {"POST /graphql"},
		"https://api.github.com/repos/acme/app/hooks": {"POST /repos/acme/app/hooks"},
		"guarded": {"POST /repos/o/r/keys", "GET /repos/o/r/keys/1", "GET /user/keys", "GET /orgs/o/members", "POST /repos/acme/other/hooks", "GET /repos/acme/app/hooks"},
	})
}

func TestTheAdminsListTakesThePlaceOfTheServices(t *testing.T) {
	p := plan(t, use.Upstream{Service: "openai", Allow: []string{"POST /v1/embeddings", "GET,POST /v1/responses/**"}, Deny: []string{"* /v1/responses/*/cancel", "DELETE /**"}})
	expect(t, p, map[string][]string{
		"passes":      {"POST /v1/embeddings", "GET /v1/responses/r/input_items", "POST /v1/responses", "POST /v1/responses/"},
		"not_allowed": {"POST /v1/chat/completions", "POST /v1/responses/r/cancel", "POST /v1/responses/r/CANCEL", "POST /v1/responses/r/cancel/x", "POST /v1/responsesx", "GET /v1/embeddings"},
	})
	if got := p.Allowed(); !slices.Equal(got, []string{"POST /v1/embeddings", "GET,POST /v1/responses/**"}) {
		t.Errorf("%q", got)
	}
	expect(t, plan(t, use.Upstream{URL: "https://x.example", Header: "K: {value}", Allow: []string{"GET /a*/x", "GET /b/*", "GET /**/end", "GET /m/**/n"}}), map[string][]string{
		"passes":      {"GET /a/x", "GET /abc/x", "GET /b/c", "GET /end", "GET /q/w/end", "GET /m/n", "GET /m/1/2/n"},
		"not_allowed": {"GET /b/", "GET /b", "GET /b/c/d", "GET /ba/x", "GET /a/y/x", "GET /endx", "GET /m", "GET /m/1", "GET /", "POST /b/c"},
	})
}

// TestADenyCoversWhatLiesUnderIt: also where a ** stands in it, and a / or more follows.
func TestADenyCoversWhatLiesUnderIt(t *testing.T) {
	p := plan(t, use.Upstream{URL: "https://x.example", Header: "K: {value}", Allow: []string{"* /**"}, Deny: []string{"* /**/secrets", "DELETE /a/**/z", "GET /plain"}})
	expect(t, p, map[string][]string{
		"passes":      {"GET /x", "GET /secretsx", "GET /a/b/z", "DELETE /b/a/z", "DELETE /a/b", "POST /plain/x"},
		"not_allowed": {"GET /secrets", "GET /secrets/", "GET /x/secrets/", "GET /x/secrets/y/w", "GET /x/SECRETS/y", "DELETE /a/z/", "DELETE /a/b/z/y", "GET /plain/", "GET /plain/x"},
	})
}

func TestWhereTheKeyGoes(t *testing.T) {
	for _, c := range []struct {
		u                    use.Upstream
		request, name, value string
	}{
		{use.Upstream{Service: "openai"}, "GET /v1/models", "Authorization", "Bearer k:1"},
		{use.Upstream{Service: "anthropic"}, "POST /v1/messages", "X-Api-Key", "k:1"},
		{use.Upstream{Service: "github"}, "GET /user", "Authorization", "Bearer k:1"},
		{use.Upstream{Service: "github"}, "GET /o/r/info/refs", "Authorization", "Basic eC1hY2Nlc3MtdG9rZW46azox"},
		{use.Upstream{Service: "gitlab", Header: "JOB-TOKEN: {value}"}, "GET /api/v4/user", "Job-Token", "k:1"},
		{use.Upstream{Service: "gitlab", Header: "JOB-TOKEN: {value}"}, "GET /o/r.git/info/refs", "Authorization", "Basic b2F1dGgyOms6MQ=="},
		{use.Upstream{URL: "https://x.example", Header: "Authorization: Basic {value}", Allow: []string{"* /**"}}, "GET /", "Authorization", "Basic k:1"},
		{use.Upstream{URL: "https://x.example", Header: "authorization: basic {value}:", Allow: []string{"* /**"}}, "GET /", "Authorization", "Basic azoxOg=="},
		{use.Upstream{URL: "https://x.example", Header: "X-Acme: key={value}, v=1", Allow: []string{"* /**"}}, "GET /", "X-Acme", "key=k:1, v=1"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		p := plan(t, c.u)
		target, err := p.Route(method, path)
		if err != nil {
			t.Errorf("%+v: %v", c.u, err)
			continue
		}
		h := http.Header{c.name: {"the handle", "twice"}}
		if err := target.Slot.Set(h, []byte("k:1")); err != nil || !reflect.DeepEqual(h, http.Header{c.name: {c.value}}) {
			t.Errorf("%+v: %v %v", c.u, h, err)
		}
		if !slices.Contains(p.Carriers(), c.name) {
			t.Errorf("%s is no carrier", c.name)
		}
	}
	target, _ := plan(t, use.Upstream{Service: "openai"}).Route("GET", "/v1/models")
	if err := target.Slot.Set(http.Header{}, []byte("sk-fake-C4N4RY\r\nHost: evil")); err == nil || strings.Contains(err.Error(), "C4N4RY") {
		t.Errorf("a value with a line break: %v", err)
	}
}

func TestAServiceHostedElsewhere(t *testing.T) {
	expect(t, plan(t, use.Upstream{Service: "github", URL: "https://GHE.example/"}), map[string][]string{
		"https://ghe.example/api/v3/repos/o/r": {"GET /repos/o/r"},
		"https://ghe.example/o/r/info/refs":    {"GET /o/r/info/refs"},
		"guarded":                              {"GET /repos/o/r/hooks"},
	})
	expect(t, plan(t, use.Upstream{Service: "gitlab", URL: "https://x.example/gitlab"}), map[string][]string{
		"https://x.example/gitlab/api/v4/projects/a%2Fb": {"GET /api/v4/projects/a%2Fb"},
		"https://x.example/gitlab/o/r.git/info/refs":     {"GET /o/r.git/info/refs"},
	})
}

func TestWhatAClientIsTold(t *testing.T) {
	p := plan(t, use.Upstream{Service: "openai"})
	want := map[string]string{"OPENAI_API_KEY": "klp_fake", "OPENAI_BASE_URL": "http://127.0.0.1:8701/v1"}
	if got := p.Env("http://127.0.0.1:8701", "klp_fake"); !reflect.DeepEqual(got, want) || p.BaseURL("http://127.0.0.1:8701") != want["OPENAI_BASE_URL"] {
		t.Errorf("%v %s", got, p.BaseURL("http://127.0.0.1:8701"))
	}
	if got := plan(t, use.Upstream{Service: "npm"}).Env("http://127.0.0.1:8701", "klp_fake")["npm_config_//127.0.0.1:8701/:_authToken"]; got != "klp_fake" {
		t.Errorf("npm's token: %q", got)
	}
	for _, c := range []struct {
		e          *use.Expose
		u          *use.Upstream
		name, want string
	}{
		{nil, nil, "openai-key.prod", "OPENAI_KEY_PROD"}, {nil, nil, "7up", "KEY_7UP"}, {nil, nil, "path", "KEY_PATH"}, {nil, nil, "keylease-x", "KEY_KEYLEASE_X"},
		{nil, &use.Upstream{Service: "github"}, "gh", "GH_TOKEN"}, {&use.Expose{Env: "X_TOKEN"}, &use.Upstream{Service: "github"}, "gh", "X_TOKEN"},
		{&use.Expose{}, &use.Upstream{URL: "https://x.example"}, "a_b", "A_B"},
	} {
		if got := use.EnvName(c.e, c.u, c.name); got != c.want || use.CheckEnv(got) != nil {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestHeadersThatSwitchTheTenantAreDroppedUnlessAllowed(t *testing.T) {
	p := plan(t, use.Upstream{Service: "openai", AllowHeaders: []string{"openai-project"}, ResponseHeaders: []string{"set-cookie"}})
	if d := p.Drop(); !slices.Contains(d, "Openai-Organization") || slices.Contains(d, "Openai-Project") || !slices.Contains(d, "X-Http-Method-Override") || !slices.Contains(d, "X-Original-Url") || !p.KeepsCookies() {
		t.Errorf("%q", d)
	}
	other := plan(t, use.Upstream{URL: "https://x.example", Header: "K: {value}", Allow: []string{"* /**"}})
	if d := other.Drop(); !slices.Contains(d, "Stripe-Account") || !slices.Contains(d, "Sudo") || other.KeepsCookies() {
		t.Errorf("%q", d)
	}
	if perSecond, burst := plan(t, use.Upstream{Service: "openai", Rate: "300/m"}).Rate(); perSecond != 5 || burst != 300 {
		t.Errorf("%v %v", perSecond, burst)
	}
}

func TestAddressesThatTheProxyMayReach(t *testing.T) {
	custom := func(url string, private bool) *use.Plan {
		return plan(t, use.Upstream{URL: url, Private: private, Header: "K: {value}", Allow: []string{"* /**"}})
	}
	apart := []string{"127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "ff02::1", "fec0::1", "2001:db8::1"}
	for _, c := range []struct {
		p              *use.Plan
		yes, no        []string
		plain, private bool
	}{
		{plan(t, use.Upstream{Service: "openai"}), []string{"1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"}, apart, false, false},
		{custom("https://x.example", false), []string{"1.1.1.1"}, apart, false, false},
		{custom("https://x.example", true), []string{"1.1.1.1", "10.0.0.1", "fd00::1"}, []string{"127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0"}, false, true},
		{custom("http://127.0.0.1:8080", false), []string{"127.0.0.1", "::ffff:127.0.0.1"}, []string{"127.0.0.2", "1.1.1.1", "10.0.0.1", "::1"}, true, true},
		{custom("http://localhost:8080", false), []string{"127.0.0.1", "::1"}, []string{"1.1.1.1", "10.0.0.1", "169.254.169.254"}, true, true},
		{custom("https://[fd00::5]", false), []string{"fd00::5"}, []string{"fd00::6", "::1"}, false, true},
		{custom("https://1.1.1.1", false), []string{"1.1.1.1"}, []string{"1.1.1.2", "127.0.0.1"}, false, false},
		{nil, nil, []string{"1.1.1.1"}, false, false},
	} {
		for _, a := range c.yes {
			if err := c.p.CheckAddr(netip.MustParseAddr(a)); err != nil {
				t.Errorf("%s: %v", a, err)
			}
		}
		for _, a := range c.no {
			if c.p.CheckAddr(netip.MustParseAddr(a)) == nil {
				t.Errorf("%s may be reached", a)
			}
		}
		if c.p.Plain() != c.plain || c.p.Private() != c.private {
			t.Errorf("plain %v, private %v", c.p.Plain(), c.p.Private())
		}
	}
}

func TestUpstreamsThatCannotBeMeant(t *testing.T) {
	ok := func(u use.Upstream) use.Upstream {
		if u.Header == "" {
			u.Header = "K: {value}"
		}
		if u.Allow == nil {
			u.Allow = []string{"* /**"}
		}
		return u
	}
	for want, u := range map[string]use.Upstream{
		"needs service (anthropic,":      {},
		"(did you mean \"openai\"?)":     {Service: "opneai"},
		"it has anthropic, github":       {Service: "nobody"},
		"needs header":                   {URL: "https://x.example", Allow: []string{"* /**"}},
		"needs allow":                    {URL: "https://x.example", Header: "K: {value}"},
		"write service: openai":          ok(use.Upstream{URL: "https://api.openai.com/v1"}),
		"never put into URLs":            ok(use.Upstream{URL: "https://x.example/{value}"}),
		"url must be a URL":              ok(use.Upstream{URL: "x.example"}),
		"must begin with https://":       ok(use.Upstream{URL: "ftp://x.example"}),
		"no user or password":            ok(use.Upstream{URL: "https://u:p@x.example"}),
		"no ? or #":                      ok(use.Upstream{URL: "https://x.example?a"}),
		"the host in url must be":        ok(use.Upstream{URL: "https://2130706433/"}),
		"the host in url must be a":      ok(use.Upstream{URL: "https://exämple.org"}),
		"segment of dots":                ok(use.Upstream{URL: "https://x.example/a/../b"}),
		"written plainly":                ok(use.Upstream{URL: "https://x.example/%61"}),
		"must hold {value} once":         ok(use.Upstream{URL: "https://x.example", Header: "K: sk-fake-C4N4RY"}),
		"says something else than a key": ok(use.Upstream{URL: "https://x.example", Header: "Host: {value}"}),
		"write the header's name":        ok(use.Upstream{URL: "https://x.example", Header: "{value}"}),
		"write a method and a path":      ok(use.Upstream{URL: "https://x.example", Allow: []string{"/v1"}}),
		"a method must be one of":        ok(use.Upstream{URL: "https://x.example", Allow: []string{"get /v1"}}),
		"** is a whole segment":          ok(use.Upstream{URL: "https://x.example", Allow: []string{"GET /v1**"}}),
		"can stand in a path once":       ok(use.Upstream{URL: "https://x.example", Allow: []string{"GET /**/a/**"}}),
		"no request could match it: the path holds a segment of dots": ok(use.Upstream{URL: "https://x.example", Allow: []string{"GET /a/../b"}}),
		"percent-encode only what needs it":                           ok(use.Upstream{URL: "https://x.example", Deny: []string{"GET /%61"}}),
		"allow is an empty list":                                      {Service: "openai", Allow: []string{}},
		"is not one that is dropped":                                  {Service: "openai", AllowHeaders: []string{"X-Http-Method-Override"}},
		"only Set-Cookie":                                             {Service: "openai", ResponseHeaders: []string{"Server"}},
		"a rate is":                                                   {Service: "openai", Rate: "0/s"},
		"private is about the host in url":                            {Service: "openai", Private: true},
	} {
		p, err := u.Plan()
		if err == nil || p != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "C4N4RY") {
			t.Errorf("%+v:\n%v\nwant %s", u, err, want)
		}
	}
}

func TestExposeThatCannotBeMeant(t *testing.T) {
	many := slices.Repeat([]string{"/bin/x"}, use.MaxArgs+1)
	for want, e := range map[string]use.Expose{
		"needs env":                         {},
		"letters, digits and _":             {Env: "sk-fake-C4N4RY"},
		"taken from the program":            {Env: "KEYLEASE_TOKEN"},
		"what code to run":                  {Env: "LD_PRELOAD"},
		"means something to shells":         {Env: "PATH"},
		"a-z, 0-9":                          {Commands: map[string][]string{"Deploy": {"/bin/x"}}},
		"a command is a list":               {Commands: map[string][]string{"deploy": {}}},
		"whoever runs it chooses what PATH": {Commands: map[string][]string{"deploy": {"gh", "pr"}}},
		"holds a NUL":                       {Commands: map[string][]string{"deploy": {"/bin/x", "a\x00C4N4RY"}}},
		"at most 64":                        {Commands: map[string][]string{"deploy": many}},
		"longer than 16 KiB":                {Commands: map[string][]string{"deploy": {"/bin/x", strings.Repeat("a", 17<<10)}}},
	} {
		if err := e.Err(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "C4N4RY") {
			t.Errorf("%+v: %v, want %s", e, err, want)
		}
	}
	good := use.Expose{Env: "GH_TOKEN", Commands: map[string][]string{"list-prs.1": {"/usr/bin/gh", "pr", "list"}, "win": {`C:\gh.exe`}}}
	if err := good.Err(); err != nil {
		t.Error(err)
	}
	if (*use.Expose)(nil).Err() != nil || (*use.Upstream)(nil).Err() != nil {
		t.Error("nothing is faulty")
	}
}

// A field of a later version could be a restriction: a record that has one is not read as if it were not there.
func TestRecordsWithUnknownFieldsAreRefused(t *testing.T) {
	for _, text := range []string{`{"service":"openai","onlyAtNight":true}`, `{"env":"A","readOnly":true}`} {
		if json.Unmarshal([]byte(text), new(use.Upstream)) == nil || json.Unmarshal([]byte(text), new(use.Expose)) == nil {
			t.Errorf("%s is read", text)
		}
	}
	u := use.Upstream{Service: "openai", Allow: []string{"GET /v1/models"}, Rate: "1/s"}
	text, err := json.Marshal(u)
	var back use.Upstream
	if err != nil || json.Unmarshal(text, &back) != nil || !reflect.DeepEqual(u, back) {
		t.Errorf("%s: %+v", text, back)
	}
}

// docs/services.md is what an admin reads before trusting a service's key to the proxy.
func TestThePageTellsEachService(t *testing.T) {
	text, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range use.Services() {
		_, page, found := strings.Cut(string(text), "\n## "+s.Title+" (`"+s.Name+"`)\n")
		page, _, _ = strings.Cut(page, "\n## ")
		if !found {
			t.Errorf("%s is not in docs/services.md", s.Name)
			continue
		}
		for _, list := range [][]string{s.Env, s.Allow, s.Guarded, s.Tenant} {
			for _, want := range list {
				if !strings.Contains(page, "`"+want+"`") {
					t.Errorf("%s: docs/services.md does not say `%s`", s.Name, want)
				}
			}
		}
		if !strings.Contains(page, strings.TrimSpace(s.Notes)) {
			t.Errorf("%s: docs/services.md lacks its notes", s.Name)
		}
	}
}
