package tools

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/policy"
)

// patience is how long a call waits for a person. Clients give up at 60 s, some earlier.
const patience = 40 * time.Second

type approvalResult struct {
	ID        string `json:"id" jsonschema:"Give it as approval_id to lease_credential to get the lease once a person agreed"`
	ExpiresAt string `json:"expires_at" jsonschema:"RFC 3339, UTC. From then on the question counts as denied."`
	How       string `json:"how" jsonschema:"Who can agree, and how"`
}

// agree gets a person's answer to what g waits for, as far as that can be had in this call. It returns the grant, or
// the result that has a client of 2026-07-28 ask its user and call again, or the question as it still stands.
//
// Nothing that a client echoes says which question it answers: the question is the one that this principal's arguments
// lead to, and an answer counts only under its id.
func (a agent) agree(ctx context.Context, caller identity.Caller, request mcp.CallToolRequest, g lease.Grant) (lease.Grant, *mcp.CallToolResult, error) {
	w := *g.Waiting
	settled := context.WithoutCancel(ctx)
	resumed := request.GetString("approval_id", "") != ""
	asks := w.Approval == policy.User && elicits(ctx)
	var said <-chan struct{} // closed when the client had its say; nil: it is not asked in this call
	switch result := mcpserver.ElicitationResponse(request.Params.InputResponses, w.ID); {
	case asks && mcpserver.IsModernRequest(ctx) && result != nil:
		a.questions.close(w)
		if answered, err := a.heard(settled, caller, w, result); err != nil || !answered {
			return g, nil, err
		}
	case asks && mcpserver.IsModernRequest(ctx) && len(request.Params.InputResponses) == 0 && a.questions.open(w):
		return g, mcpserver.NewInputRequestBuilder("").Elicit(w.ID, form(w)).ToolResult(), nil
	case asks && !mcpserver.IsModernRequest(ctx):
		said = a.askClient(ctx, caller, w)
	case !resumed:
		return g, nil, nil // the model is to tell the user first; then it comes back and waits
	}
	a.await(ctx, caller, w.ID, said)
	g, err := a.Broker.Lease(settled, caller, lease.Request{ApprovalID: w.ID})
	return g, nil, err
}

// await waits for the answer as long as a call may, and no longer than somebody waits for the call.
func (a agent) await(ctx context.Context, caller identity.Caller, id string, said <-chan struct{}) {
	leave, ok := a.questions.wait(id)
	if !ok {
		return
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if end, ok := ctx.Value(endKey{}).(context.Context); ok {
		defer context.AfterFunc(end, cancel)()
	}
	if said != nil {
		go func() { // ends with this call
			select {
			case <-said:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	a.Broker.Await(ctx, caller, id)
}

// askClient puts the question to the user through a client of an older revision, if nobody does so already. It does not
// wait: the user may take longer than the call, and the answer counts as long as the question is open.
func (a agent) askClient(ctx context.Context, caller identity.Caller, w lease.Waiting) (said <-chan struct{}) {
	if !a.questions.open(w) {
		return nil
	}
	asking, cancel := context.WithDeadline(context.WithoutCancel(ctx), w.ExpiresAt)
	if end, ok := ctx.Value(endKey{}).(context.Context); ok {
		context.AfterFunc(end, cancel)
	}
	go func() { // an operator may be quicker, and then the user is not to be asked any more
		a.Broker.Await(asking, caller, w.ID)
		cancel()
	}()
	done := make(chan struct{})
	go func() { // ends with the client's answer, its connection, or the question
		defer close(done)
		result, err := mcpserver.ServerFromContext(ctx).RequestElicitation(asking, mcp.ElicitationRequest{
			Request: mcp.Request{Method: string(mcp.MethodElicitationCreate)}, Params: form(w)})
		if err != nil {
			a.Log.Debug().Str("error", lease.CleanText(err.Error(), 200)).Str("approval_id", w.ID).Msg("a client gave no answer") // perhaps in its own words
			a.questions.forget(w.ID)                                                                                              // another connection may ask
		} else if _, err := a.heard(context.WithoutCancel(ctx), caller, w, result); err != nil {
			a.Log.Debug().Err(err).Str("approval_id", w.ID).Msg("a client's answer came too late")
		}
		cancel()
	}()
	return done
}

// heard records what a client says that its user said. What is no clear yes or no is no answer: the question stays open
// for the operator.
func (a agent) heard(ctx context.Context, caller identity.Caller, w lease.Waiting, result *mcp.ElicitationResult) (answered bool, err error) {
	yes, no := verdict(result)
	if !yes && !no {
		a.Log.Debug().Str("approval_id", w.ID).Str("action", lease.CleanText(string(result.Action), 20)).Msg("a client gave an answer that is none")
		return false, nil
	}
	return true, a.Broker.ClientAnswered(ctx, caller, w.ID, yes)
}

const (
	answerField = "answer"
	approveWord = "approve"
	denyWord    = "deny"
)

// form is the question with one choice, which has to be made: clients that accept a form unseen send it back empty.
func form(w lease.Waiting) mcp.ElicitationParams {
	return mcp.ElicitationParams{Mode: mcp.ElicitationModeForm, Message: w.Question.String(), RequestedSchema: map[string]any{
		"type": "object",
		"properties": map[string]any{answerField: map[string]any{
			"type": "string", "title": "Your answer", "description": "approve lends it once; deny does not", "enum": []string{approveWord, denyWord}}},
		"required": []string{answerField}}}
}

func verdict(r *mcp.ElicitationResult) (yes, no bool) {
	switch r.Action {
	case mcp.ElicitationResponseActionDecline:
		return false, true
	case mcp.ElicitationResponseActionAccept:
		content, _ := r.Content.(map[string]any)
		if len(content) != 1 {
			return false, false
		}
		return content[answerField] == approveWord, content[answerField] == denyWord
	}
	return false, false
}

// elicits reports whether the client that calls said that it can put a form before its user, and there is a way to it.
func elicits(ctx context.Context) bool {
	var can *mcp.ElicitationCapability
	if info := mcpserver.RequestProtocolInfoFromContext(ctx); info != nil && info.Modern {
		if info.ClientCapabilities != nil {
			can = info.ClientCapabilities.Elicitation
		}
	} else {
		session := mcpserver.ClientSessionFromContext(ctx)
		known, ok := session.(mcpserver.SessionWithClientInfo)
		if _, asks := session.(mcpserver.SessionWithElicitation); !ok || !asks {
			return false // SSE, and clients without a session
		}
		can = known.GetClientCapabilities().Elicitation
	}
	return can != nil && (can.Form != nil || can.URL == nil) // {} is how older revisions say form
}

// waitingFor is the answer to whoever asked for what a person has to agree to first.
func waitingFor(ctx context.Context, g lease.Grant) leaseResult {
	w := g.Waiting
	how := "An operator agrees in a terminal of their own, with: keylease approve " + w.ID
	if w.Approval == policy.User && elicits(ctx) {
		how = "The user is asked through this client, if it shows the question. An operator may answer too, in a terminal of their own, with: keylease approve " + w.ID
	}
	return leaseResult{Status: "approval_required", Credential: g.Credential, Delivery: string(g.Delivery), Version: g.Version,
		TTL: ttl.Format(g.TTL), TTLCapped: g.Capped, Metadata: map[string]string{}, Approval: &approvalResult{w.ID, wire(w.ExpiresAt), how},
		Hint: "Nothing is lent yet. Tell the user what you asked for and how it is approved, then call lease_credential with approval_id and no other argument: it waits for the answer for a while, and may be called again until expires_at. Do not ask for something else meanwhile, do not try to approve it yourself, and do not look for this key elsewhere."}
}

type endKey struct{}

// Ending returns a context whose calls wait for no person any longer than end goes on: until the client leaves, or the
// daemon stops. What a call has begun to change it finishes all the same.
func Ending(ctx, end context.Context) context.Context { return context.WithValue(ctx, endKey{}, end) }

// questions remembers which are before a client, or were and got no answer, so that nobody is asked one thing twice.
type questions struct {
	mu      sync.Mutex           // guards what follows
	by      map[string]time.Time // id → when it is over anyway
	waiting map[string]int       // id → how many calls wait for it
}

// maxWaiting is how many calls wait for one answer at a time; more are told at once that there is none yet. With three
// questions a caller can have a dozen of its 64 calls waiting, so it never waits for itself.
const maxWaiting = 4

// wait takes one of the places to wait in for a question.
func (q *questions) wait(id string) (leave func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting[id] >= maxWaiting {
		return nil, false
	}
	q.waiting[id]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.waiting[id]--; q.waiting[id] == 0 {
			delete(q.waiting, id)
		}
	}, true
}

// open reports whether w is to be put to the client, and notes that it is.
func (q *questions) open(w lease.Waiting) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	maps.DeleteFunc(q.by, func(_ string, over time.Time) bool { return time.Now().After(over) })
	if _, there := q.by[w.ID]; there {
		return false
	}
	q.by[w.ID] = w.ExpiresAt
	return true
}

// close notes that w is not to be put to a client again.
func (q *questions) close(w lease.Waiting) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.by[w.ID] = w.ExpiresAt
}

func (q *questions) forget(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.by, id)
}
