package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
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
	check := func(tool, args string) {
		message := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q%s}}`, tool, args)
		ran = false
		answer, _ := json.Marshal(theirs.HandleMessage(t.Context(), json.RawMessage(message)))
		var request mcp.CallToolRequest
		if err := json.Unmarshal([]byte(message), &request); err != nil {
			t.Fatal(err)
		}
		if why := misfit(&request); (why == "") != ran {
			t.Errorf("%s: we say %q, mcp-go %s", message, why, answer)
		}
	}
	for _, tool := range []string{"lease_credential", "list_credentials", "release_lease"} {
		check(tool, "")
		for _, value := range values {
			check(tool, `,"arguments":`+value)
			for _, key := range keys {
				check(tool, fmt.Sprintf(`,"arguments":{%q:%s}`, key, value))
				check(tool, fmt.Sprintf(`,"arguments":{"lease_id":"x",%q:%s}`, key, value))
			}
		}
	}
}
