package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"keylease/tools"
)

const (
	pixel   = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==" // PNG
	silence = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="                                     // WAV

	// beat lies between two notifications of a call, and between the last and the answer: mcp-go loses one that it
	// holds at the moment of the answer (its pull request 969). None of keylease's own tools notifies.
	beat = 20 * time.Millisecond
)

// fixtures is an MCP server with everything that the conformance suite calls by name, checked as the three tools are.
func fixtures() *mcpserver.MCPServer {
	s := mcpserver.NewMCPServer("keylease-conformance", "1.0.0", append(tools.Checks(),
		mcpserver.WithOutputSchemaValidation(),
		mcpserver.WithToolCapabilities(true),
		mcpserver.WithResourceCapabilities(true, true),
		mcpserver.WithPromptCapabilities(true),
		mcpserver.WithCompletions(),
		mcpserver.WithLogging(),
		mcpserver.WithElicitation(),
		mcpserver.WithRoots(),
	)...)
	s.EnableSampling()
	addContents(s)
	addNotifying(s)
	addSchemas(s)
	addQuestions(s)
	addResources(s)
	addPrompts(s)
	return s
}

func text(s string) mcp.Content { return mcp.TextContent{Type: "text", Text: s} }

func result(c ...mcp.Content) (*mcp.CallToolResult, error) {
	return &mcp.CallToolResult{Content: c}, nil
}

func embedded(uri, kind, s string) mcp.Content {
	return mcp.NewEmbeddedResource(mcp.TextResourceContents{URI: uri, MIMEType: kind, Text: s})
}

// addContents: a tool for each kind of content.
func addContents(s *mcpserver.MCPServer) {
	for name, content := range map[string][]mcp.Content{
		"test_simple_text":       {text("This is a simple text response for testing.")},
		"test_image_content":     {mcp.NewImageContent(pixel, "image/png")},
		"test_audio_content":     {mcp.NewAudioContent(silence, "audio/wav")},
		"test_embedded_resource": {embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")},
		"test_multiple_content_types": {text("Multiple content types test:"), mcp.NewImageContent(pixel, "image/png"),
			embedded("test://mixed-content-resource", "application/json", `{"test":"data","value":123}`)},
	} {
		s.AddTool(tool(name), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) { return result(content...) })
	}
	s.AddTool(tool("test_error_handling"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultError("This tool intentionally returns an error for testing"), nil
	})
	s.AddTool(tool("test_missing_capability"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if capabilities(ctx).Sampling == nil {
			return nil, mcp.MissingRequiredClientCapabilityError{Capability: "sampling"}
		}
		return result(text("sampling was declared"))
	})
}

func tool(name string, o ...mcp.ToolOption) mcp.Tool {
	return mcp.NewTool(name, append([]mcp.ToolOption{mcp.WithDescription("A fixture of the conformance suite")}, o...)...)
}

// capabilities are what the caller declared: in the handshake, or in this request.
func capabilities(ctx context.Context) mcp.ClientCapabilities {
	if info := mcpserver.RequestProtocolInfoFromContext(ctx); info != nil && info.Modern && info.ClientCapabilities != nil {
		return *info.ClientCapabilities
	}
	if s, ok := mcpserver.ClientSessionFromContext(ctx).(mcpserver.SessionWithClientInfo); ok {
		return s.GetClientCapabilities()
	}
	return mcp.ClientCapabilities{}
}

// addNotifying: tools that tell of their progress, log, and change the lists.
func addNotifying(s *mcpserver.MCPServer) {
	say := func(ctx context.Context, method mcp.MCPMethod, all ...map[string]any) (err error) {
		for _, params := range all {
			err = errors.Join(err, s.SendNotificationToClient(ctx, string(method), params))
			time.Sleep(beat)
		}
		return err
	}
	s.AddTool(tool("test_tool_with_progress"), func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if r.Params.Meta == nil || r.Params.Meta.ProgressToken == nil {
			return result(text("nobody asked for progress"))
		}
		at := func(n int) map[string]any {
			return map[string]any{"progressToken": r.Params.Meta.ProgressToken, "progress": n, "total": 100}
		}
		if err := say(ctx, mcp.MethodNotificationProgress, at(0), at(50), at(100)); err != nil {
			return nil, err
		}
		return result(text("progress reported"))
	})
	s.AddTool(tool("test_tool_with_logging"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		line := func(s string) map[string]any {
			return map[string]any{"level": "info", "logger": "conformance", "data": s}
		}
		err := say(ctx, mcp.MethodNotificationMessage, line("Tool execution started"), line("Tool processing data"), line("Tool execution completed"))
		if err != nil {
			return nil, err
		}
		return result(text("logged"))
	})
	s.AddTool(tool("test_logging_tool"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		err := s.SendLogMessageToClient(ctx, mcp.NewLoggingMessageNotification(mcp.LoggingLevelInfo, "conformance", "for who asked"))
		if err != nil {
			return nil, err
		}
		time.Sleep(beat)
		return result(text("logged for who asked"))
	})
	// Adding again what is there already tells every listener, and leaves the lists as they are.
	s.AddTool(tool("test_trigger_tool_change"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		s.AddTool(tool("test_changed"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) { return result(text("here")) })
		return result(text("changed"))
	})
	s.AddTool(tool("test_trigger_prompt_change"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		addPrompts(s)
		return result(text("changed"))
	})
}

// addSchemas: tools whose input schema says what mcp-go's own types can't.
func addSchemas(s *mcpserver.MCPServer) {
	for name, schema := range map[string]string{
		"json_schema_2020_12_tool": `{
			"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
			"$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
			"properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"},
				"contactMethod": {"type": "string", "enum": ["phone", "email"]}, "phone": {"type": "string"}, "email": {"type": "string"}},
			"allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
			"if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
			"then": {"required": ["phone"]}, "else": {"required": ["email"]}, "additionalProperties": false}`,
		"test_custom_header": `{"type": "object", "additionalProperties": false, "required": ["region"],
			"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}`,
	} {
		t := mcp.NewToolWithRawSchema(name, "A fixture of the conformance suite", json.RawMessage(schema))
		s.AddTool(t, func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) { return result(text("ok")) })
	}
}
