package seedfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"keylease/internal/credtype"
	"keylease/internal/identity"
	"keylease/internal/seedfile"
	"keylease/internal/strictyaml"
	"keylease/policy"
)

func TestTheExample(t *testing.T) {
	data, err := os.ReadFile("../../seed.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	items, err := seedfile.Parse("seed.example.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, it := range items {
		names = append(names, it.Name)
		if !it.Literal || it.Consumed || it.ValueFrom != nil || !strings.Contains(string(it.Value.Bytes()), "fake") {
			t.Errorf("%s: not an obviously fake literal", it.Name)
		}
	}
	if want := []string{"openai-api-key-prod", "stripe-secret-key-test", "aws-deploy-key-prod", "github-token-dev", "acme-api-key"}; !reflect.DeepEqual(names, want) {
		t.Errorf("got %q", names)
	}
	want := policy.CredentialPolicy{DefaultLeaseTTL: 30 * time.Minute, MaxLeaseTTL: 4 * time.Hour, MaxLeases: 5}
	if !reflect.DeepEqual(items[0].Policy, want) || items[0].Metadata["prefix"] != "sk-proj-" || items[0].Type != "api-key" {
		t.Errorf("openai: %+v", items[0])
	}
	if items[2].Metadata["accessKeyId"] == "" || items[2].Metadata["iamUser"] != "deploy-bot" {
		t.Errorf("aws: %+v", items[2])
	}
	if e := items[3].Expose; e == nil || e.Env != "GH_TOKEN" || len(e.Commands["list-prs"]) != 3 || items[3].Upstream.Service != "github" || items[4].Upstream.Deny == nil || items[0].Upstream != nil {
		t.Errorf("github: %+v %+v", e, items[3].Upstream)
	}
	if a := items[1].Policy.AllowedIdentities; len(a) != 3 || a[2] != (policy.Matcher{Type: identity.Human, Email: "*@example.com"}) {
		t.Errorf("stripe: %+v", a)
	}
}

func TestWhereValuesComeFrom(t *testing.T) {
	items, err := seedfile.Parse("f", []byte(`{"credentials": [
	{"name": "a", "type": "api-key", "value": "sk-fake-1"},
	{"name": "b", "type": "api-key", "valueFrom": {"env": "B_KEY"}},
	{"name": "c", "type": "api-key", "valueFrom": {"file": "/run/secrets/c"}},
	{"name": "d", "type": "generic-secret", "valueFrom": {"store": true}}
]}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, it := range items {
		got = append(got, fmt.Sprint(it.Name, it.Line, string(it.Value.Bytes()), it.ValueFrom, it.Literal, it.Consumed))
	}
	want := []string{"a2sk-fake-1<nil> true false", "b3&{B_KEY } false false", "c4&{ /run/secrets/c} false false", "d5<nil> false true"}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q", got)
	}
	if items, err := seedfile.Parse("f", []byte("credentials: []")); err != nil || len(items) != 0 {
		t.Errorf("%v %v", items, err)
	}
}

func TestBadSeedFiles(t *testing.T) {
	item := func(fields string) string { return "credentials:\n- {name: a, type: api-key, " + fields + "}" }
	const v = "value: sk-fake-1"
	const noTTL = "is not a duration: write whole numbers with d, h, m or s, at least 1s and at most ten years, like 90s, 30m, 1h30m or 2d"
	for _, c := range []struct{ name, file, want string }{
		{"empty", "", "f:1: the file is empty"},
		{"no credentials", "credential: []", "f:1: unknown field \"credential\": did you mean \"credentials\"?\nf:1: the file needs credentials: a list of what to store"},
		{"a list at the top", "- name: a", "f:1: the file must be fields with values"},
		{"half good", "credentials:\n- {name: good, type: api-key, value: sk-fake-1}\n- {name: bad/one, type: api-kee, value: ''}\n- {nmae: c, type: api-key}\n",
			"f:3: a credential's name can't hold '/': use a-z, 0-9 and . _ -\nf:3: there is no such type; use api-key or generic-secret\nf:3: the value is empty\n" +
				"f:4: unknown field \"nmae\": did you mean \"name\"?\nf:4: the credential needs a name\n" +
				"f:4: the credential has no value: write value, or valueFrom: {env: NAME} or {file: PATH}, or {store: true} if the store has it already"},
		{"same name twice", "credentials:\n- name: a\n  type: api-key\n  value: x\n-\n  type: api-key\n  name: a\n  value: y", "f:7: another credential has this name: it was on line 2 already"},
		{"no type", "credentials: [{name: a, value: x}]", "f:1: the credential needs a type, such as api-key"},
		{"a type of a later version", "credentials: [{name: a, type: ssh-key, value: x}]", `f:1: type "ssh-key" is not supported by this version; use api-key or generic-secret`},
		{"both", item(v + ", valueFrom: {env: A}"), "f:2: the credential has both value and valueFrom; keep one"},
		{"two sources", item("valueFrom: {env: A, file: b}"), "f:2: valueFrom needs exactly one of env, file and store"},
		{"no source", item("valueFrom: {}"), "f:2: valueFrom needs exactly one of env, file and store"},
		{"source as text", item("valueFrom: store"), "f:2: valueFrom must be fields with values"},
		{"a value where a variable's name should be", item("valueFrom: {env: sk-fake-1}"), "f:2: env must be the name of an environment variable: letters, digits and _, no digit first"},
		{"no file", item("valueFrom: {file: ''}"), "f:2: file must be the path of a file"},
		{"not in the store", item("valueFrom: {store: false}"), "f:2: store can only be true: the value is in the store already"},
		{"a number", item("value: 12345"), "f:2: value must be text: put it in quotes"},
		{"nothing", item("value: "), "f:2: value has no value: it must be text: put it in quotes"},
		{"white space", item(`value: "sk-fake-1\n"`), "f:2: the api-key begins or ends with white space or a control character; take it away, or store it as generic-secret if it belongs there"},
		{"65 KiB", item("value: " + strings.Repeat("x", 65<<10)), "f:2: the value is 66560 bytes long; at most 65536 (64 KiB) can be stored"},
		{"metadata", item(v + `, metadata: {a: 1, b: "x\u202ey", "": z}`),
			"f:2: field \"a\" in metadata must be text: put it in quotes\nf:2: a metadata key is empty\nf:2: a metadata value holds a character that turns the reading direction (U+202E)"},
		{"durations", "credentials:\n- name: a\n  type: api-key\n  value: x\n  policy:\n    defaultLeaseTTL: 30 minutes\n    maxLeaseTTL: forever\n    maxLeases: -1\n    maxLease: 1",
			"f:6: defaultLeaseTTL " + noTTL + "\nf:7: maxLeaseTTL " + noTTL + "\nf:8: maxLeases must be from 1 to 1000000; leave it out for no limit\nf:9: unknown field \"maxLease\": did you mean \"maxLeases\"?"},
		{"default over maximum", item(v + ", policy: {defaultLeaseTTL: 5h, maxLeaseTTL: 4h}"), "f:2: defaultLeaseTTL (5h) is longer than maxLeaseTTL (4h)"},
		{"policy words", item(v + ", policy: {approval: operater, delivery: [valu]}"),
			"f:2: delivery must be proxy, exec or value (did you mean \"value\"?)\nf:2: approval must be none, user or operator (did you mean \"operator\"?)"},
		{"nobody", item(v + ", policy: {allowedIdentities: []}"), "f:2: allowedIdentities is an empty list: nobody could lease it; leave it out to admit all whom a rule admits"},
		{"how it is used", "credentials:\n- name: a\n  type: api-key\n  value: x\n  expose:\n    env: PATH\n    commands: {x: [gh]}\n  upstream:\n    service: opneai\n    alow: []\n    allow:\n      - GET /x\n      - get /x",
			"f:6: env: this variable means something to shells and programs, which the secret would break or be printed by\nf:7: a command's program must be an absolute path: whoever runs it chooses what PATH finds\n" +
				"f:9: there is no such service in the catalogue (did you mean \"openai\"?); it has anthropic, github, gitlab, huggingface, npm, openai, slack, stripe. For another write url, header and allow\n" +
				"f:10: unknown field \"alow\": did you mean \"allow\"?\nf:13: this rule of allow can't be used: a method must be one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, in upper case with commas between, or * for all"},
		{"nothing in them", item(v + ", expose: {}, upstream: {}"),
			"f:2: expose needs env, the name of a variable, or commands\nf:2: upstream needs service (anthropic, github, gitlab, huggingface, npm, openai, slack, stripe) or url"},
	} {
		items, err := seedfile.Parse("f", []byte(c.file))
		if items != nil || err == nil || err.Error() != c.want {
			t.Errorf("%s: %d items,\n%v\nwant:\n%s", c.name, len(items), err, c.want)
		}
		var faults strictyaml.Faults
		if !errors.As(err, &faults) {
			t.Errorf("%s: %T", c.name, err)
		}
	}
}

const canary = "sk-fake-C4N4RY-7"

// A secret in the wrong field, at the wrong depth or badly quoted is the slip that an error must not publish.
func TestNoFaultRepeatsAValue(t *testing.T) {
	for _, file := range []string{
		"name: CANARY", "type: CANARY", "value: [CANARY]", "value: {CANARY: x}", "CANARY: x", "valueFrom: CANARY", "valueFrom: {env: CANARY}", "valueFrom: {CANARY: x}",
		"value: CANARY\n  valueFrom: {env: CANARY}", "metadata: CANARY", "metadata: {CANARY: 1}", "metadata: {k: [CANARY]}", "metadata: {k: \"CANARY\\n\"}",
		"metadata: {\"CANARY\\n\": x}", "policy: CANARY", "policy: {maxLeaseTTL: CANARY}", "policy: {maxLeases: CANARY}", "policy: {approval: CANARY}", "policy: {delivery: [CANARY]}",
		"policy: {CANARY: x}", "expose: {env: CANARY}", "expose: {commands: {CANARY: [x]}}", "expose: {commands: {x: [CANARY]}}", "expose: {commands: {x: CANARY}}", "upstream: {service: CANARY}", "upstream: {url: CANARY}",
		"upstream: {url: \"https://x/?k=CANARY\"}", "upstream: {header: CANARY}", "upstream: {header: \"A: CANARY\"}", "upstream: {service: openai, allow: [CANARY]}", "upstream: {service: openai, allowHeaders: [CANARY]}", "upstream: {service: openai, rate: CANARY}", "upstream: CANARY",
		"policy: {allowedIdentities: [CANARY]}", "policy: {allowedIdentities: [{type: CANARY}]}", "policy: {allowedIdentities: [{type: agent, name: \"CANARY{\"}]}",
		"value: \"CANARY ", "value: @CANARY", "value: *CANARY", "value: !CANARY", "value: &CANARY", "value: x: CANARY", "value: \" CANARY\"", "value: |\n CANARY",
	} {
		text := "credentials:\n- " + strings.ReplaceAll(file, "CANARY", canary)
		if _, err := seedfile.Parse("f", []byte(text)); err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "C4N4RY") {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := seedfile.Consume("f", []byte(text), []string{"a"}); err == nil || strings.Contains(err.Error(), "C4N4RY") {
			t.Errorf("consume %q: %v", text, err)
		}
	}
}

// A file with a fault gives no item, and no fault repeats a value. What parses is the same when its values are consumed one
// by one, but for those values; with a key that nobody knows added to it, it is refused.
func FuzzParse(f *testing.F) {
	f.Add([]byte("credentials:\n- name: a\n  type: api-key\n  value: " + canary + "\n  metadata: {k: v}\n"))
	f.Add([]byte(`{"credentials": [{"name": "a", "type": "generic-secret", "value": "` + canary + `", "policy": {"maxLeaseTTL": "1h"}}]}`))
	f.Add([]byte("credentials:\n- name: a\n  type: api-key\n  value: >- # why\n    " + canary + "\n    x\n\n  policy: {maxLeases: 1, allowedIdentities: [{type: agent, name: x}]}\n"))
	f.Add([]byte("credentials:\n- name: a\n  type: api-key\n  value: x\n  expose: {env: A, commands: {b: [/bin/c, d]}}\n  upstream: {service: github, url: \"http://localhost:1\", header: \"A: {value}\", allow: [\"GET,HEAD /a/*/b*/**\"], deny: [\"* /x\"], rate: 1/s}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		items, err := seedfile.Parse("f", data)
		if err != nil {
			if items != nil || strings.Contains(err.Error(), canary) {
				t.Fatalf("%q: %v", data, err)
			}
			return
		}
		for _, it := range items {
			if n := len(it.Value.Bytes()); (n > 0) != it.Literal || n > credtype.MaxValue || credtype.CheckName(it.Name) != nil || credtype.CheckMetadata(it.Metadata) != nil {
				t.Fatalf("%q: an item that can't be stored: %+v", data, it)
			}
		}
		if _, err := seedfile.Parse("f", append(bytes.Clone(data), "\nnobodyKnows: 1\n"...)); err == nil {
			t.Fatalf("%q is taken with a key that nobody knows", data)
		}
		checkConsume(t, data, items)
	})
}
