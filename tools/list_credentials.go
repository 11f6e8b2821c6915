package tools

import (
	"context"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/lease"
	"keylease/internal/ttl"
)

type listArgs struct {
	Match    string            `json:"match,omitempty" jsonschema:"Only names that fit this pattern: * stands for any characters, ? for one, like openai-*"`
	Type     string            `json:"type,omitempty" jsonschema:"Only this type, like api-key"`
	Metadata map[string]string `json:"metadata,omitempty" jsonschema:"Only credentials whose metadata has all of these, exactly equal, like {\"environment\": \"staging\"}"`
	Limit    int               `json:"limit,omitempty" jsonschema:"How many to return, 1 to 200. Leave it out for 50."`
	Cursor   string            `json:"cursor,omitempty" jsonschema:"next_cursor of the page before"`
}

type listResult struct {
	Credentials []listed `json:"credentials"`
	NextCursor  string   `json:"next_cursor,omitempty" jsonschema:"Give it as cursor to get the next page. Absent on the last."`
}

type listed struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	State       string            `json:"state"`
	Metadata    map[string]string `json:"metadata"`
	Deliveries  []string          `json:"deliveries" jsonschema:"How it can be delivered to you, least exposing first: proxy (requests through keylease), exec (a command gets it), value (you see it)"`
	Usual       string            `json:"default_delivery,omitempty" jsonschema:"What lease_credential gives where you leave delivery out"`
	DefaultTTL  string            `json:"default_ttl"`
	MaxTTL      string            `json:"max_ttl"`
	MaxLeases   *int              `json:"max_leases" jsonschema:"How many leases it allows at a time; null: no limit"`
	LeasesInUse int               `json:"leases_in_use"`
	Approval    string            `json:"approval" jsonschema:"none, or who has to approve: user or operator"`
	RotationDue bool              `json:"rotation_due"`
	YourLeases  []ownLease        `json:"your_leases" jsonschema:"Leases of it that you hold now: use or renew one rather than leasing again"`
}

type ownLease struct {
	LeaseID   string `json:"lease_id"`
	ExpiresAt string `json:"expires_at"`
	Delivery  string `json:"delivery"`
}

func listTool() mcp.Tool {
	return mcp.NewTool("list_credentials",
		mcp.WithDescription(`List the credentials you may lease, with their limits and the leases you hold. Call this first: it shows the exact names, how each is delivered, how long you may have it, and which leases are already yours. It never shows a value. A credential that is not listed is not available to you: ask the operator, and do not look for it elsewhere.`),
		mcp.WithTitleAnnotation("List credentials"),
		mcp.WithReadOnlyHintAnnotation(true),
		mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true),
		mcp.WithOpenWorldHintAnnotation(false),
		mcp.WithInputSchema[listArgs](),
		outputSchema[listResult](),
	)
}

func (a agent) list(ctx context.Context, in listArgs) (listResult, error) {
	ctx, caller, err := a.caller(ctx)
	if err != nil {
		return listResult{}, err
	}
	page, err := a.Broker.List(ctx, caller, lease.ListRequest{Match: in.Match, Type: in.Type, Metadata: in.Metadata,
		Limit: in.Limit, Cursor: in.Cursor})
	if err != nil {
		return listResult{}, err
	}
	out := listResult{Credentials: make([]listed, 0, len(page.Credentials)), NextCursor: page.NextCursor}
	for _, o := range page.Credentials {
		out.Credentials = append(out.Credentials, shown(o))
	}
	return out, nil
}

func shown(o lease.Offer) listed {
	l := listed{Name: o.Name, Type: o.Type, State: o.State, Metadata: o.Metadata, Deliveries: []string{}, Usual: string(o.Usual),
		DefaultTTL: ttl.Format(o.DefaultTTL), MaxTTL: ttl.Format(o.MaxTTL), LeasesInUse: o.LeasesInUse,
		Approval: string(o.Approval), RotationDue: o.RotationDue, YourLeases: []ownLease{}}
	if l.Metadata == nil {
		l.Metadata = map[string]string{}
	}
	for _, way := range o.Deliveries {
		l.Deliveries = append(l.Deliveries, string(way))
	}
	if o.MaxLeases > 0 {
		l.MaxLeases = &o.MaxLeases
	}
	for _, own := range o.YourLeases {
		l.YourLeases = append(l.YourLeases, ownLease{own.LeaseID, wire(own.ExpiresAt), string(own.Delivery)})
	}
	return l
}
