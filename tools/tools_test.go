package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/secret"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

const canary = "sk-fake-canary-77"

// newServer returns the tools on a real broker that has two credentials, one of which the proxy can use.
func newServer(t *testing.T, log zerolog.Logger) *mcpserver.MCPServer {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(store.Options{Dir: filepath.Join(dir, "data"), AnchorDir: filepath.Join(dir, "config"),
		RootKey: make([]byte, 32), KeySource: "test", Create: true, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	b, err := lease.Open(context.Background(), lease.Config{Store: s, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Put(context.Background(), identity.Caller{}, lease.NewCredential{Name: "openai", Type: "api-key",
		Value: secret.New([]byte(canary)), Metadata: map[string]string{"service": "openai"},
		Policy: policy.CredentialPolicy{DefaultLeaseTTL: 30 * time.Minute, MaxLeaseTTL: 4 * time.Hour, MaxLeases: 2}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Put(context.Background(), identity.Caller{}, lease.NewCredential{Name: "service", Type: "api-key",
		Value: secret.New([]byte(canary)), Upstream: &use.Upstream{Service: "openai"}})
	if err != nil {
		t.Fatal(err)
	}
	tools := NewServer(Options{Broker: b, Log: log, Version: "test", Command: []string{"keylease"},
		Proxy: func(context.Context) (string, error) { return "http://127.0.0.1:1", nil }})
	mcpserver.WithOutputSchemaValidation()(tools) // every answer of these tests fits its schema, or is internal
	return tools
}

func agentContext() context.Context {
	return identity.With(context.Background(), identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "claude-code", By: "uid:1000"}})
}

// call sends one tools/call and returns the raw result.
func call(t *testing.T, ctx context.Context, s *mcpserver.MCPServer, tool, args string) (structured map[string]any, raw []byte, isError bool) {
	t.Helper()
	answer := s.HandleMessage(ctx, json.RawMessage(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+tool+`","arguments":`+args+`}}`))
	raw, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Result struct {
			Content           []struct{ Text string }
			StructuredContent json.RawMessage
			IsError           bool
		}
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Result.Content) != 1 || r.Result.Content[0].Text != string(r.Result.StructuredContent) {
		t.Fatalf("text and structuredContent differ: %s", raw)
	}
	if err := json.Unmarshal(r.Result.StructuredContent, &structured); err != nil {
		t.Fatal(err)
	}
	return structured, raw, r.Result.IsError
}

func TestToolsListIsGolden(t *testing.T) {
	s := newServer(t, zerolog.Nop())
	raw, err := json.Marshal(s.HandleMessage(context.Background(), json.RawMessage(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	const golden = "testdata/tools_list.json"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("tools/list changed; if that was meant, run go test ./tools -update and read the diff\n%s", got.Bytes())
	}
}

// Some clients map schemas onto a dialect in which a value has one type, and drop what does not fit.
func TestSchemasNameOneTypeForEachValue(t *testing.T) {
	raw, err := json.Marshal(newServer(t, zerolog.Nop()).HandleMessage(context.Background(), json.RawMessage(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)))
	if err != nil || !bytes.Contains(raw, []byte(`"anyOf":[{"type":"null"},{"type":"integer"}]`)) {
		t.Fatalf("max_leases is not said to be null or a number: %v %s", err, raw)
	}
	if bytes.Contains(raw, []byte(`"type":[`)) {
		t.Errorf("a list of types: %s", raw)
	}
}

func TestNothingInAListIsNull(t *testing.T) {
	s, ctx := newServer(t, zerolog.Nop()), agentContext()
	for args, wants := range map[string]string{`{}`: `"your_leases":[]`, `{"match":"no-such-*"}`: `"credentials":[]`} {
		if _, raw, isError := call(t, ctx, s, "list_credentials", args); isError || !bytes.Contains(raw, []byte(wants)) {
			t.Errorf("%s: want %s in %s", args, wants, raw)
		}
	}
}

func TestTheWholeLoan(t *testing.T) {
	s, ctx := newServer(t, zerolog.Nop()), agentContext()
	list, raw, _ := call(t, ctx, s, "list_credentials", `{}`)
	if c := list["credentials"].([]any)[0].(map[string]any); c["name"] != "openai" || c["max_leases"] != 2.0 || c["max_ttl"] != "4h" {
		t.Errorf("list: %s", raw)
	}
	if bytes.Contains(raw, []byte(canary)) {
		t.Error("the list holds the value")
	}
	got, raw, _ := call(t, ctx, s, "lease_credential", `{"credential":"openai","ttl":"24h","purpose":"test"}`)
	if got["value"] != canary || got["ttl"] != "4h" || got["ttl_capped"] != true || got["status"] != "granted" {
		t.Errorf("lease: %s", raw)
	}
	if n := bytes.Count(raw, []byte(canary)); n != 2 {
		t.Errorf("the value stands %d times in the answer, want once in each copy", n)
	}
	id := got["lease_id"].(string)
	renewed, raw, _ := call(t, ctx, s, "lease_credential", `{"lease_id":"`+id+`","ttl":"10m"}`)
	if renewed["ttl"] != "10m" || bytes.Contains(raw, []byte(canary)) {
		t.Errorf("renewal: %s", raw)
	}
	released, raw, _ := call(t, ctx, s, "release_lease", `{"lease_id":"`+id+`"}`)
	if released["status"] != "released" {
		t.Errorf("release: %s", raw)
	}
}

// localContext is that of a caller on the local socket.
func localContext() context.Context {
	return identity.With(context.Background(), identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "claude-code", By: "uid:1000"},
		Transport: "local", UID: "1000", Session: "s_test"})
}

// TestAValueStandsInValueResultsAlone is D4 on the tools: what is lent by proxy or exec is never in an answer, and the
// hints say what to do with what is.
func TestAValueStandsInValueResultsAlone(t *testing.T) {
	s, ctx := newServer(t, zerolog.Nop()), localContext()
	for _, c := range []struct {
		args, way   string
		values      int
		says, again string
	}{
		{`{"credential":"service"}`, "proxy", 0, "variables of use.env", "base_url and api_key you have"},
		{`{"credential":"service","delivery":"exec"}`, "exec", 0, "finds the key in $OPENAI_API_KEY", "command_prefix you have"},
		{`{"credential":"service","delivery":"value"}`, "value", 2, `Next time ask with delivery "proxy"`, "value you have"},
		{`{"credential":"openai"}`, "value", 2, `Next time ask with delivery "exec"`, "value you have"},
	} {
		got, raw, _ := call(t, ctx, s, "lease_credential", c.args)
		hint, _ := got["hint"].(string)
		if _, has := got["value"]; got["delivery"] != c.way || has != (c.values > 0) || bytes.Count(raw, []byte(canary)) != c.values || !strings.Contains(hint, c.says) {
			t.Errorf("%s: %s", c.args, raw)
		}
		id, _ := got["lease_id"].(string)
		again, raw, _ := call(t, ctx, s, "lease_credential", `{"lease_id":"`+id+`"}`)
		hint, _ = again["hint"].(string)
		if bytes.Contains(raw, []byte(canary)) || again["use"] != nil || !strings.Contains(hint, c.again) || c.values == 0 && strings.Contains(hint, "value") {
			t.Errorf("%s, renewed: %s", c.args, raw)
		}
	}
	if _, raw, _ := call(t, ctx, s, "list_credentials", `{}`); bytes.Contains(raw, []byte(canary)) || !bytes.Contains(raw, []byte(`"deliveries":["proxy","exec","value"]`)) {
		t.Errorf("the list: %s", raw)
	}
	remote := identity.With(context.Background(), identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: "far", Proof: identity.Token, By: "uid:1"}, Transport: "http", Remote: true})
	if _, raw, _ := call(t, remote, s, "lease_credential", `{"credential":"openai"}`); !bytes.Contains(raw, []byte(canary)) || bytes.Contains(raw, []byte("Next time")) {
		t.Errorf("a way that is not open is recommended: %s", raw)
	}
}

func TestRefusalsAreForModels(t *testing.T) {
	s, ctx := newServer(t, zerolog.Nop()), agentContext()
	for _, c := range []struct{ tool, args, code, says string }{
		{"lease_credential", `{}`, "invalid_argument", "credential is missing"},
		{"lease_credential", `{"credential":"openai","ttl":"forever"}`, "invalid_argument", "not a duration"},
		{"lease_credential", `{"credential":"openai","ttl":"-1h"}`, "invalid_argument", "not a duration"},
		{"lease_credential", `{"credential":"openai","identity":"root"}`, "invalid_argument", `no argument "identity"; it takes credential, ttl`},
		{"lease_credential", `{"credential":42}`, "invalid_argument", "the argument credential is not of the type"},
		{"lease_credential", `{"credential":"openai","delivery":"proxy"}`, "delivery_unavailable", ""},
		{"lease_credential", `{"credential":"openai","delivery":"pigeon"}`, "invalid_argument", "delivery"},
		{"lease_credential", `{"credential":"openai","purpose":"` + strings.Repeat("p", 201) + `"}`, "invalid_argument", "purpose"},
		{"lease_credential", `{"credential":"../openai"}`, "not_available", ""},
		{"lease_credential", `{"credential":"OPENAI"}`, "not_available", ""},
		{"lease_credential", `{"lease_id":"ls_unknown"}`, "not_available", ""},
		{"release_lease", `{"lease_id":""}`, "invalid_argument", "lease_id"},
		{"release_lease", `{}`, "invalid_argument", "the argument lease_id is missing"},
		{"list_credentials", `{"limit":-1}`, "invalid_argument", "limit"},
		{"list_credentials", `{"metadata":{"a":1}}`, "invalid_argument", "metadata"},
	} {
		got, raw, isError := call(t, ctx, s, c.tool, c.args)
		e, _ := got["error"].(map[string]any)
		if !isError || e["code"] != c.code || !strings.Contains(e["message"].(string), c.says) || e["hint"] == "" {
			t.Errorf("%s %s: %s", c.tool, c.args, raw)
		}
	}
}

func TestWithoutAnIdentityEveryCallIsRefused(t *testing.T) {
	s := newServer(t, zerolog.Nop())
	for tool, args := range map[string]string{"lease_credential": `{"credential":"openai"}`, "list_credentials": `{}`, "release_lease": `{"lease_id":"x"}`} {
		got, raw, isError := call(t, context.Background(), s, tool, args)
		if e, _ := got["error"].(map[string]any); !isError || e["code"] != "unauthenticated" {
			t.Errorf("%s: %s", tool, raw)
		}
	}
}

func TestAPanicBecomesAnIdThatIsInTheLog(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, zerolog.New(&log))
	type nothing struct{}
	s.AddTool(releaseTool(), typed(func(context.Context, releaseArgs) (nothing, error) { panic("boom " + canary) }))
	got, raw, isError := call(t, agentContext(), s, "release_lease", `{"lease_id":"x"}`)
	e, _ := got["error"].(map[string]any)
	if !isError || e["code"] != "internal" || bytes.Contains(raw, []byte("boom")) {
		t.Fatalf("%s", raw)
	}
	if strings.Contains(log.String(), canary) {
		t.Error("the log holds what the panic said")
	}
	if id, _ := e["id"].(string); id == "" || !strings.Contains(log.String(), id) {
		t.Errorf("id %q is not in the log", id)
	}
}

// Who leaves delivery out is to know what that gives before it is given.
func TestTheListSaysWhatIsGivenWhereNoDeliveryIsAskedFor(t *testing.T) {
	list, _, _ := call(t, agentContext(), newServer(t, zerolog.Nop()), "list_credentials", `{}`)
	got := map[string]any{}
	for _, c := range list["credentials"].([]any) {
		got[c.(map[string]any)["name"].(string)] = c.(map[string]any)["default_delivery"]
	}
	if got["openai"] != "value" || got["service"] != "proxy" {
		t.Errorf("default deliveries: %v", got)
	}
	for name, want := range got {
		if l, _, refused := call(t, agentContext(), newServer(t, zerolog.Nop()), "lease_credential", `{"credential":"`+name+`"}`); refused || l["delivery"] != want {
			t.Errorf("%s is listed with %v and given by %v", name, want, l["delivery"])
		}
	}
}
