package tools

import (
	"context"
	"slices"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/policy"
)

type leaseArgs struct {
	Credential string `json:"credential,omitempty" jsonschema:"Name of the credential, exactly as list_credentials shows it. Required unless lease_id or approval_id is given."`
	TTL        string `json:"ttl,omitempty" jsonschema:"How long you need it, like 90s, 30m, 4h or 1h30m. Leave it out for the default. Longer than allowed is capped, not refused."`
	Purpose    string `json:"purpose,omitempty" jsonschema:"One line, at most 200 characters, that tells a human what you will do with it. Kept in the audit trail; some credentials require it."`
	Delivery   string `json:"delivery,omitempty" jsonschema:"How you get it: the first of the credential's deliveries in list_credentials that can do the work. proxy and exec do it without showing you the key; ask for value only where neither will do. Left out, it is its default_delivery, and that may be value."`
	LeaseID    string `json:"lease_id,omitempty" jsonschema:"Renew this lease of yours instead of opening another. What you were given with it stays good."`
	ApprovalID string `json:"approval_id,omitempty" jsonschema:"Get the lease that waited for a person's approval, with what was asked then. Waits for the answer, up to 40 seconds. Leave out all other arguments."`
}

type leaseResult struct {
	Status       string            `json:"status" jsonschema:"granted, or approval_required: then nothing is lent yet, and approval says what to do"`
	LeaseID      string            `json:"lease_id,omitempty" jsonschema:"Name of the lease, for renewing and releasing it. Not a secret."`
	Credential   string            `json:"credential"`
	Type         string            `json:"type,omitempty"`
	Version      int               `json:"version" jsonschema:"Which version of the credential you have. It stays yours until the lease ends, also when the credential is rotated."`
	Delivery     string            `json:"delivery"`
	IssuedAt     string            `json:"issued_at,omitempty" jsonschema:"RFC 3339, UTC"`
	ExpiresAt    string            `json:"expires_at,omitempty" jsonschema:"RFC 3339, UTC. From then on the lease gives nothing."`
	MaxExpiresAt string            `json:"max_expires_at,omitempty" jsonschema:"RFC 3339, UTC. Renewing never goes past this."`
	TTL          string            `json:"ttl" jsonschema:"Time granted from now, like 30m"`
	TTLCapped    bool              `json:"ttl_capped" jsonschema:"True when you asked for more than is allowed"`
	Metadata     map[string]string `json:"metadata" jsonschema:"What belongs to the credential and is not secret, such as an access key id"`
	Use          *useResult        `json:"use,omitempty" jsonschema:"How to use the credential without seeing it. Absent with a value, and when a lease is renewed."`
	Value        string            `json:"value,omitempty" jsonschema:"The secret. Use it and forget it: do not print, log or store it. Absent when a lease is renewed."`
	Approval     *approvalResult   `json:"approval,omitempty" jsonschema:"What waits for a person's answer, when status is approval_required"`
	Hint         string            `json:"hint" jsonschema:"What to do next"`
}

// useResult is how a lease by exec or by proxy is used.
type useResult struct {
	CommandPrefix []string          `json:"command_prefix,omitempty" jsonschema:"exec: put this in front of the command that needs the credential; it runs with it in its environment"`
	EnvNames      []string          `json:"env_names,omitempty" jsonschema:"exec: the variables in which the command finds it"`
	BaseURL       string            `json:"base_url,omitempty" jsonschema:"proxy: give this to the client library as its base URL"`
	Socket        string            `json:"socket,omitempty" jsonschema:"proxy: the same as a unix socket, for tools that can use one (http_unix_socket of gh, --unix-socket of curl)"`
	APIKey        string            `json:"api_key,omitempty" jsonschema:"proxy: give this to the client library where the key would be. It works only here, for what is allowed, until the lease ends."`
	Env           map[string]string `json:"env,omitempty" jsonschema:"proxy: environment variables that set the service's own tools up"`
	Allowed       []string          `json:"allowed,omitempty" jsonschema:"proxy: the requests that may be made; * is one part of a path, ** is all that follows"`
}

func leaseTool() mcp.Tool {
	return mcp.NewTool("lease_credential",
		mcp.WithDescription(`Lease a credential for a limited time, or renew a lease you hold.
Call list_credentials first and use a name from it. Say in purpose what work you will do with it: ask for work, not for values. If you hold a lease already, use it, or renew it with lease_id, rather than leasing again. Where the answer has use, do the work the way it says: you need not see the key. A value goes directly where it is needed; never print, log, store or repeat it. Call release_lease as soon as the work is done.
Some credentials are lent only when a person agrees: then status is approval_required. Tell the user what waits, and call lease_credential with approval_id to get the lease once they agreed. Never try to approve it yourself.
A refusal is an error with a code and a hint; follow the hint. not_available means unknown, forbidden or not yours: ask the operator, and do not look for the key elsewhere. lease_limit means too many leases are open: use one of your_leases; if the answer has retry_after, wait that many seconds.`),
		mcp.WithTitleAnnotation("Lease a credential"),
		mcp.WithReadOnlyHintAnnotation(false),
		mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(false),
		mcp.WithOpenWorldHintAnnotation(false),
		mcp.WithInputSchema[leaseArgs](),
		outputSchema[leaseResult](),
	)
}

// leaseOrAsk answers with a lease, or with what a client that speaks 2026-07-28 has to ask its user first.
func (a agent) leaseOrAsk(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	in, err := bound[leaseArgs](request)
	if err != nil {
		return nil, err
	}
	var ask *mcp.CallToolResult
	out, err := a.lease(ctx, in, func(caller identity.Caller, g lease.Grant) (_ lease.Grant, err error) {
		g, ask, err = a.agree(ctx, caller, request, g)
		return g, err
	})
	switch {
	case err != nil:
		return nil, err
	case ask != nil:
		return ask, nil
	}
	return answered(out)
}

func (a agent) lease(given context.Context, in leaseArgs, agree func(identity.Caller, lease.Grant) (lease.Grant, error)) (leaseResult, error) {
	ctx, caller, err := a.caller(given)
	if err != nil {
		return leaseResult{}, err
	}
	asked, err := duration("ttl", in.TTL)
	if err != nil {
		return leaseResult{}, err
	}
	way, err := delivery(in.Delivery)
	if err != nil {
		return leaseResult{}, err
	}
	if in.LeaseID != "" && in.ApprovalID != "" {
		return leaseResult{}, &lease.Refusal{Code: lease.InvalidArgument, Message: "lease_id and approval_id are two different things to ask for",
			Hint: "Give lease_id to renew a lease you hold, or approval_id to get the one that waited for an approval."}
	}
	if in.LeaseID != "" {
		g, err := a.Broker.Renew(ctx, caller, lease.RenewRequest{LeaseID: in.LeaseID, TTL: asked, Credential: in.Credential, Delivery: way})
		if err != nil {
			return leaseResult{}, err
		}
		return granted(g, "Renewed. "+goOn[g.Delivery]+" Call release_lease when the work is done."), nil
	}
	if in.Credential == "" && in.ApprovalID == "" {
		return leaseResult{}, &lease.Refusal{Code: lease.InvalidArgument, Message: "credential is missing",
			Hint: "Give the name of a credential from list_credentials, lease_id to renew a lease, or approval_id to get the one that waited for an approval."}
	}
	g, err := a.Broker.Lease(ctx, caller, lease.Request{Credential: in.Credential, TTL: asked, Purpose: in.Purpose, Delivery: way, ApprovalID: in.ApprovalID})
	if err == nil && g.Waiting != nil {
		g, err = agree(caller, g)
	}
	if err != nil {
		return leaseResult{}, err
	}
	if g.Waiting != nil {
		return waitingFor(given, g), nil
	}
	out, err := a.deliver(ctx, caller, g)
	if err != nil {
		// Nobody can use a lease that can't be delivered: do not leave it standing.
		if _, releaseErr := a.Broker.Release(ctx, caller, g.LeaseID); releaseErr != nil {
			a.Log.Error().Err(releaseErr).Str("lease_id", g.LeaseID).Msg("a lease that could not be delivered could not be released")
		}
		if r := lease.AsRefusal(err); r != nil && r.Code == lease.LeaseEnded {
			err = &lease.Refusal{Code: lease.LeaseEnded, Message: "the lease was granted, and ended before anything of it was handed to you: it was released or revoked in that moment",
				Hint: "You were given nothing. If you did not release it yourself, ask the operator before you lease the credential again."}
		}
		return leaseResult{}, err
	}
	out.Hint += " Call release_lease when the work is done. If you need longer, call lease_credential again with lease_id."
	if !g.SessionBound {
		out.Hint += " This lease ends only when it expires, is released or revoked: closing the connection does not end it."
	}
	return out, nil
}

// deliver adds to a grant what its holder uses it by.
func (a agent) deliver(ctx context.Context, caller identity.Caller, g lease.Grant) (leaseResult, error) {
	switch g.Delivery {
	case policy.Proxy:
		origin, err := a.Proxy(ctx)
		if err != nil {
			return leaseResult{}, err
		}
		handle := string(g.Handle.Bytes())
		use := &useResult{BaseURL: g.Plan.BaseURL(origin), Socket: a.ProxySocket, APIKey: handle, Env: g.Plan.Env(origin, handle), Allowed: g.Plan.Allowed()}
		how := "Give base_url and api_key of use to the client library or tool."
		if len(use.Env) > 0 {
			how = "Start the tool with the variables of use.env set (NAME=value … command), or give it base_url and api_key."
		}
		out := granted(g, how+" keylease puts the key into each request; api_key stands for it, is good for nothing else, and dies with the lease.")
		out.Use = use
		return out, nil
	case policy.Exec:
		out := granted(g, "Run the command that needs the key with command_prefix before it: it finds the key in $"+g.Env+
			", and what it prints is masked. To name the variable in an argument, run sh -c '…' in single quotes: your own shell does not have it.")
		prefix := append(slices.Clone(a.Command), "exec")
		if caller.Proof == identity.Declared {
			prefix = append(prefix, "--as", caller.Name)
		}
		out.Use = &useResult{CommandPrefix: append(prefix, "--lease", g.LeaseID, "--"), EnvNames: []string{g.Env}}
		return out, nil
	}
	value, err := a.Broker.Reveal(ctx, caller, g.LeaseID)
	if err != nil {
		return leaseResult{}, err
	}
	defer value.Wipe()
	out := granted(g, "Use the value where it is needed and do not print, log or store it."+better(g.Open))
	out.Value = string(value.Bytes())
	return out, nil
}

// goOn is how the holder of a renewed lease goes on.
var goOn = map[policy.Delivery]string{
	policy.Proxy: "Go on with the base_url and api_key you have.",
	policy.Exec:  "Go on with the command_prefix you have.",
	policy.Value: "Go on with the value you have.",
}

// better names the way by which whoever got a value could do without seeing it; "" where there is none.
func better(open []policy.Delivery) string {
	switch {
	case slices.Contains(open, policy.Proxy):
		return ` Next time ask with delivery "proxy": requests then carry the key, and you never see it.`
	case slices.Contains(open, policy.Exec):
		return ` Next time ask with delivery "exec" if a command can do the work: it gets the key, and you never see it.`
	}
	return ""
}

func granted(g lease.Grant, hint string) leaseResult {
	out := leaseResult{Status: "granted", LeaseID: g.LeaseID, Credential: g.Credential, Type: g.Type, Version: g.Version,
		Delivery: string(g.Delivery), IssuedAt: wire(g.IssuedAt), ExpiresAt: wire(g.ExpiresAt),
		MaxExpiresAt: wire(g.MaxExpiresAt), TTL: ttl.Format(g.TTL), TTLCapped: g.Capped, Metadata: g.Metadata, Hint: hint}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	return out
}

func delivery(s string) (policy.Delivery, error) {
	if s == "" {
		return "", nil
	}
	way, err := policy.ParseDelivery(s)
	if err != nil {
		return "", &lease.Refusal{Code: lease.InvalidArgument, Message: "delivery is not one that keylease knows",
			Hint: "Leave delivery out, or take one of the credential's deliveries in list_credentials."}
	}
	return way, nil
}
