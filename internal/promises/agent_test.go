//go:build linux

package promises

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// caller is an agent's way to the tools, over whichever transport.
type caller interface {
	try(tool string, args any) (answer, error) // an error is a fault of the protocol or the transport
}

type args = map[string]any

// answer is what a tool said.
type answer struct {
	refused bool
	body    map[string]any // structuredContent
	raw     string         // the whole result
}

// get reads a string by its path: get("error", "code").
func (a answer) get(path ...string) string {
	var at any = a.body
	for _, name := range path {
		m, _ := at.(map[string]any)
		at = m[name]
	}
	if s, ok := at.(string); ok {
		return s
	}
	return ""
}

// code is why a call was refused; "" where it was not.
func (a answer) code() string {
	if !a.refused {
		return ""
	}
	if c := a.get("error", "code"); c != "" {
		return c
	}
	return "an error without a code"
}

func (a answer) lease() string { return a.get("lease_id") }

// yours are the ids under your_leases of a lease_limit.
func (a answer) yours() (ids []string) {
	fault, _ := a.body["error"].(map[string]any)
	list, _ := fault["your_leases"].([]any)
	for _, one := range list {
		m, _ := one.(map[string]any)
		id, _ := m["lease_id"].(string)
		ids = append(ids, id)
	}
	return ids
}

// rpcReply is an answer of JSON-RPC.
type rpcReply struct {
	ID     json.RawMessage `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  *rpcFault       `json:"error"`
	text   string          // all of it, as it came
}

type rpcFault struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (f *rpcFault) Error() string { return fmt.Sprintf("JSON-RPC error %d: %s", f.Code, f.Message) }

// tool reads the reply to a tools/call, and holds its two copies against each other.
func (r rpcReply) tool() (answer, error) {
	if r.Error != nil {
		return answer{}, r.Error
	}
	var result struct {
		IsError    bool            `json:"isError"`
		Structured json.RawMessage `json:"structuredContent"`
		Content    []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.Unmarshal(r.Result, &result); err != nil {
		return answer{}, err
	}
	a := answer{refused: result.IsError, raw: string(r.Result)}
	if err := json.Unmarshal(result.Structured, &a.body); err != nil {
		return a, fmt.Errorf("no structuredContent in %s", r.Result)
	}
	var copied map[string]any
	if len(result.Content) != 1 || json.Unmarshal([]byte(result.Content[0].Text), &copied) != nil || fmt.Sprint(copied) != fmt.Sprint(a.body) {
		return a, fmt.Errorf("the text is not what structuredContent is: %s", r.Result)
	}
	return a, nil
}

// call is try for a test's own goroutine.
func call(t testing.TB, c caller, tool string, a any) answer {
	t.Helper()
	got, err := c.try(tool, a)
	if err != nil {
		t.Fatalf("%s %v: %v", tool, a, err)
	}
	return got
}

// lend leases a credential, which has to work, and returns the lease's id.
func lend(t *testing.T, c caller, credential string, more ...string) string {
	t.Helper()
	a := args{"credential": credential}
	for i := 0; i+1 < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	got := call(t, c, "lease_credential", a)
	if got.refused || got.get("status") != "granted" || got.get("value") == "" {
		t.Fatalf("leasing %s: %s", credential, got.raw)
	}
	return got.lease()
}

// wantCode fails the test unless the call is refused with this code.
func wantCode(t *testing.T, c caller, code, tool string, a args) answer {
	t.Helper()
	got := call(t, c, tool, a)
	if got.code() != code {
		t.Fatalf("%s %v: want %q, got %s", tool, a, code, got.raw)
	}
	return got
}

// spec says how an agent starts `keylease mcp`.
type spec struct {
	client string // clientInfo name
	modern bool   // revision 2026-07-28: no handshake
	asks   bool   // puts forms before its user
	flags  []string
	env    []string
	dir    string
	user   *user // nil: who runs the tests
}

const (
	legacy = "2025-11-25"
	modern = "2026-07-28"
)

// agent is an MCP client on the stdio of a relay.
type agent struct {
	w     *world
	spec  spec
	relay int // pid
	in    io.WriteCloser
	inMu  sync.Mutex
	ended chan struct{} // the relay's stdout was closed

	mu      sync.Mutex
	next    int
	waiting map[string]chan rpcReply
	strays  []string // lines that answer nothing that was asked
}

// agent starts a relay that calls itself name and shakes hands.
func (w *world) agent(name string) *agent {
	w.t.Helper()
	return w.agentOf(spec{client: "test-client", flags: []string{"--as", name}})
}

// agentOf starts a relay below a shell: keylease takes a relay's parent for an agent and refuses it the admin verbs,
// and this test needs them.
func (w *world) agentOf(s spec) *agent {
	w.t.Helper()
	a, err := w.start(s)
	w.must(err)
	if !s.modern {
		w.must(a.handshake(legacy))
	}
	return a
}

// start only starts it; for goroutines.
func (w *world) start(s spec) (*agent, error) {
	tell, told, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer tell.Close()
	const script = `exec 4<&0; "$@" <&4 3>&- & echo $! >&3; exec 3>&- 4<&- </dev/null; wait`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", w.bin, "mcp"}, s.flags...)...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = w.env(s.env...), s.dir, []*os.File{told}
	if cmd.Dir == "" {
		cmd.Dir = w.home
	}
	if s.user != nil {
		cmd.SysProcAttr = s.user.credential()
		cmd.Env, cmd.Dir = append(cmd.Env, "HOME="+s.user.home), s.user.home
	}
	said := &buffer{}
	cmd.Stderr = said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = told.Close()
	line, err := bufio.NewReader(tell).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the relay did not start: %w: %s", err, said)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return nil, err
	}
	a := &agent{w: w, spec: s, relay: pid, in: in, ended: make(chan struct{}), waiting: map[string]chan rpcReply{}}
	go func() { a.read(out); _ = cmd.Wait(); close(a.ended) }()
	w.t.Cleanup(func() {
		if w.t.Failed() && said.String() != "" {
			w.t.Logf("relay %v: %s", s.flags, tail(said.String(), 1000))
		}
		a.leave()
	})
	return a, nil
}

func (a *agent) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var r rpcReply
		err := json.Unmarshal(lines.Bytes(), &r)
		r.text = lines.Text()
		a.mu.Lock()
		ch := a.waiting[string(r.ID)]
		delete(a.waiting, string(r.ID))
		if err != nil || ch == nil {
			a.strays = append(a.strays, lines.Text())
		} else {
			ch <- r
		}
		a.mu.Unlock()
	}
}

// stray waits for the next line that answers nothing that was asked.
func (a *agent) stray() string {
	a.w.t.Helper()
	line := ""
	a.w.eventually("a line without an id we know", func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.strays) == 0 {
			return errors.New("none")
		}
		line, a.strays = a.strays[0], a.strays[1:]
		return nil
	})
	return line
}

// send writes one line as it is.
func (a *agent) send(line string) error {
	a.inMu.Lock()
	defer a.inMu.Unlock()
	_, err := io.WriteString(a.in, line+"\n")
	return err
}

// expect begins to wait for the answer to id.
func (a *agent) expect(id string) chan rpcReply {
	ch := make(chan rpcReply, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[id] = ch
	return ch
}

// ask sends one request under id and waits for its answer.
func (a *agent) ask(id, method string, params any) (rpcReply, error) {
	ch := a.expect(id)
	if err := a.send(rpcLine(id, method, params)); err != nil {
		return rpcReply{}, err
	}
	select {
	case r := <-ch:
		return r, nil
	case <-a.ended:
		return rpcReply{}, fmt.Errorf("the relay ended before it answered %s", method)
	case <-time.After(2 * patience):
		return rpcReply{}, fmt.Errorf("no answer to %s (id %s) in %s", method, id, 2*patience)
	}
}

func (a *agent) id() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	return strconv.Itoa(a.next)
}

func (a *agent) handshake(version string) error {
	r, err := a.ask(a.id(), "initialize", args{"protocolVersion": version, "capabilities": a.spec.capabilities(),
		"clientInfo": args{"name": a.spec.client, "version": "1"}})
	if err != nil {
		return err
	}
	if r.Error != nil {
		return r.Error
	}
	return a.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
}

func (a *agent) try(tool string, arguments any) (answer, error) {
	return a.tryAs(a.id(), tool, arguments)
}

func (a *agent) tryAs(id, tool string, arguments any) (answer, error) {
	r, err := a.ask(id, "tools/call", toolCall(tool, arguments, a.spec))
	if err != nil {
		return answer{}, err
	}
	return r.tool()
}

// toolCall is the params of a tools/call in the era of s.
func toolCall(tool string, arguments any, s spec) args {
	params := args{"name": tool, "arguments": arguments}
	if s.modern {
		params["_meta"] = modernMeta(s.client)
		params["_meta"].(args)["io.modelcontextprotocol/clientCapabilities"] = s.capabilities()
	}
	return params
}

func (s spec) capabilities() args {
	if s.asks {
		return args{"elicitation": args{"form": args{}, "url": args{}}}
	}
	return args{}
}

func modernMeta(client string) args {
	return args{"io.modelcontextprotocol/protocolVersion": modern, "io.modelcontextprotocol/clientCapabilities": args{},
		"io.modelcontextprotocol/clientInfo": args{"name": client, "version": "1"}}
}

func rpcLine(id, method string, params any) string {
	return jsonLine(args{"jsonrpc": "2.0", "id": json.RawMessage(id), "method": method, "params": params})
}

func jsonLine(v any) string {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err) // a test's own words
	}
	return string(line)
}

// leave closes the relay's stdin, as most clients do when they end.
func (a *agent) leave() {
	_ = a.in.Close()
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.w.t.Errorf("relay %d did not end with its stdin", a.relay)
	}
}

// die ends the relay as a crash of its client's machine would.
func (a *agent) die() {
	_ = syscall.Kill(a.relay, syscall.SIGKILL)
	<-a.ended
}
