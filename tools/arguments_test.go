package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"pgregory.net/rapid"
)

// Our check of arguments refuses what mcp-go's check of the same schema refuses, and nothing else.
func TestArgumentsAreRefusedAsTheirSchemaSays(t *testing.T) {
	ran := false
	theirs := mcpserver.NewMCPServer("x", "1", mcpserver.WithInputSchemaValidation(), mcpserver.WithStrictInputSchemaDefault())
	for _, tool := range []mcp.Tool{leaseTool(), listTool(), releaseTool()} {
		theirs.AddTool(tool, func(_ context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			ran = true
			return mcp.NewToolResultText(misfit(&request)), nil
		})
	}
	values := []string{`"x"`, `""`, `1`, `1.0`, `1.5`, `1e2`, `1e30`, `-0`, `9007199254740993.5`, `true`, `null`, `[]`, `["x"]`, `{}`, `{"a":"b"}`, `{"a":1}`, `{"a":"b","c":null}`}
	keys := []string{"credential", "ttl", "purpose", "delivery", "lease_id", "approval_id", "match", "type", "metadata", "limit", "cursor", "Lease_id", "identity", ""}
	check := func(t *rapid.T, tool, args string) {
		message := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q%s}}`, tool, args)
		ran = false
		answer, _ := json.Marshal(theirs.HandleMessage(context.Background(), json.RawMessage(message)))
		var request mcp.CallToolRequest
		if err := json.Unmarshal([]byte(message), &request); err != nil {
			t.Fatal(err)
		}
		if why := misfit(&request); (why == "") != ran {
			t.Fatalf("%s: we say %q, mcp-go %s", message, why, answer)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		tool := rapid.SampledFrom([]string{"lease_credential", "list_credentials", "release_lease"}).Draw(t, "tool")
		if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
			args := rapid.SampledFrom(append(values, "")).Draw(t, "arguments")
			if args != "" {
				args = `,"arguments":` + args
			}
			check(t, tool, args)
			return
		}
		var members []string
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 0, 3, rapid.ID).Draw(t, "keys") {
			members = append(members, fmt.Sprintf("%q:%s", key, rapid.SampledFrom(values).Draw(t, "value")))
		}
		check(t, tool, `,"arguments":{`+strings.Join(members, ",")+`}`)
	})
}
