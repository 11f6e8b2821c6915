//go:build linux

package promises

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// mouth says a message to the daemon as it is, over one transport in one era, and returns the answer: JSON-RPC, or the
// body of an HTTP refusal. Messages that want one are said under the id "raw".
type mouth struct {
	name   string
	modern bool
	say    func(method, line string) (string, error)
}

// mouths are one for each transport and era that a token's agent can speak.
func mouths(w *world, addr, token string) []mouth {
	w.t.Helper()
	var all []mouth
	for _, isModern := range []bool{false, true} {
		local := w.agentOf(spec{client: "test-client", modern: isModern, env: []string{"KEYLEASE_TOKEN=" + token}})
		all = append(all, mouth{"stdio", isModern, local.say}, mouth{"http", isModern, w.web(addr, token, isModern).say})
	}
	all = append(all, mouth{"sse", false, w.sse(addr, token).say})
	for i, m := range all {
		if m.modern {
			all[i].name = "modern " + m.name
		}
	}
	return all
}

func (a *agent) say(_, line string) (string, error) {
	ch := a.expect(`"raw"`)
	if err := a.send(line); err != nil {
		return "", err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Microsecond) {
		select {
		case r := <-ch:
			return r.text, nil
		default:
		}
		if nobodys, ok := a.nobodys(); ok {
			return nobodys, nil
		}
	}
	return "", fmt.Errorf("no answer to %.300s", line)
}

// nobodys is the answer to a message whose id could not be read. Notifications, which are nobody's either, are dropped.
func (a *agent) nobodys() (line string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, line := range a.strays {
		if strings.Contains(line, `"id":null`) {
			a.strays = nil
			return line, true
		}
	}
	a.strays = nil
	return "", false
}

func (c *web) say(method, line string) (string, error) {
	headers := []string{"Authorization", "Bearer " + c.token, "Mcp-Protocol-Version", modern, "Mcp-Method", method, "Mcp-Name", "lease_credential"}
	if !c.spec.modern {
		session, err := c.open()
		if err != nil {
			return "", err
		}
		headers = []string{"Authorization", "Bearer " + c.token, "Mcp-Protocol-Version", c.era, "Mcp-Session-Id", session}
	}
	got, err := do("POST", c.base+"/mcp", line, headers...)
	if err == nil && strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
		_, got.body, _ = strings.Cut(got.body, "data: ")
	}
	return got.body, err
}

func (c *sse) say(_, line string) (string, error) {
	ch := make(chan rpcReply, 1)
	c.mu.Lock()
	c.waiting[`"raw"`] = ch
	c.mu.Unlock()
	got, err := do("POST", c.post, line, "Authorization", "Bearer "+c.token)
	if err != nil || got.status != http.StatusAccepted {
		return got.body, err
	}
	select {
	case r := <-ch:
		return r.text, nil
	case <-time.After(patience):
		return "", fmt.Errorf("no answer on the stream to %.300s", line)
	}
}
