package tools

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"keylease/internal/lease"
)

// argument is one that a tool takes. Its schema and this come of the same field.
type argument struct {
	name     string
	fits     func(value any) bool // as encoding/json decodes it
	required bool
}

// arguments are what each tool takes, in the order of its schema.
var arguments = map[string][]argument{
	"lease_credential": argumentsOf[leaseArgs](),
	"list_credentials": argumentsOf[listArgs](),
	"release_lease":    argumentsOf[releaseArgs](),
}

func argumentsOf[T any]() (all []argument) {
	for f := range reflect.TypeFor[T]().Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		a := argument{name: name, required: !strings.Contains(options, "omitempty")}
		switch f.Type {
		case reflect.TypeFor[string]():
			a.fits = isString
		case reflect.TypeFor[int]():
			a.fits = func(v any) bool { n, ok := v.(float64); return ok && n == math.Trunc(n) }
		case reflect.TypeFor[map[string]string]():
			a.fits = func(v any) bool {
				m, ok := v.(map[string]any)
				for _, inner := range m {
					ok = ok && isString(inner)
				}
				return ok
			}
		default:
			panic("no check for an argument of type " + f.Type.String())
		}
		all = append(all, a)
	}
	return all
}

func isString(v any) bool { _, ok := v.(string); return ok }

// checked refuses arguments that do not fit the tool's input schema, before anything is done.
func checked(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
	return func(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if why := misfit(&request); why != "" {
			return nil, misfitting(why)
		}
		return next(ctx, request)
	}
}

func misfitting(why string) *lease.Refusal {
	if why == "" {
		why = noFit
	}
	return &lease.Refusal{Code: lease.InvalidArgument, Message: lease.CleanText(why, 600),
		Hint: "Correct the arguments as the tool's input schema says and call again. Who you are is never an argument."}
}

const noFit = "the arguments do not fit the tool's input schema"

// misfit says what is wrong with the arguments of a call; "": they fit the input schema.
func misfit(request *mcp.CallToolRequest) string {
	takes := arguments[request.Params.Name]
	given, is := request.Params.Arguments.(map[string]any)
	if !is && request.Params.Arguments != nil {
		return noFit
	}
	unknown := []string(nil)
	for name := range given {
		if !slices.ContainsFunc(takes, func(a argument) bool { return a.name == name }) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		return fmt.Sprintf("%s has no argument %s; it takes %s", request.Params.Name, likeArgument(slices.Min(unknown)), names(takes))
	}
	for _, a := range takes {
		switch value, there := given[a.name]; {
		case there && !a.fits(value):
			return fmt.Sprintf("the argument %s is not of the type that the input schema says", a.name)
		case !there && a.required:
			return fmt.Sprintf("the argument %s is missing", a.name)
		}
	}
	return ""
}

func names(takes []argument) string {
	var all []string
	for _, a := range takes {
		all = append(all, a.name)
	}
	return strings.Join(all, ", ")
}

// likeArgument is the name of an argument that there is not, where it looks like one. Anything else may be a key that was
// pasted in the wrong place, and is not repeated.
func likeArgument(name string) string {
	if len(name) > 24 || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "of the name that was given"
	}
	return strconv.Quote(name)
}
