package server

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestStrictJSONTakesWhatClientsSend(t *testing.T) {
	for _, line := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true}},"clientInfo":{"name":"claude-code","version":"2.1"}}}`,
		`{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"lease_credential","arguments":{"credential":"x","metadata":{"Name":"1","ID":"2"}},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":7}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		` { "jsonrpc" : "2.0" , "id" : 3, "result" : {} } `,
	} {
		if err := strictJSON([]byte(line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestStrictJSONRefusesWhatTwoReadersCouldReadInTwoWays(t *testing.T) {
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(`,"k` + strings.Repeat("x", i) + `":1`)
		}
		return `{` + b.String()[1:] + `}`
	}
	for name, line := range map[string]string{
		"garbage":                     `hello`,
		"empty":                       ``,
		"array":                       `[{"jsonrpc":"2.0"}]`,
		"two objects":                 `{}{}`,
		"trailing garbage":            `{} x`,
		"unfinished":                  `{"a":1`,
		"duplicate":                   `{"id":1,"id":2}`,
		"escaped duplicate":           `{"id":1,"\u0069d":2}`,
		"duplicate by case":           `{"a":1,"A":2}`,
		"duplicate by long s":         `{"sub":1,"ſub":2}`,
		"duplicate by Kelvin":         `{"k":1,"` + "\u212a" + `":2}`,
		"duplicate in arguments":      `{"params":{"arguments":{"ttl":"1m","TTL":"2m"}}}`,
		"deep duplicate":              `{"a":[{"b":{"c":1,"c":1}}]}`,
		"METHOD":                      `{"jsonrpc":"2.0","id":1,"METHOD":"ping"}`,
		"Name":                        `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"Name":"x"}}`,
		"paramſ":                      `{"jsonrpc":"2.0","id":1,"method":"tools/call","paramſ":{}}`,
		"clientInfo's Name":           `{"params":{"clientInfo":{"NAME":"x"}}}`,
		"NUL suffix":                  `{"method\u0000":"x"}`,
		"control character in a name": `{"a\u0007":1}`,
		"invalid UTF-8":               "{\"a\":\"\xff\"}",
		"33 deep":                     deep(32),
		"10^5 deep":                   strings.Repeat(`{"a":`, 1e4),
		"10^4 members":                many(300),
		"long number":                 `{"id":` + strings.Repeat("9", 1000) + `}`,
		"too long":                    `{"a":"` + strings.Repeat("x", maxLine) + `"}`,
	} {
		err := strictJSON([]byte(line))
		if err == nil {
			t.Errorf("%s was let through", name)
		} else if strings.Contains(err.Error(), "xxx") {
			t.Errorf("%s: the error repeats what was sent: %v", name, err)
		}
	}
	if err := strictJSON([]byte(deep(31))); err != nil {
		t.Errorf("32 deep is allowed: %v", err)
	}
}

// A refused message is answered under its id, so that nobody waits in vain, unless it is not clear which that is.
func TestARefusedMessageIsAnsweredUnderItsOneID(t *testing.T) {
	for line, want := range map[string]string{
		`{"jsonrpc":"2.0","id":7,"method":"x","params":{"a":1,"A":2}}`:                "7",
		`{"params":{"a\u0000":1},"method":"x","jsonrpc":"2.0","id":"last"}`:           `"last"`,
		`{"id":7,"params":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`: "7",
		`{"id":7,"id":8,"method":"x"}`:                                                "",
		`{"id":7,"ID":8,"method":"x"}`:                                                "",
		`{"ID":8,"method":"x"}`:                                                       "",
		`{"params":{"id":9},"a":1,"A":2}`:                                             "",
		`{"id":{"id":9},"a":1,"A":2}`:                                                 "",
		`{"id":7,"a":1`:                                                               "",
		`{"id":7,"a":"` + strings.Repeat("x", maxLine) + `"}`:                         "",
		`[{"id":7}]`: "",
		`hello`:      "",
	} {
		e, fault := parseEnvelope([]byte(line))
		if fault == nil || string(e.ID) != want {
			t.Errorf("%.80s: %v, id %s, want %s", line, fault, e.ID, want)
		}
	}
}

func TestReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("one\r\n\n"+strings.Repeat("y", 100)+"\n"+strings.Repeat("z", 101)+"\nlast"), 16)
	for _, want := range []string{"one", "", strings.Repeat("y", 100)} {
		if got, err := readLine(r, 100); err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	if _, err := readLine(r, 100); !errors.Is(err, errLineTooLong) {
		t.Fatalf("a long line gave %v", err)
	}
	if _, err := readLine(r, 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("an unfinished line gave %v", err)
	}
	if _, err := readLine(r, 100); !errors.Is(err, io.EOF) {
		t.Fatalf("the end gave %v", err)
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                 "plain",
		"a\x1b[31mb\nc":         "a[31mbc",
		"rtl\u202eoverride":     "rtloverride",
		"zero\u200bwidth\ufeff": "zerowidth",
		"bad\xffutf8":           "badutf8",
		"ümlautümlaut":          "ümlautü",
	} {
		if got := cleanText(in, 10); got != want[:min(len(want), 10)] && in != "ümlautümlaut" {
			t.Errorf("cleanText(%q) = %q", in, got)
		}
	}
	if got := cleanText("ümlautümlaut", 8); got != "ümlaut" {
		t.Errorf("a rune was cut: %q", got)
	}
}
