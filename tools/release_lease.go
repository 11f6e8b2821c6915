package tools

import (
	"context"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/lease"
	"keylease/internal/ttl"
)

type releaseArgs struct {
	LeaseID string `json:"lease_id" jsonschema:"The lease to give back, as lease_credential returned it"`
}

type releaseResult struct {
	LeaseID string `json:"lease_id"`
	Status  string `json:"status" jsonschema:"How the lease ended: released, expired or revoked"`
	EndedAt string `json:"ended_at" jsonschema:"RFC 3339, UTC"`
	HeldFor string `json:"held_for" jsonschema:"How long it was held, like 12m"`
}

func releaseTool() mcp.Tool {
	return mcp.NewTool("release_lease",
		mcp.WithDescription(`Give a lease back as soon as the work it was for is done: others may be waiting for it. Safe to call twice. What it gave you is refused from then on, and a value must not be used any more; lease the credential again if you need to.`),
		mcp.WithTitleAnnotation("Release a lease"),
		mcp.WithReadOnlyHintAnnotation(false),
		mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true),
		mcp.WithOpenWorldHintAnnotation(false),
		mcp.WithInputSchema[releaseArgs](),
		outputSchema[releaseResult](),
	)
}

func (a agent) release(ctx context.Context, in releaseArgs) (releaseResult, error) {
	ctx, caller, err := a.caller(ctx)
	if err != nil {
		return releaseResult{}, err
	}
	if in.LeaseID == "" {
		return releaseResult{}, &lease.Refusal{Code: lease.InvalidArgument, Message: "lease_id is missing",
			Hint: "Give the lease_id that lease_credential returned; list_credentials shows yours under your_leases."}
	}
	ended, err := a.Broker.Release(ctx, caller, in.LeaseID)
	if err != nil {
		return releaseResult{}, err
	}
	return releaseResult{ended.LeaseID, string(ended.Status), wire(ended.EndedAt), ttl.Format(ended.HeldFor)}, nil
}
