package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// session is what mcp-go knows of one local connection. It has an id of its own: mcp-go's stdio session is one for the
// whole process, with which two connections would swap answers, cancellations and identities.
type session struct {
	id            string
	notifications chan mcp.JSONRPCNotification
	send          func(line []byte) // to the client
	gone          <-chan struct{}   // closed when nothing more is read of it
	initialized   atomic.Bool
	level         atomic.Value // mcp.LoggingLevel

	mu           sync.Mutex // guards what the client said of itself
	info         mcp.Implementation
	capabilities mcp.ClientCapabilities
	protocol     string
	asked        map[string]chan envelope // what we asked of the client, by the id that we gave it
}

func newSession() *session {
	return &session{id: newSessionID(), notifications: make(chan mcp.JSONRPCNotification, 16), asked: map[string]chan envelope{}}
}

func (s *session) SessionID() string { return s.id }

func (s *session) NotificationChannel() chan<- mcp.JSONRPCNotification { return s.notifications }

func (s *session) Initialize() { s.initialized.Store(true) }

func (s *session) Initialized() bool { return s.initialized.Load() }

func (s *session) SetLogLevel(level mcp.LoggingLevel) { s.level.Store(level) }

func (s *session) GetLogLevel() mcp.LoggingLevel {
	if level, ok := s.level.Load().(mcp.LoggingLevel); ok {
		return level
	}
	return mcp.LoggingLevelError
}

func (s *session) GetClientInfo() mcp.Implementation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

func (s *session) SetClientInfo(info mcp.Implementation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = info
}

func (s *session) GetClientCapabilities() mcp.ClientCapabilities {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.capabilities
}

func (s *session) SetClientCapabilities(c mcp.ClientCapabilities) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capabilities = c
}

func (s *session) ProtocolVersion() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.protocol
}

func (s *session) SetProtocolVersion(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.protocol = version
}

// RequestElicitation puts a question to the client's user and waits for the answer, the end of the connection or of
// ctx; then the client is told that it need not ask any more. The id is random, so that only who was asked can answer.
func (s *session) RequestElicitation(ctx context.Context, request mcp.ElicitationRequest) (*mcp.ElicitationResult, error) {
	id, answer := "elicit_"+rand.Text(), make(chan envelope, 1)
	s.mu.Lock()
	s.asked[id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asked, id)
	}()
	s.send(mustJSON(map[string]any{"jsonrpc": mcp.JSONRPC_VERSION, "id": id, "method": mcp.MethodElicitationCreate, "params": request.Params}))
	select {
	case e := <-answer:
		var result mcp.ElicitationResult
		if e.Error != nil || json.Unmarshal(e.Result, &result) != nil {
			return nil, errors.New("the client could not ask its user")
		}
		return &result, nil
	case <-s.gone:
		return nil, errors.New("the client left without an answer")
	case <-ctx.Done():
		s.send(mustJSON(map[string]any{"jsonrpc": mcp.JSONRPC_VERSION, "method": mcp.MethodNotificationCancelled,
			"params": map[string]string{"requestId": id, "reason": "the question is over"}}))
		return nil, ctx.Err()
	}
}

// take is an answer of the client. What nobody asked, or was answered already, is dropped.
func (s *session) take(e *envelope) {
	var id string
	if json.Unmarshal(e.ID, &id) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if answer := s.asked[id]; answer != nil {
		delete(s.asked, id)
		answer <- *e
	}
}

var (
	_ mcpserver.SessionWithElicitation     = (*session)(nil)
	_ mcpserver.SessionWithClientInfo      = (*session)(nil)
	_ mcpserver.SessionWithLogging         = (*session)(nil)
	_ mcpserver.SessionWithProtocolVersion = (*session)(nil)
)
