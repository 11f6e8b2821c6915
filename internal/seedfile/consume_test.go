package seedfile_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"keylease/internal/secret"
	"keylease/internal/seedfile"
)

func TestConsumeTakesOutTheValueAndNothingElse(t *testing.T) {
	const keep = "valueFrom: {store: true}"
	for _, c := range []struct{ name, before, after string }{
		{"plain, with a comment", "value: sk-fake-1   # the key\n  metadata: {k: v}", keep + "   # the key\n  metadata: {k: v}"},
		{"last line without a break", "value: sk-fake-1", keep},
		{"windows lines", "value: sk-fake-1\r\n  metadata: {k: v}\r\n", keep + "\r\n  metadata: {k: v}\r\n"},
		{"double quotes", `value: "sk \"fake\" # \\"  # c`, keep + "  # c"},
		{"single quotes", `value: 'sk ''fake'' # \'  # c`, keep + "  # c"},
		{"over lines", "value: sk fake\n    and more\n\n    and more  # c\n  metadata: {}\n", keep + "  # c\n  metadata: {}\n"},
		{"quoted over lines", "value: \"sk fake\n    and \\\n    more\"\n  metadata: {}\n", keep + "\n  metadata: {}\n"},
		{"a block", "value: |\n    -- begin\n      fake\n\n    -- end\n\n  # about the next\n  metadata: {}\n", keep + "\n\n  # about the next\n  metadata: {}\n"},
		{"a block with a comment", "value: |- # pasted\n    fake\n  metadata: {}\n", keep + " # pasted\n  metadata: {}\n"},
		{"a folded block at the end", "value: >\n      fake\n      fake", keep},
		{"a block that says its indent", "value: |2\n      fake\n    fake\n  metadata: {}\n", keep + "\n  metadata: {}\n"},
		{"on the next line", "value:\n    sk-fake-1\n  metadata: {}\n", keep + "\n  metadata: {}\n"},
		{"a quoted name", `"value": "sk-fake-1" # c`, `"valueFrom": {"store": true} # c`},
		{"before other characters", "metadata: {k: ☂😀}\n  value: ☂😀 # ☂\n", "metadata: {k: ☂😀}\n  " + keep + " # ☂\n"},
	} {
		head := "# ☂ seeds\ncredentials:\n- type: generic-secret\n  name: a # first\n  "
		out, err := seedfile.Consume("f", []byte(head+c.before), []string{"a"})
		if err != nil || string(out) != head+c.after {
			t.Errorf("%s: %v\n%q\nwant\n%q", c.name, err, out, head+c.after)
		}
	}
}

func TestConsumeInJSON(t *testing.T) {
	const before = `{"credentials":[{"name":"a","type":"api-key","value":"sk-fake-\"1\"","metadata":{"k":"v"}},{"name":"b","type":"api-key","value":"sk-fake-2"}]}`
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, before},
		{[]string{"nobody"}, before},
		{[]string{"a"}, strings.Replace(before, `"value":"sk-fake-\"1\""`, `"valueFrom": {"store": true}`, 1)},
		{[]string{"b", "a"}, strings.Replace(strings.Replace(before, `"value":"sk-fake-\"1\""`, `"valueFrom": {"store": true}`, 1), `"value":"sk-fake-2"`, `"valueFrom": {"store": true}`, 1)},
	} {
		out, err := seedfile.Consume("f", []byte(before), c.names)
		if err != nil || string(out) != c.want {
			t.Errorf("%v: %s %v", c.names, out, err)
		}
	}
}

func TestConsumeTheExample(t *testing.T) {
	data, err := os.ReadFile("../../seed.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	items, err := seedfile.Parse("f", data)
	if err != nil {
		t.Fatal(err)
	}
	checkConsume(t, data, items)
	out, err := seedfile.Consume("f", data, []string{"openai-api-key-prod", "stripe-secret-key-test", "aws-deploy-key-prod", "github-token-dev", "acme-api-key"})
	if err != nil || bytes.Contains(out, []byte("fake-not")) {
		t.Errorf("a value is left: %v", err)
	}
	if bytes.Count(out, []byte("\n")) != bytes.Count(data, []byte("\n")) {
		t.Error("lines came or went")
	}
}

// TestConsumeLeavesTheRestAlone tries layouts at random: what stands before, between and behind the values is
// there afterwards, byte for byte, and the items read as before but for their values.
func TestConsumeLeavesTheRestAlone(t *testing.T) {
	values := []string{"sk-fake-1", `"sk fake \u2602"`, "'it''s fake'", "|\n      fake\n        fake", ">-\n     fake\n\n     fake", "sk\n      fake", "|+\n    fake"}
	behind := []string{"\n", "\n\n", " # c\n", "\r\n"}
	between := []string{"", "  # note\n", "  metadata: {k: \"value: x\"}\n", "  policy:\n    maxLeases: 2 # few\n", "\n", "# far left\n"}
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) string { return list[rng.IntN(len(list))] }
	for range 200 {
		text := pick([]string{"", "# head ☂\n", "---\n"}) + "credentials:\n"
		want := text
		both := func(s string) { text, want = text+s, want+s }
		for _, name := range []string{"a", "b", "c"} {
			both("- name: " + name + "\n  type: generic-secret\n" + pick(between[:2]) + "  ")
			v, rest := pick(values), pick(behind)
			if strings.ContainsAny(v, "|>") {
				rest = pick(behind[:2]) // a comment would be part of the value
			}
			text, want = text+"value: "+v, want+"valueFrom: {store: true}"
			both(rest + pick(between))
		}
		items, err := seedfile.Parse("f", []byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		out, err := seedfile.Consume("f", []byte(text), []string{"a", "b", "c"})
		if err != nil || string(out) != want {
			t.Fatalf("%q became\n%q: %v; want\n%q", text, out, err, want)
		}
		checkConsume(t, []byte(text), items)
	}
}

// checkConsume consumes one item after the other and holds each step against the one before.
func checkConsume(t *testing.T, data []byte, items []seedfile.Item) {
	t.Helper()
	for i := range items {
		out, err := seedfile.Consume("f", data, []string{items[i].Name})
		if err != nil {
			return // refused: nothing is written
		}
		after, err := seedfile.Parse("f", out)
		if err != nil {
			t.Fatalf("%q became %q: %v", data, out, err)
		}
		for j := range after {
			want := items[j]
			if want.Literal && j == i {
				want.Literal, want.Consumed, want.Value = false, true, secret.Secret{}
			}
			after[j].Line = want.Line // a value over several lines takes them along
			if !reflect.DeepEqual(after[j], want) {
				t.Fatalf("%q became %q: item %d is %+v", data, out, j, after[j])
			}
			items[j] = want
		}
		data = out
	}
}
