package server

import (
	"encoding/json"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
)

// plainResult reports whether r is what our tools answer with: one JSON object, encoded already, and the same as text.
func plainResult(r *mcp.CallToolResult) bool {
	if r == nil || len(r.Content) != 1 || len(r.RawStructuredContent) > 0 || len(r.InputRequests) > 0 || r.RequestState != "" {
		return false
	}
	text, isText := r.Content[0].(mcp.TextContent)
	_, isRaw := r.StructuredContent.(json.RawMessage)
	return isText && isRaw && text == mcp.TextContent{Type: "text", Text: text.Text}
}

// appendResult encodes a plainResult as the answer to the call of that id. mcp-go's own encoding goes over the object four
// times; of a page of list_credentials that is a quarter of the call.
func appendResult(id json.RawMessage, r *mcp.CallToolResult) []byte {
	text, object := r.Content[0].(mcp.TextContent).Text, r.StructuredContent.(json.RawMessage)
	b := make([]byte, 0, len(text)+len(text)/3+len(object)+512)
	b = append(append(b, `{"jsonrpc":"2.0","id":`...), id...)
	b = append(b, `,"result":{`...)
	if r.Meta != nil {
		b = append(append(append(b, `"_meta":`...), mustJSON(r.Meta)...), ',')
	}
	b = append(b, `"content":[{"type":"text","text":`...)
	b, _ = jsontext.AppendQuote(b, text) // fails for text that is no UTF-8, which it replaces as encoding/json does
	b = append(b, `}],`...)
	if r.IsError {
		b = append(b, `"isError":true,`...)
	}
	if r.ResultType != "" {
		b = append(append(append(b, `"resultType":`...), mustJSON(r.ResultType)...), ',')
	}
	b = append(append(b, `"structuredContent":`...), object...)
	return append(b, `}}`...)
}
