package server

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// A plain result goes out over HTTP as mcp-go would have sent it, in both eras, as JSON and as an event: what stands in
// for it while mcp-go encodes is never seen.
func TestAPlainResultOverHTTPIsWhatMCPGoWouldSend(t *testing.T) {
	object := json.RawMessage(`{"a":"q\"\\ ü","error":"not one","n":[1,2,{}]}`)
	streamable := func(ours bool) *mcpserver.StreamableHTTPServer {
		s := mcpserver.NewMCPServer("test", "0", mcpserver.WithToolCapabilities(false))
		s.AddTool(mcp.NewTool("plain"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return mcp.NewToolResultStructured(object, string(object)), nil
		})
		s.AddTool(mcp.NewTool("event"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			mcpserver.ClientSessionFromContext(ctx).(mcpserver.SessionWithStreamableHTTPConfig).UpgradeToSSEWhenReceiveNotification()
			return mcp.NewToolResultStructured(object, string(object)), nil
		})
		s.AddTool(mcp.NewTool("text"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return mcp.NewToolResultText("ok"), nil
		})
		if ours {
			s.Use(standIn)
		}
		return mcpserver.NewStreamableHTTPServer(s, mcpserver.WithStateLess(true))
	}
	ask := func(ours bool, tool string, modern bool) *httptest.ResponseRecorder {
		body := call1(`"x<1>"`, tool, "")
		if modern {
			body = modernLine("7", "tools/call", "c", `"name":"`+tool+`",`)
		}
		r := httptest.NewRequestWithContext(t.Context(), "POST", "http://localhost/mcp", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if modern {
			r.Header.Set(mcp.HeaderProtocolVersion, "2026-07-28")
			r.Header.Set("Mcp-Method", "tools/call")
			r.Header.Set("Mcp-Name", tool)
		}
		w := httptest.NewRecorder()
		if !ours {
			streamable(false).ServeHTTP(w, r)
			return w
		}
		e, fault := parseEnvelope([]byte(body))
		if fault != nil {
			t.Fatal(fault)
		}
		call := &httpCall{modern: modern, id: e.ID}
		r = r.WithContext(context.WithValue(r.Context(), httpCallKey{}, call))
		streamable(true).ServeHTTP(neutralWriter{ResponseWriter: w, call: call}, r)
		if standsIn := call.plain.Load() != nil; standsIn != (tool != "text") {
			t.Errorf("%s: something stood in for the result: %v", tool, standsIn)
		}
		return w
	}
	for _, tool := range []string{"plain", "event", "text"} {
		for _, modern := range []bool{false, true} {
			want, got := ask(false, tool, modern), ask(true, tool, modern)
			if got.Code != 200 || want.Code != 200 || !reflect.DeepEqual(got.Header(), want.Header()) {
				t.Fatalf("%s: %d %v, mcp-go %d %v %s", tool, got.Code, got.Header(), want.Code, want.Header(), want.Body)
			}
			before, text := unframed(got.Body.String())
			wantBefore, wantText := unframed(want.Body.String())
			if before != wantBefore || !reflect.DeepEqual(decoded(t, []byte(text)), decoded(t, []byte(wantText))) {
				t.Errorf("%s, modern %v:\n got %s\nwant %s", tool, modern, got.Body, want.Body)
			}
		}
	}
}

// unframed cuts what frames an event from its data.
func unframed(body string) (frame, data string) {
	before, after, event := strings.Cut(body, "data: ")
	if !event {
		return "", body
	}
	return before, after
}
