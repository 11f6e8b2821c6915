package server

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
)

// What we encode ourselves says what mcp-go's encoding of the same result says, and what is not ours is left to it.
func TestAPlainResultSaysWhatMCPGoSays(t *testing.T) {
	object := json.RawMessage(`{"a":"q\"\\\u003c \u2028 ü \ufffd","n":[1,2,{}]}`)
	plain := mcp.NewToolResultStructured(object, string(object))
	failed := mcp.NewToolResultStructured(object, string(object))
	failed.IsError = true
	modern := mcp.NewToolResultStructured(object, string(object))
	modern.ResultType = mcp.ResultTypeComplete
	modern.Meta = &mcp.Meta{AdditionalFields: map[string]any{"io.modelcontextprotocol/serverInfo": map[string]any{"name": "keylease"}}}
	other := mcp.NewToolResultStructured(object, "bad \xff utf-8\n")
	for name, r := range map[string]*mcp.CallToolResult{"plain": plain, "failed": failed, "modern": modern, "other": other} {
		for _, id := range []string{`7`, `"a\"b"`, `-3`} {
			want := mustJSON(mcp.NewJSONRPCResultResponse(mcp.NewRequestId(decoded(t, []byte(id))), r))
			if !plainResult(r) {
				t.Fatalf("%s: not plain", name)
			}
			got := appendResult(json.RawMessage(id), r)
			if !reflect.DeepEqual(decoded(t, got), decoded(t, want)) {
				t.Errorf("%s:\n got %s\nwant %s", name, got, want)
			}
		}
	}
	asks := mcp.NewToolResultStructured(object, string(object))
	asks.RequestState = "x"
	two := mcp.NewToolResultStructured(object, string(object))
	two.Content = append(two.Content, mcp.NewTextContent("more"))
	meta := mcp.NewToolResultStructured(object, string(object))
	meta.Content = []mcp.Content{mcp.TextContent{Type: "text", Text: "x", Meta: &mcp.Meta{}}}
	for name, r := range map[string]*mcp.CallToolResult{"no object": mcp.NewToolResultText("x"), "a question": asks, "two texts": two, "text with meta": meta, "none": nil} {
		if plainResult(r) {
			t.Errorf("%s: taken for plain", name)
		}
	}
}

func decoded(t *testing.T, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}
