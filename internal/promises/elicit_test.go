//go:build linux

package promises

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// What clients answer to a form, and what comes of it. Only one of these is a yes.
var replies = []struct {
	name, result string // the result of elicitation/create, or an input response
	status       string // of the lease that was asked for: granted, approval_required (still open) or approval_denied
}{
	{"approved", `{"action":"accept","content":{"answer":"approve"}}`, "granted"},
	{"denied", `{"action":"accept","content":{"answer":"deny"}}`, "approval_denied"},
	{"declined", `{"action":"decline"}`, "approval_denied"},
	{"cancelled", `{"action":"cancel"}`, "approval_required"},
	{"accepted empty", `{"action":"accept","content":{}}`, "approval_required"},
	{"accepted without content", `{"action":"accept"}`, "approval_required"},
	{"accepted with something else", `{"action":"accept","content":{"answer":"yes"}}`, "approval_required"},
	{"accepted with more", `{"action":"accept","content":{"answer":"approve","also":"deny"}}`, "approval_required"},
	{"accepted with a list", `{"action":"accept","content":["approve"]}`, "approval_required"},
	{"declined with a yes in it", `{"action":"decline","content":{"answer":"approve"}}`, "approval_denied"},
	{"an action that is none", `{"action":"approve","content":{"answer":"approve"}}`, "approval_required"},
}

func outcomeOf(a answer) string {
	if a.refused {
		return a.code()
	}
	return a.get("status")
}

// question is an elicitation/create as a client gets it.
type question struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Mode            string         `json:"mode"`
		Message         string         `json:"message"`
		RequestedSchema map[string]any `json:"requestedSchema"`
	} `json:"params"`
}

func (q question) check(t *testing.T) {
	t.Helper()
	schema := jsonLine(q.Params.RequestedSchema)
	if q.Method != "elicitation/create" || !strings.Contains(schema, `"enum":["approve","deny"]`) || !strings.Contains(schema, `"required":["answer"]`) ||
		strings.Contains(schema, "default") || !strings.HasSuffix(q.Params.Message, `the agent says: "to test"`) || !strings.Contains(q.Params.Message, "version 1") {
		t.Errorf("%+v", q)
	}
}

// put calls lease_credential and returns the question that its client gets, and the call's answer to come.
func (a *agent) put(credential string) (question, chan rpcReply) {
	a.w.t.Helper()
	id := a.id()
	ch := a.expect(id)
	a.w.must(a.send(rpcLine(id, "tools/call", toolCall("lease_credential", args{"credential": credential, "purpose": "to test"}, a.spec))))
	var q question
	a.w.must(json.Unmarshal([]byte(a.stray()), &q))
	return q, ch
}

func (a *agent) replies(q question, result string) {
	a.w.t.Helper()
	a.w.must(a.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, q.ID, result)))
}

func (a *agent) hears(ch chan rpcReply) answer {
	a.w.t.Helper()
	ctx, cancel := timeout()
	defer cancel()
	select {
	case r := <-ch:
		got, err := r.tool()
		a.w.must(err)
		return got
	case <-ctx.Done():
		a.w.t.Fatal("the call was not answered")
		return answer{}
	}
}

// TestTheUserIsAskedThroughTheClient: a client with a handshake gets the question while its call waits. Only a clear yes
// lends; a clear no is final; and what is no answer leaves the question to the operator.
func TestTheUserIsAskedThroughTheClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("user"))
	w.serve()
	w.seed(secretOf("db", ""))
	for i, reply := range replies {
		token, _ := w.token(fmt.Sprintf("agent-%d", i))
		c := w.agentOf(spec{client: "codex-mcp-client", asks: true, env: []string{"KEYLEASE_TOKEN=" + token}})
		q, ch := c.put("db")
		q.check(t)
		c.replies(q, reply.result)
		got := c.hears(ch)
		if outcomeOf(got) != reply.status || (got.get("value") != "") != (reply.status == "granted") {
			t.Errorf("%s: %s", reply.name, got.raw)
		}
		c.replies(q, `{"action":"accept","content":{"answer":"approve"}}`) // said again, or said after all: nobody asks
		if id := got.get("approval", "id"); id != "" {
			w.ok("approve", id) // an operator may answer for the user
			fetched(t, c, id, "db")
		}
	}
	var list struct {
		Entries []struct {
			Details map[string]string `json:"details"`
		}
	}
	w.json(&list, "audit", "--event", "approval.granted")
	by := map[string]int{}
	for _, e := range list.Entries {
		by[e.Details["by"]]++
	}
	if by["client"] != 1 || by["operator"] != 7 || len(by) != 2 {
		t.Errorf("approvals are recorded as %v", by)
	}
}

// TestAnAnswerToAnotherQuestionIsNone: an id that nobody asked under, another connection's, or another question's.
func TestAnAnswerToAnotherQuestionIsNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("user"))
	w.seed(secretOf("db", ""), secretOf("prod", ""))
	const yes = `{"action":"accept","content":{"answer":"approve"}}`
	flags := []string{"--as", "agent"}
	a, b := w.agentOf(spec{client: "x", asks: true, flags: flags}), w.agentOf(spec{client: "x", asks: true, flags: flags})
	q, ch := a.put("prod")
	other, otherCh := b.put("db")
	b.replies(q, yes) // b has a's name and uid, and was not asked
	for _, id := range []string{`1`, `"1"`, `"elicit_"`, `0`} {
		a.replies(question{ID: json.RawMessage(id)}, yes)
	}
	b.replies(other, yes)
	if got := b.hears(otherCh); got.get("credential") != "db" || outcomeOf(got) != "granted" {
		t.Errorf("%s", got.raw)
	}
	b.replies(other, yes)
	a.replies(q, `{"action":"decline"}`)
	if got := a.hears(ch); outcomeOf(got) != "approval_denied" {
		t.Errorf("%s", got.raw)
	}
}

// TestAClientThatCannotAskLeavesItToTheOperator: it did not declare that it can, or it says an error, or it hangs and
// the operator is quicker; then it is told to stop asking.
func TestAClientThatCannotAskLeavesItToTheOperator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("user"))
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("web-agent")
	for _, c := range []caller{w.agent("mute"), w.web(s.addr, token, true), w.sse(s.addr, token)} {
		id := asks(t, c, args{"credential": "db", "purpose": fmt.Sprintf("%T", c)})
		w.ok("approve", id)
		fetched(t, c, id, "db")
	}
	c := w.agentOf(spec{client: "x", asks: true, flags: []string{"--as", "asker"}})
	q, ch := c.put("db")
	w.must(c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, q.ID)))
	got := c.hears(ch)
	if outcomeOf(got) != "approval_required" {
		t.Fatalf("%s", got.raw)
	}
	again, ch := c.put("db") // so it may be asked again
	w.ok("approve", got.get("approval", "id"))
	if got := c.hears(ch); outcomeOf(got) != "granted" {
		t.Errorf("%s", got.raw)
	}
	if line := c.stray(); !strings.Contains(line, "notifications/cancelled") || !strings.Contains(line, strings.Trim(string(again.ID), `"`)) {
		t.Errorf("the client goes on asking: %s", line)
	}
}

// input calls lease_credential in the era without server requests, with the input responses to the question before.
func input(t *testing.T, post func(method string, params any) (rpcReply, error), s spec, arguments args, responses string) (id string, q question, got answer) {
	t.Helper()
	params := toolCall("lease_credential", arguments, s)
	if responses != "" {
		params["inputResponses"] = json.RawMessage(responses)
	}
	reply, err := post("tools/call", params)
	if err != nil || reply.Error != nil {
		t.Fatalf("%v %+v", err, reply)
	}
	var asked struct {
		ResultType    string              `json:"resultType"`
		InputRequests map[string]question `json:"inputRequests"`
	}
	if json.Unmarshal(reply.Result, &asked) == nil && asked.ResultType == "input_required" {
		for id, q = range asked.InputRequests {
			return id, q, answer{}
		}
	}
	if got, err = reply.tool(); err != nil {
		t.Fatal(err)
	}
	return "", q, got
}

// TestTheUserIsAskedThroughAModernClient: the same, in the era where a call returns what is to be asked and is made
// again with the answers. What the client echoes decides nothing about which question it answers.
func TestTheUserIsAskedThroughAModernClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("user"))
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("prod", ""))
	db := args{"credential": "db", "purpose": "to test"}
	for i, reply := range replies {
		token, _ := w.token(fmt.Sprintf("agent-%d", i))
		sp := spec{client: "codex", modern: true, asks: true, env: []string{"KEYLEASE_TOKEN=" + token}}
		local, web := w.agentOf(sp), w.web(s.addr, token, true)
		over := map[string]func(string, any) (rpcReply, error){
			"stdio": func(method string, params any) (rpcReply, error) { return local.ask(local.id(), method, params) },
			"http": func(method string, params any) (rpcReply, error) {
				headers, _ := web.headers("lease_credential")
				_, reply, err := web.rpc(web.id(), method, params, headers...)
				return reply, err
			},
		}[[]string{"stdio", "http"}[i%2]]
		id, q, _ := input(t, over, sp, db, "")
		q.check(t)
		// the answer to this question does not lend another credential, nor the same for another purpose
		for _, wrong := range []args{{"credential": "prod", "purpose": "to test"}, {"credential": "db", "purpose": "else"}} {
			if _, _, got := input(t, over, sp, wrong, fmt.Sprintf(`{"%s":{"action":"accept","content":{"answer":"approve"}}}`, id)); outcomeOf(got) != "approval_required" {
				t.Fatalf("%v: %s", wrong, got.raw)
			}
		}
		_, _, got := input(t, over, sp, db, fmt.Sprintf(`{"%s":%s}`, id, reply.result))
		if outcomeOf(got) != reply.status || (got.get("value") != "") != (reply.status == "granted") {
			t.Errorf("%s: %s", reply.name, got.raw)
		}
		_, _, got = input(t, over, sp, args{"approval_id": id}, fmt.Sprintf(`{"%s":{"action":"accept","content":{"answer":"approve"}}}`, id))
		if want := map[string]string{"granted": "approval_denied", "approval_denied": "approval_denied", "approval_required": "granted"}[reply.status]; outcomeOf(got) != want {
			t.Errorf("%s, and then a yes: want %s, got %s", reply.name, want, got.raw)
		}
	}
}

// TestTheUserIsAskedOverStreamableHTTP: a session of the older era gets the question on the stream of its call.
func TestTheUserIsAskedOverStreamableHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(approvalPolicy("user"))
	s := w.serve()
	w.seed(secretOf("db", ""))
	token, _ := w.token("web-agent")
	c := w.web(s.addr, token, false)
	c.spec.asks = true
	headers, err := c.headers("")
	w.must(err)
	headers = append(headers, "Authorization", "Bearer "+token)
	ctx, cancel := timeout()
	defer cancel()
	r, err := request(ctx, "POST", c.base+"/mcp", rpcLine("7", "tools/call", toolCall("lease_credential", args{"credential": "db", "purpose": "to test"}, c.spec)), headers...)
	w.must(err)
	got, err := http.DefaultClient.Do(r)
	w.must(err)
	defer got.Body.Close()
	for lines := bufio.NewScanner(got.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var q question
		w.must(json.Unmarshal([]byte(data), &q))
		if q.Method == "" {
			var reply rpcReply
			w.must(json.Unmarshal([]byte(data), &reply))
			if a, err := reply.tool(); err != nil || outcomeOf(a) != "granted" || a.get("value") != valueOf("db") {
				t.Errorf("%s, %v", data, err)
			}
			return
		}
		q.check(t)
		answered, err := do("POST", c.base+"/mcp", fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, q.ID, replies[0].result), headers...)
		if err != nil || answered.status/100 != 2 {
			t.Fatalf("%d %s %v", answered.status, answered.body, err)
		}
	}
	t.Error("the stream ended without an answer")
}
