// Package tools is what an agent can ask for: lease_credential, list_credentials and release_lease, their schemas and
// their words. Its rule: every answer is written for the model that reads it. A refusal is a tool error with a code
// from a closed list and a hint that says what to do next; nothing of an internal error ever reaches a client.
package tools

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
)

const instructions = `keylease lends credentials (API keys, secrets) for a limited time. Call list_credentials to see what you may lease, lease_credential to lease one with a purpose, release_lease when the work is done. Take the least exposing delivery you can use: proxy, then exec, value last. Never print, log or store a value, and never look for keys in files or environment variables: if a credential is not listed, ask the operator.`

// Options is what the tools work with.
type Options struct {
	Broker  *lease.Broker
	Log     zerolog.Logger
	Version string
	// Proxy returns where the proxy is reached from this machine, as http://127.0.0.1:8701, and opens it if need be.
	// nil: there is none, and no credential is set up for it.
	Proxy func(context.Context) (origin string, err error)
	// ProxySocket is where it is reached beside that.
	ProxySocket string
	// Command is how an agent's shell starts keylease, with the flags by which it finds this daemon.
	Command []string

	patience time.Duration // tests: instead of the constant
}

// NewServer returns the MCP server with the three tools.
func NewServer(o Options) *mcpserver.MCPServer {
	s := mcpserver.NewMCPServer("keylease", o.Version,
		mcpserver.WithStrictInputSchemaDefault(),
		mcpserver.WithToolCapabilities(false),
		mcpserver.WithInstructions(instructions),
		mcpserver.WithToolHandlerMiddleware(recovered(o.Log)),
		mcpserver.WithToolHandlerMiddleware(checked),
	)
	if o.patience == 0 {
		o.patience = patience
	}
	a := agent{o, &questions{by: map[string]time.Time{}, waiting: map[string]int{}}}
	s.AddTool(listTool(), typed(a.list))
	s.AddTool(leaseTool(), a.leaseOrAsk)
	s.AddTool(releaseTool(), typed(a.release))
	return s
}

// Checks are mcp-go's own checks of arguments, with our words for what they refuse, for whatever is served in the place of
// the three tools. Those check their arguments themselves, by the same rules (see misfit): mcp-go encodes and decodes them anew
// for it. Results are not held against their schemas at each call, which took a seventh of a lease and a third of a list:
// schema and result come of one type, and every answer that the tests get passes through mcp-go's check.
func Checks() []mcpserver.ServerOption {
	hooks := &mcpserver.Hooks{}
	hooks.AddAfterCallTool(rewriteValidation)
	return []mcpserver.ServerOption{mcpserver.WithStrictInputSchemaDefault(), mcpserver.WithInputSchemaValidation(), mcpserver.WithHooks(hooks)}
}

// ScopeOf returns the scope that a call of a tool wants of its caller's token, and its name; none where it wants none.
// Giving back wants none.
func ScopeOf(tool string) (need identity.Scopes, name string) {
	switch tool {
	case "lease_credential":
		return identity.MayLease, identity.LeaseScope
	case "list_credentials":
		return identity.MayList, identity.ListScope
	}
	return 0, ""
}

// rewriteValidation is an after-call hook: mcp-go answers arguments that do not fit the schema with plain text before
// any handler runs; this puts it into words for a model and the form of every other refusal.
func rewriteValidation(_ context.Context, _ any, request *mcp.CallToolRequest, result any) {
	r, ok := result.(*mcp.CallToolResult)
	if !ok || r == nil || !r.IsError || r.StructuredContent != nil {
		return
	}
	text := ""
	for _, c := range r.Content {
		if t, ok := c.(mcp.TextContent); ok {
			text += t.Text
		}
	}
	if strings.HasPrefix(text, "input schema validation failed: ") {
		*r = *refused(misfitting(misfit(request)))
		return
	}
	*r = *refused(&lease.Refusal{Code: lease.Internal, ID: newFaultID(), Message: "keylease could not answer this call",
		Hint: "Tell the operator; the daemon's log has the details."})
}

// outputSchema is the schema of T, with one type for each value: clients that map schemas onto a dialect without lists
// of types would lose the constraint or the tool. Our lists are never null; what may be null says so with anyOf.
// A refusal fits the schema too. The TypeScript SDK, to version 1.32 at least, holds it against the schema like any
// result, and where it did not fit, the agent would read that and not our hint.
func outputSchema[T any]() mcp.ToolOption {
	return func(t *mcp.Tool) {
		mcp.WithOutputSchema[T]()(t)
		s := t.OutputSchema
		for _, p := range s.Properties {
			singleTypes(p)
		}
		s.Properties["error"] = map[string]any{"type": "object", "description": "Alone, when the call was refused: code, message, and a hint that says what to do"}
		t.OutputSchema, t.RawOutputSchema = mcp.ToolOutputSchema{}, rawSchema(s, s.Required, []string{"error"})
	}
}

// rawSchema is s, of which one of the lists of required fields must be there.
func rawSchema(s mcp.ToolOutputSchema, required ...[]string) json.RawMessage {
	var either []any
	for _, names := range required {
		either = append(either, map[string]any{"required": names})
	}
	schema := map[string]any{"type": s.Type, "properties": s.Properties, "additionalProperties": s.AdditionalProperties, "anyOf": either}
	if len(s.Defs) > 0 {
		schema["$defs"] = s.Defs
	}
	text, err := json.Marshal(schema)
	if err != nil {
		panic(err) // our own types: cannot fail
	}
	return text
}

func singleTypes(schema any) {
	s, ok := schema.(map[string]any)
	if !ok {
		return
	}
	if several, ok := s["type"].([]any); ok && slices.Contains(several, any("array")) {
		s["type"] = "array"
	} else if ok {
		var each []any
		for _, one := range several {
			each = append(each, map[string]any{"type": one})
		}
		delete(s, "type")
		s["anyOf"] = each
	}
	for _, inner := range s {
		singleTypes(inner)
	}
}

// agent answers tool calls for whoever the transport says is calling.
type agent struct {
	Options
	questions *questions
}

// caller returns who is calling. The context it returns is not cancelled with the request: a change that was begun
// is finished and recorded, whether or not anybody still waits for the answer.
func (a agent) caller(ctx context.Context) (context.Context, identity.Caller, error) {
	c, ok := identity.From(ctx)
	if !ok {
		return nil, c, &lease.Refusal{Code: lease.Unauthenticated, Message: "keylease does not know who is calling",
			Hint: "The token this client was configured with is missing, wrong, expired or revoked. Ask the operator for a new one; there is nothing to retry."}
	}
	return context.WithoutCancel(ctx), c, nil
}

// typed decodes arguments into In, and turns what handle returns into a result.
func typed[In, Out any](handle func(context.Context, In) (Out, error)) mcpserver.ToolHandlerFunc {
	return func(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		in, err := bound[In](request)
		if err != nil {
			return nil, err
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, err
		}
		return answered(out)
	}
}

func bound[In any](request mcp.CallToolRequest) (in In, err error) {
	if request.BindArguments(&in) != nil {
		return in, &lease.Refusal{Code: lease.InvalidArgument, Message: "the arguments can't be read as this tool's input schema says",
			Hint: "Correct the arguments and call again."}
	}
	return in, nil
}

func answered(out any) (*mcp.CallToolResult, error) {
	var text []byte
	var err error
	if own, ok := out.(interface{ appendJSON([]byte) []byte }); ok {
		text = own.appendJSON(make([]byte, 0, 1<<10))
	} else if text, err = json.Marshal(out); err != nil {
		return nil, fmt.Errorf("encoding the answer: %w", err)
	}
	return mcp.NewToolResultStructured(json.RawMessage(text), string(text)), nil
}

// recovered is the outermost middleware: refusals become tool errors, and anything else, a panic included, becomes
// "internal" with an id that is in the log.
func recovered(log zerolog.Logger) mcpserver.ToolHandlerMiddleware {
	return func(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
		return func(ctx context.Context, request mcp.CallToolRequest) (result *mcp.CallToolResult, err error) {
			fault := func(what any, stack []byte) {
				r := &lease.Refusal{Code: lease.Internal, ID: newFaultID(), Message: "keylease hit an internal fault",
					Hint: "Tell the operator this id; the daemon's log has the details."}
				log.Error().Str("id", r.ID).Str("tool", request.Params.Name).Interface("fault", what).Bytes("stack", stack).Msg("internal fault")
				result, err = refused(r), nil
			}
			defer func() {
				if p := recover(); p != nil {
					fault(fmt.Sprintf("panic of type %T", p), debug.Stack()) // its text may hold anything
				}
			}()
			result, err = next(ctx, request)
			if r := lease.AsRefusal(err); r != nil {
				return refused(r), nil
			}
			if err != nil {
				fault(err.Error(), nil)
			}
			return result, err
		}
	}
}

// refusal is a lease.Refusal as it goes over the wire.
type refusal struct {
	*lease.Refusal
	RetryAfter int64 `json:"retry_after,omitempty"` // whole seconds, rounded up
}

// refused makes a tool error of r: {"error": {code, message, hint, …}}, in both forms that clients read.
func refused(r *lease.Refusal) *mcp.CallToolResult {
	body := map[string]refusal{"error": {r, int64((r.RetryAfter + time.Second - 1) / time.Second)}}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and numbers: cannot fail
	}
	result := mcp.NewToolResultStructured(json.RawMessage(text), string(text))
	result.IsError = true
	return result
}

func newFaultID() string { return "err_" + rand.Text() }

func wire(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// duration reads an optional duration argument.
func duration(name, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := ttl.Parse(s)
	if err != nil {
		return 0, &lease.Refusal{Code: lease.InvalidArgument, Message: name + ": " + lease.CleanText(err.Error(), 300),
			Hint: "Write a length of time like 90s, 30m or 1h30m, or leave it out for the default. Longer than allowed is capped, not refused."}
	}
	return d, nil
}
