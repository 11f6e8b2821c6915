//go:build linux

package promises

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// web is an MCP client of /mcp. It opens a session in the eras that have them, and another where the daemon says that
// it does not know the first any more, as the protocol asks of clients.
type web struct {
	w     *world
	base  string
	token string
	spec  spec
	over  *http.Client // nil: the usual one
	era   string       // the revision of its handshake

	mu      sync.Mutex
	session string
	next    atomic.Int64
}

// web is a client of the daemon at addr with this token; modern is the era without sessions.
func (w *world) web(addr, token string, isModern bool) *web {
	return &web{w: w, base: "http://" + addr, token: token, spec: spec{client: "test-client", modern: isModern}, era: legacy}
}

type response struct {
	status int
	header http.Header
	body   string
}

// do makes one request. Headers come in pairs; one that is given replaces the usual one, and an empty one takes it
// away.
func do(method, url, body string, headers ...string) (response, error) {
	return doOver(http.DefaultClient, method, url, body, headers...)
}

func doOver(client *http.Client, method, url, body string, headers ...string) (response, error) {
	ctx, cancel := timeout()
	defer cancel()
	r, err := request(ctx, method, url, body, headers...)
	if err != nil {
		return response{}, err
	}
	got, err := client.Do(r)
	if err != nil {
		return response{}, err
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	return response{got.StatusCode, got.Header, string(text)}, err
}

func request(ctx context.Context, method, url, body string, headers ...string) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
	} else {
		r.Body, r.ContentLength = nil, 0
		r.Header.Set("Accept", "text/event-stream")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		switch {
		case headers[i] == "Host":
			r.Host = headers[i+1]
		case headers[i+1] == "":
			r.Header.Del(headers[i])
		default:
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	return r, nil
}

// rpc posts one request under id and reads its answer, which comes as JSON or as an event.
func (c *web) rpc(id, method string, params any, headers ...string) (response, rpcReply, error) {
	var reply rpcReply
	if c.token != "" {
		headers = append([]string{"Authorization", "Bearer " + c.token}, headers...)
	}
	got, err := doOver(cmp.Or(c.over, http.DefaultClient), "POST", c.base+"/mcp", rpcLine(id, method, params), headers...)
	if err != nil || got.status != http.StatusOK {
		return got, reply, err
	}
	text := got.body
	if strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
		_, text, _ = strings.Cut(text, "data: ")
		text, _, _ = strings.Cut(text, "\n")
	}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return got, reply, fmt.Errorf("%w in %q", err, got.body)
	}
	if string(reply.ID) != id {
		return got, reply, fmt.Errorf("asked as %s, answered as %s: %s", id, reply.ID, got.body)
	}
	return got, reply, nil
}

func (c *web) id() string { return fmt.Sprint(c.next.Add(1)) }

func (c *web) try(tool string, arguments any) (answer, error) {
	return c.tryAs(c.id(), tool, arguments)
}

func (c *web) tryAs(id, tool string, arguments any) (answer, error) {
	for range 2 {
		headers, err := c.headers(tool)
		if err != nil {
			return answer{}, err
		}
		got, reply, err := c.rpc(id, "tools/call", toolCall(tool, arguments, c.spec), headers...)
		switch {
		case err != nil:
			return answer{}, err
		case got.status == http.StatusNotFound && !c.spec.modern:
			c.forget()
			continue
		case got.status != http.StatusOK:
			return answer{}, fmt.Errorf("HTTP %d: %s", got.status, got.body)
		}
		return reply.tool()
	}
	return answer{}, fmt.Errorf("the daemon knows none of our sessions")
}

func (c *web) headers(tool string) ([]string, error) {
	if c.spec.modern {
		return []string{"Mcp-Protocol-Version", modern, "Mcp-Method", "tools/call", "Mcp-Name", tool}, nil
	}
	session, err := c.open()
	return []string{"Mcp-Protocol-Version", c.era, "Mcp-Session-Id", session}, err
}

// open returns the session, beginning it where there is none.
func (c *web) open() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != "" {
		return c.session, nil
	}
	got, reply, err := c.rpc(c.id(), "initialize", args{"protocolVersion": c.era, "capabilities": c.spec.capabilities(),
		"clientInfo": args{"name": c.spec.client, "version": "1"}})
	if err == nil && (got.status != http.StatusOK || reply.Error != nil) {
		err = fmt.Errorf("initialize: HTTP %d: %s", got.status, got.body)
	}
	if err != nil {
		return "", err
	}
	c.session = got.header.Get("Mcp-Session-Id")
	if len(c.session) < 22 { // 128 bits in the densest usual encoding
		return "", fmt.Errorf("the session id %q can be guessed", c.session)
	}
	return c.session, nil
}

func (c *web) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = ""
}

// sse is an MCP client of /sse and /message.
type sse struct {
	w     *world
	base  string
	token string
	post  string // where to POST, as the stream's first event says
	close context.CancelFunc

	mu      sync.Mutex
	next    int
	waiting map[string]chan rpcReply
}

func (w *world) sse(addr, token string) *sse {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	c := &sse{w: w, base: "http://" + addr, token: token, close: cancel, waiting: map[string]chan rpcReply{}}
	r, err := request(ctx, "GET", c.base+"/sse", "", "Authorization", "Bearer "+token)
	w.must(err)
	got, err := http.DefaultClient.Do(r)
	w.must(err)
	if got.StatusCode != http.StatusOK {
		w.t.Fatalf("GET /sse: HTTP %d", got.StatusCode)
	}
	opened := make(chan string, 1)
	go c.read(got.Body, opened)
	select {
	case c.post = <-opened:
	case <-r.Context().Done():
	}
	_, err = c.ask("initialize", args{"protocolVersion": "2024-11-05", "capabilities": args{},
		"clientInfo": args{"name": "test-client", "version": "1"}})
	w.must(err)
	return c
}

func (c *sse) read(body io.ReadCloser, opened chan string) {
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
	event := ""
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = name
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case ok && event == "endpoint":
			opened <- c.base + data
		case ok:
			var r rpcReply
			if json.Unmarshal([]byte(data), &r) != nil {
				continue
			}
			r.text = data
			c.mu.Lock()
			if ch := c.waiting[string(r.ID)]; ch != nil {
				ch <- r
			}
			delete(c.waiting, string(r.ID))
			c.mu.Unlock()
		}
	}
}

func (c *sse) ask(method string, params any) (rpcReply, error) {
	c.mu.Lock()
	c.next++
	id, ch := fmt.Sprint(c.next), make(chan rpcReply, 1)
	c.waiting[id] = ch
	c.mu.Unlock()
	got, err := do("POST", c.post, rpcLine(id, method, params), "Authorization", "Bearer "+c.token)
	if err != nil {
		return rpcReply{}, err
	}
	if got.status != http.StatusAccepted {
		return rpcReply{}, fmt.Errorf("POST /message: HTTP %d: %s", got.status, got.body)
	}
	ctx, cancel := timeout()
	defer cancel()
	select {
	case r := <-ch:
		return r, nil
	case <-ctx.Done():
		return rpcReply{}, fmt.Errorf("no answer to %s on the stream", method)
	}
}

func (c *sse) try(tool string, arguments any) (answer, error) {
	r, err := c.ask("tools/call", args{"name": tool, "arguments": arguments})
	if err != nil {
		return answer{}, err
	}
	return r.tool()
}
