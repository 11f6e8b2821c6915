package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// agent is the scripted MCP client of the demo, with a relay of its own as any client has.
type agent struct {
	relay *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	id    int
}

// newAgent starts a relay and shakes hands with it. The relay's stdin and stdout are the agent's.
func newAgent(relay *exec.Cmd) (*agent, error) {
	relay.WaitDelay = time.Second
	in, err := relay.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := relay.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := relay.Start(); err != nil {
		return nil, fmt.Errorf("starting keylease mcp: %w", err)
	}
	a := &agent{relay: relay, in: in, out: bufio.NewScanner(out)}
	a.out.Buffer(nil, 1<<20)
	_, err = a.request("initialize", map[string]any{"protocolVersion": "2025-11-25", "capabilities": map[string]any{},
		"clientInfo": map[string]any{"name": "keylease-demo", "version": version()}})
	if err == nil {
		err = a.send(map[string]any{"jsonrpc": "2.0", "method": "notifications/initialized"})
	}
	if err != nil {
		a.leave()
		return nil, err
	}
	return a, nil
}

// call returns a tool's structured answer and whether it was a refusal.
func (a *agent) call(tool string, args any) (answer json.RawMessage, refused bool, err error) {
	result, err := a.request("tools/call", map[string]any{"name": tool, "arguments": args})
	if err != nil {
		return nil, false, err
	}
	var r struct {
		Structured json.RawMessage `json:"structuredContent"`
		IsError    bool            `json:"isError"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return nil, false, fmt.Errorf("reading the answer of %s: %w", tool, err)
	}
	return r.Structured, r.IsError, nil
}

func (a *agent) request(method string, params any) (json.RawMessage, error) {
	a.id++
	if err := a.send(map[string]any{"jsonrpc": "2.0", "id": a.id, "method": method, "params": params}); err != nil {
		return nil, err
	}
	for a.out.Scan() {
		var m struct {
			ID     int             `json:"id"`
			Result json.RawMessage `json:"result"`
			Error  *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if err := json.Unmarshal(a.out.Bytes(), &m); err != nil {
			return nil, fmt.Errorf("reading the relay's line: %w", err)
		}
		switch {
		case m.ID != a.id: // a notification
		case m.Error != nil:
			return nil, fmt.Errorf("%s: %s", method, m.Error.Message)
		default:
			return m.Result, nil
		}
	}
	return nil, fmt.Errorf("%s: the relay ended without an answer", method)
}

func (a *agent) send(message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing to the relay: %w", err)
	}
	return nil
}

// leave closes the connection the way clients do, and waits for the relay to end.
func (a *agent) leave() {
	_ = a.in.Close()
	_ = a.relay.Wait()
}
