package tools

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// slowClient is a client whose user answers when the test does.
type slowClient struct {
	asked  chan mcp.ElicitationRequest
	answer chan mcp.ElicitationResult
}

func (c *slowClient) SessionID() string                                   { return "slow" }
func (c *slowClient) NotificationChannel() chan<- mcp.JSONRPCNotification { return nil }
func (c *slowClient) Initialize()                                         {}
func (c *slowClient) Initialized() bool                                   { return true }
func (c *slowClient) GetClientInfo() mcp.Implementation                   { return mcp.Implementation{} }
func (c *slowClient) SetClientInfo(mcp.Implementation)                    {}
func (c *slowClient) SetClientCapabilities(mcp.ClientCapabilities)        {}
func (c *slowClient) GetClientCapabilities() (can mcp.ClientCapabilities) {
	can.Elicitation = &mcp.ElicitationCapability{}
	return can
}

func (c *slowClient) RequestElicitation(ctx context.Context, r mcp.ElicitationRequest) (*mcp.ElicitationResult, error) {
	c.asked <- r
	select {
	case a := <-c.answer:
		return &a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A client that hangs holds no call longer than clients wait, is asked once, and its answer counts when it comes.
func TestACallDoesNotWaitForAClientThatHangs(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Options{Dir: filepath.Join(dir, "data"), AnchorDir: filepath.Join(dir, "config"),
		RootKey: make([]byte, 32), KeySource: "test", Create: true, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	b, err := lease.Open(context.Background(), lease.Config{Store: s, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(context.Background(), identity.Caller{}, lease.NewCredential{Name: "openai", Type: "api-key",
		Value: secret.New([]byte(canary)), Policy: policy.CredentialPolicy{Approval: policy.User}}); err != nil {
		t.Fatal(err)
	}
	server := NewServer(Options{Broker: b, Log: zerolog.Nop(), Version: "test", patience: 100 * time.Millisecond})
	mcpserver.WithOutputSchemaValidation()(server)
	client := &slowClient{make(chan mcp.ElicitationRequest, 9), make(chan mcp.ElicitationResult)}
	ctx := server.WithContext(agentContext(), client)
	first, raw, isError := call(t, ctx, server, "lease_credential", `{"credential":"openai"}`)
	approval, _ := first["approval"].(map[string]any)
	id, _ := approval["id"].(string)
	if isError || first["status"] != "approval_required" || id == "" {
		t.Fatalf("%s", raw)
	}
	if again, raw, _ := call(t, ctx, server, "lease_credential", `{"approval_id":"`+id+`"}`); again["status"] != "approval_required" || len(client.asked) != 1 {
		t.Fatalf("asked %d times: %s", len(client.asked), raw)
	}
	client.answer <- mcp.ElicitationResult{ElicitationResponse: mcp.ElicitationResponse{Action: mcp.ElicitationResponseActionAccept, Content: map[string]any{"answer": "approve"}}}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got, raw, _ := call(t, ctx, server, "lease_credential", `{"approval_id":"`+id+`"}`)
		if got["status"] == "granted" && got["value"] == canary {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the answer came too late to count: %s", raw)
		}
	}
}
