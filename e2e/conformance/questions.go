package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

type object = map[string]any

// form is what is asked of a person.
func form(message string, properties object) mcp.ElicitationParams {
	required := []string{}
	for name := range properties {
		required = append(required, name)
	}
	return mcp.ElicitationParams{Message: message,
		RequestedSchema: object{"type": "object", "properties": properties, "required": required}}
}

func prompt(s string) mcp.CreateMessageParams {
	return mcp.CreateMessageParams{MaxTokens: 100, Messages: []mcp.SamplingMessage{{Role: mcp.RoleUser, Content: text(s)}}}
}

func ask() *mcpserver.InputRequestBuilder { return mcpserver.NewInputRequestBuilder("") }

// addQuestions: tools that need an answer from the client before they can give theirs. Each is one handler for both
// eras: a client of 2026-07-28 is answered with the question and calls again, an older one is asked on the stream.
func addQuestions(s *mcpserver.MCPServer) {
	str := object{"type": "string"}
	s.AddTool(tool("test_sampling", mcp.WithString("prompt", mcp.Required())), sampled("answer", func(r mcp.CallToolRequest) string { return r.GetString("prompt", "") }))
	s.AddTool(tool("test_input_required_result_sampling"), sampled("capital_question", func(mcp.CallToolRequest) string { return "What is the capital of France?" }))

	s.AddTool(tool("test_elicitation", mcp.WithString("message", mcp.Required())), elicited("answer", func(r mcp.CallToolRequest) mcp.ElicitationParams {
		return form(r.GetString("message", ""), object{"username": str, "email": str})
	}))
	for name, params := range map[string]mcp.ElicitationParams{
		"test_input_required_result_elicitation": form("What is your name?", object{"name": str}),
		"test_streaming_elicitation":             form("Shall I?", object{"ok": object{"type": "boolean"}}),
		"test_elicitation_sep1034_defaults": form("Tell me about yourself", object{
			"name": object{"type": "string", "default": "John Doe"}, "age": object{"type": "integer", "default": 30},
			"score": object{"type": "number", "default": 95.5}, "verified": object{"type": "boolean", "default": true},
			"status": object{"type": "string", "enum": []string{"active", "inactive", "pending"}, "default": "active"}}),
		"test_elicitation_sep1330_enums": form("Choose", object{
			"untitledSingle": object{"type": "string", "enum": []string{"option1", "option2", "option3"}},
			"titledSingle":   object{"type": "string", "oneOf": titled()},
			"legacyEnum":     object{"type": "string", "enum": []string{"opt1", "opt2", "opt3"}, "enumNames": []string{"One", "Two", "Three"}},
			"untitledMulti":  object{"type": "array", "items": object{"type": "string", "enum": []string{"option1", "option2", "option3"}}},
			"titledMulti":    object{"type": "array", "items": object{"anyOf": titled()}}}),
	} {
		s.AddTool(tool(name), elicited("user_name", func(mcp.CallToolRequest) mcp.ElicitationParams { return params }))
	}
	s.AddTool(tool("test_input_required_result_list_roots"), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if roots := mcpserver.RootsResponse(r.Params.InputResponses, "client_roots"); roots != nil {
			return result(text(fmt.Sprint("roots: ", roots.Roots)))
		}
		return ask().Roots("client_roots").ToolResult(), nil
	})
	s.AddTool(tool("test_input_required_result_capabilities"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		can, b := capabilities(ctx), ask()
		if can.Sampling != nil {
			b.Sample("sample", prompt("Say something"))
		}
		if can.Elicitation != nil {
			b.Elicit("elicit", form("Say something", object{"said": str}))
		}
		return b.ToolResult(), nil
	})
	addStateful(s, newSeal(), str)
}

func titled() []any {
	return []any{object{"const": "value1", "title": "First"}, object{"const": "value2", "title": "Second"}, object{"const": "value3", "title": "Third"}}
}

func sampled(key string, about func(mcp.CallToolRequest) string) mcpserver.ToolHandlerFunc {
	return func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		a := mcpserver.SamplingResponse(r.Params.InputResponses, key)
		if a == nil {
			return ask().Sample(key, prompt(about(r))).ToolResult(), nil
		}
		return result(text(fmt.Sprint("LLM response: ", a.Content)))
	}
}

func elicited(key string, about func(mcp.CallToolRequest) mcp.ElicitationParams) mcpserver.ToolHandlerFunc {
	return func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		a := mcpserver.ElicitationResponse(r.Params.InputResponses, key)
		if a == nil {
			return ask().Elicit(key, about(r)).ToolResult(), nil
		}
		return result(text(fmt.Sprintf("User response: action=%s, content=%v", a.Action, a.Content)))
	}
}

// addStateful: tools that give the client something to bring back, and believe it only under their own seal.
func addStateful(s *mcpserver.MCPServer, key seal, str object) {
	confirm := form("Please confirm", object{"ok": object{"type": "boolean"}})
	confirmed := func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if r.Params.RequestState == "" {
			return ask().Elicit("confirm", confirm).RequestState(key.sealed("asked")).ToolResult(), nil
		}
		if said, err := key.opened(r.Params.RequestState); err != nil || said != "asked" {
			return nil, errors.Join(err, errors.New("this state is not of this tool"))
		}
		return result(text("state-ok"))
	}
	s.AddTool(tool("test_input_required_result_request_state"), confirmed)
	s.AddTool(tool("test_input_required_result_tampered_state"), confirmed)
	s.AddTool(tool("test_input_required_result_multiple_inputs"), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		in := r.Params.InputResponses
		if mcpserver.ElicitationResponse(in, "user_name") == nil || mcpserver.SamplingResponse(in, "greeting") == nil || mcpserver.RootsResponse(in, "client_roots") == nil {
			return ask().Elicit("user_name", form("What is your name?", object{"name": str})).Sample("greeting", prompt("Generate a greeting")).
				Roots("client_roots").RequestState(key.sealed("asked")).ToolResult(), nil
		}
		_, err := key.opened(r.Params.RequestState)
		return mcp.NewToolResultText("all three answered"), err
	})
	s.AddTool(tool("test_input_required_result_multi_round"), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if r.Params.RequestState == "" {
			return ask().Elicit("step1", form("Step 1: What is your name?", object{"name": str})).RequestState(key.sealed("1")).ToolResult(), nil
		}
		switch round, err := key.opened(r.Params.RequestState); {
		case err != nil:
			return nil, err
		case round == "1":
			return ask().Elicit("step2", form("Step 2: What is your favorite color?", object{"color": str})).RequestState(key.sealed("2")).ToolResult(), nil
		}
		return result(text("both rounds answered"))
	})
}

// seal vouches for what a client brings back.
type seal []byte

func newSeal() seal { return seal(rand.Text()) }

func (k seal) sealed(s string) string {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte(s))
	return s + "." + hex.EncodeToString(mac.Sum(nil))
}

func (k seal) opened(state string) (string, error) {
	said, _, _ := strings.Cut(state, ".")
	if !hmac.Equal([]byte(state), []byte(k.sealed(said))) {
		return "", errors.New("this state is not what was given out")
	}
	return said, nil
}
