package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// plainAnswer is a result that mcp-go's HTTP side does not get to encode, which would take four passes over it, and what
// it gets in its place.
type plainAnswer struct {
	result  *mcp.CallToolResult
	standIn *mcp.CallToolResult
}

// standInText is in the one answer of a call that neutralWriter is to replace, and in nothing that anybody else says.
var standInText = rand.Text() + rand.Text()

// standIn is a tool middleware, the innermost: where one of our plain results would go out over Streamable HTTP, mcp-go
// gets a small one to encode instead.
func standIn(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
	return func(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		result, err := next(ctx, request)
		call, _ := ctx.Value(httpCallKey{}).(*httpCall)
		if err != nil || call == nil || call.id == nil || !plainResult(result) {
			return result, err
		}
		a := &plainAnswer{result, &mcp.CallToolResult{Content: []mcp.Content{mcp.NewTextContent(standInText)}}}
		call.plain.Store(a)
		return a.standIn, nil
	}
}

// realAnswer returns what is to be written where mcp-go writes p, if that holds the stand-in: the same answer with the
// real result, in which is what mcp-go added to the stand-in. It writes an answer in one piece, as JSON or as one event.
func (c *httpCall) realAnswer(p []byte) []byte {
	a := c.plain.Load()
	if a == nil || !bytes.Contains(p, []byte(standInText)) {
		return nil
	}
	whole := *a.result
	whole.Meta, whole.ResultType = a.standIn.Meta, a.standIn.ResultType
	answer := appendResult(c.id, &whole)
	if !bytes.HasPrefix(p, []byte("{")) {
		return slices.Concat([]byte("event: message\ndata: "), answer, []byte("\n\n"))
	}
	return append(answer, '\n')
}
