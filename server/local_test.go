package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
)

// house is a daemon whose broker is a fake: three tools, a token, and a record of who came and went. All else is the
// shipped code.
type house struct {
	mu       sync.Mutex
	attached []identity.Caller
	detached []string
	lapsed   []string
	ran      map[string]int // calls of the tool "hold" by argument
	revoked  bool
	leases   int

	entered chan string   // "hold" began
	release chan struct{} // "hold" may end
}

func newHouse() *house {
	return &house{ran: map[string]int{}, entered: make(chan string, 100), release: make(chan struct{})}
}

func (h *house) tools() *mcpserver.MCPServer {
	s := mcpserver.NewMCPServer("test", "1", mcpserver.WithToolCapabilities(false))
	s.AddTool(mcp.NewTool("whoami"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		c, ok := identity.From(ctx)
		if !ok {
			return mcp.NewToolResultError("unauthenticated"), nil
		}
		return mcp.NewToolResultText(fmt.Sprintf("%s %s %s %s/%s", c.Type, c.Name, c.Proof, c.ClientName, c.ClientVersion)), nil
	})
	s.AddTool(mcp.NewTool("hold", mcp.WithString("mark")), func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		mark := r.GetString("mark", "")
		h.mu.Lock()
		h.ran[mark]++
		h.mu.Unlock()
		h.entered <- mark
		select {
		case <-h.release:
			return mcp.NewToolResultText("held " + mark), nil
		case <-ctx.Done():
			return mcp.NewToolResultError("cancelled " + mark), nil
		}
	})
	s.AddTool(mcp.NewTool("big"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText(strings.Repeat("x", 8<<20)), nil
	})
	s.AddTool(mcp.NewTool("panic"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		panic("sk-fake-canary")
	})
	return s
}

func (h *house) backend(log zerolog.Logger, called func()) backend {
	return backend{
		local: local{mcp: h.tools(), log: log, called: called,
			attach: func(_ context.Context, c identity.Caller) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.attached = append(h.attached, c)
			},
			detach: func(_ context.Context, session string) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.detached = append(h.detached, session)
			},
			lapse: func(session string) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.lapsed = append(h.lapsed, session)
			},
			authenticate: func(_ context.Context, token, _ string) (identity.Principal, error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				if token != "kl_fake_good" || h.revoked {
					return identity.Principal{}, errors.New("unknown token")
				}
				return identity.Principal{Type: identity.Agent, Name: "ci", Proof: identity.Token, By: "token:tk_1"}, nil
			}},
		admin: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p := peerFrom(r.Context())
			fmt.Fprintf(w, "uid %d pid %d", p.UID, p.PID)
		}),
		activity: func() lease.Activity {
			h.mu.Lock()
			defer h.mu.Unlock()
			return lease.Activity{LiveLeases: h.leases, Quiet: time.Hour}
		},
		started: func(context.Context, Listening) error { return nil },
		run:     func(ctx context.Context) error { <-ctx.Done(); return nil },
		reload:  func(context.Context) {},
		stopped: func(context.Context, string) error { return nil },
		close:   func() error { return nil },
	}
}

func (h *house) callers() []identity.Caller {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]identity.Caller(nil), h.attached...)
}

func (h *house) gone() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.detached)
}

// shortDir is a folder with a path short enough for a socket.
func shortDir(t testing.TB) Paths {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Paths{Data: filepath.Join(dir, "d"), Config: filepath.Join(dir, "c")}
}

// open runs the daemon in this process and returns what stops it and waits.
func (h *house) open(t testing.TB, o Options) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	o.Ready = func(Listening) { close(up) }
	go func() {
		done <- serve(ctx, o, func(_ context.Context, d *daemon) (backend, error) { return h.backend(o.Log, d.touch), nil })
	}()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(5 * time.Second):
				err = errors.New("the daemon did not stop")
			}
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// wire is a bare client of the local socket.
type wire struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dialWire(t testing.TB, p Paths, h hello) *wire {
	t.Helper()
	conn, err := connect(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	w := &wire{t, conn, bufio.NewReader(conn)}
	h.Kind = kindMCP
	if _, err := sayHello(conn, w.r, h); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) send(line string) {
	w.t.Helper()
	if _, err := w.conn.Write([]byte(line + "\n")); err != nil {
		w.t.Fatal(err)
	}
}

// lineAnswer is what a test looks at of a JSON-RPC answer.
type lineAnswer struct {
	ID     json.RawMessage `json:"id"`
	Error  *rpcError       `json:"error"`
	Result struct {
		IsError    bool            `json:"isError"`
		Structured json.RawMessage `json:"structuredContent"`
		Content    []struct{ Text string }
		ServerInfo struct{ Name string }
	} `json:"result"`
	raw string
}

func (a lineAnswer) text() string {
	if len(a.Result.Content) == 0 {
		return ""
	}
	return a.Result.Content[0].Text
}

func (w *wire) next() lineAnswer {
	w.t.Helper()
	_ = w.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	line, err := readLine(w.r, maxRead)
	if err != nil {
		w.t.Fatal(err)
	}
	return parseAnswer(w.t, line)
}

func parseAnswer(t testing.TB, line []byte) lineAnswer {
	t.Helper()
	a := lineAnswer{raw: string(line)}
	if err := json.Unmarshal(line, &a); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return a
}

func (w *wire) ask(line string) lineAnswer {
	w.t.Helper()
	w.send(line)
	return w.next()
}

func call1(id, tool, args string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":%q,"arguments":{%s}}}`, id, tool, args)
}

func handshake(id, client string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":%q,"version":"1.0"}}}`, id, client)
}

func modernLine(id, method, client, params string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":%q,"version":"2"}}}}`, id, method, params, client)
}

func comesTrue(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}
