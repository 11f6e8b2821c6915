package server

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// A client of 2026-07-28 acts on the code, the HTTP status and the data of an error: it negotiates down, corrects its
// headers or gives up. Our neutral texts must leave all of that alone, on both ways in.
func TestProtocolErrorsTellAClientWhatItHasToKnow(t *testing.T) {
	web := newWeb(t)
	_, p := openHouse(t)
	local := dialWire(t, p, hello{})
	const meta = "io.modelcontextprotocol/"
	whoami, headers := callModern(1, "whoami")
	swap := func(of []string, old, put string) []string {
		out := slices.Clone(of)
		for i := range out {
			out[i] = strings.Replace(out[i], old, put, 1)
		}
		return slices.DeleteFunc(out, func(h string) bool { return h == "" })
	}
	for _, c := range []struct {
		name, body string
		headers    []string
		status     int
		code       int
		says       string // in the message, or the data
		alike      bool   // over the socket too, where there are no headers
	}{
		{"a version to come", strings.ReplaceAll(whoami, "2026-07-28", "2099-01-01"), swap(headers, "2026-07-28", "2099-01-01"), 400, -32022, `"supported":["2026-07-28","2025-11-25"`, true},
		{"its version comes back", strings.ReplaceAll(whoami, "2026-07-28", "2099-01-01"), swap(headers, "2026-07-28", "2099-01-01"), 400, -32022, `"requested":"2099-01-01"`, true},
		{"another version in the header", whoami, swap(headers, "2026-07-28", "2025-11-25"), 400, -32020, "MCP-Protocol-Version", false},
		{"no version in the header", whoami, swap(headers, "MCP-Protocol-Version: 2026-07-28", ""), 400, -32020, "MCP-Protocol-Version", false},
		{"another method in the header", whoami, swap(headers, "tools/call", "tools/list"), 400, -32020, "Mcp-Method", false},
		{"no method in the header", whoami, swap(headers, "Mcp-Method: tools/call", ""), 400, -32020, "Mcp-Method", false},
		{"another tool in the header", whoami, swap(headers, "whoami", "wait"), 400, -32020, "Mcp-Name", false},
		{"no capabilities", strings.Replace(whoami, `"`+meta+`clientCapabilities":{},`, "", 1), headers, 400, -32602, "_meta field " + meta + "clientCapabilities", true},
		{"no version in the body", strings.Replace(whoami, `"`+meta+`protocolVersion":"2026-07-28",`, "", 1), headers, 400, -32602, "_meta field " + meta + "protocolVersion", false},
		{"no such tool", strings.Replace(whoami, "whoami", "none", 1), swap(headers, "whoami", "none"), 400, -32602, "see tools/list", true},
		{"no such method", strings.Replace(whoami, "tools/call", "no/such", 1), swap(headers, "tools/call", "no/such"), 404, -32601, "no such method", true},
		{"a method of before", strings.Replace(whoami, "tools/call", "ping", 1), swap(headers, "tools/call", "ping"), 404, -32601, "no such method", true},
	} {
		a := web.do("POST", "/mcp", c.body, as("alice", c.headers...)...)
		var told struct {
			ID    json.Number
			Error struct{ Code int }
		}
		if err := json.Unmarshal([]byte(a.body), &told); err != nil || a.StatusCode != c.status || told.ID != "1" ||
			told.Error.Code != c.code || !strings.Contains(strings.ToLower(a.body), strings.ToLower(c.says)) {
			t.Errorf("%s, over HTTP: %d %s; want %d %d and %s", c.name, a.StatusCode, a.body, c.status, c.code, c.says)
		}
		if !c.alike {
			continue
		}
		if a := local.ask(c.body); a.Error == nil || a.Error.Code != c.code || string(a.ID) != "1" || !strings.Contains(a.raw, c.says) {
			t.Errorf("%s, over the socket: %s; want %d and %s", c.name, a.raw, c.code, c.says)
		}
	}
	if web.ran != 0 {
		t.Errorf("%d of these calls ran", web.ran)
	}
}
