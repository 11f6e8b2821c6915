//go:build linux

package promises

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestC3ChurningBuysNoFreshRate: new connections, new sessions, other names and messages that are no JSON at all are
// paid for out of the one rate of who sends them; somebody else's is not touched.
func TestC3ChurningBuysNoFreshRate(t *testing.T) {
	t.Parallel()
	const rate, burst = 20, 20
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure(fmt.Sprintf("limits: {callRate: %d, callBurst: %d}\n", rate, burst))
	s := w.serve()
	w.seed(secretOf("db", ""))
	mallory, _ := w.token("mallory")
	alice, _ := w.token("alice")
	time.Sleep(time.Second) // what the seeding took of the uid's rate is back
	begin := time.Now()
	end := begin.Add(1500 * time.Millisecond)
	var web, local atomic.Int64
	together(t, 17, func(i int) error {
		switch {
		case i == 16:
			for v := webVictim(s.addr, alice); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				asked := time.Now()
				if err := v.ask(); err != nil {
					return err
				}
				if took := time.Since(asked); took > time.Second {
					return fmt.Errorf("somebody else waited for %v", took)
				}
			}
		case i%2 == 0: // over HTTP: a connection and a session for each message, every second one no JSON
			for n := 0; time.Now().Before(end); n++ {
				body := rpcLine("1", "initialize", args{"protocolVersion": legacy, "capabilities": args{}, "clientInfo": args{"name": "x", "version": "1"}})
				if n%2 == 1 {
					body = "{{{"
				}
				c, err := rawHTTP(s.addr)
				if err != nil {
					return err
				}
				fmt.Fprintf(c, "POST /mcp HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s",
					s.addr, mallory, len(body), body)
				_ = c.SetReadDeadline(end.Add(50 * time.Millisecond))
				got, err := http.ReadResponse(c.r, nil)
				_ = c.Close()
				if err == nil && (got.StatusCode == 200 || got.StatusCode == 400) {
					web.Add(1)
				}
			}
		default: // on the local socket: a connection and a name for each message
			for n := 0; time.Now().Before(end); n++ {
				c, err := w.rawLocal(localHello(fmt.Sprintf("mallory-%d-%d", i, n)))
				if err != nil {
					return err
				}
				_ = c.SetReadDeadline(end.Add(50 * time.Millisecond))
				if _, err := c.r.ReadString('\n'); err == nil {
					line := rpcLine("1", "tools/list", args{})
					if n%2 == 1 {
						line = "{{{"
					}
					if _, err := c.ask(line); err == nil {
						local.Add(1)
					}
				}
				_ = c.Close()
			}
		}
		return nil
	})
	most := int64(burst + rate*time.Since(begin).Seconds() + 2)
	if n := web.Load(); n > most || n < burst/4 {
		t.Errorf("over HTTP %d messages were answered, at most %d may be", n, most)
	}
	if n := local.Load(); n > most/2 || n == 0 { // a process has half, and a hello counts too
		t.Errorf("on the socket %d messages were answered, at most %d may be", n, most/2)
	}
	t.Logf("answered: %d over HTTP, %d on the socket; %d may be", web.Load(), local.Load(), most)
}

// TestC3TokensAreTriedSlowly: an address without a valid token is soon made to wait; a valid one from there is not.
func TestC3TokensAreTriedSlowly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("limits: {failureRate: 1, failureBurst: 5}\n")
	s := w.serve()
	alice, _ := w.token("alice")
	codes := make([]atomic.Int64, 600)
	begin := time.Now()
	together(t, 11, func(i int) error {
		if i == 10 {
			time.Sleep(300 * time.Millisecond)
			asked := time.Now()
			if err := webVictim(s.addr, alice).ask(); err != nil || time.Since(asked) > time.Second {
				return fmt.Errorf("a valid token from the same address: %w after %v", err, time.Since(asked))
			}
			return nil
		}
		got, err := do("POST", "http://"+s.addr+"/mcp", modernLine("1", "list_credentials", args{}), modernCall(fmt.Sprintf("kl_fake%d", i), "list_credentials")...)
		if err == nil {
			codes[got.status].Add(1)
			if got.status == 429 && (got.header.Get("Retry-After") == "" || time.Since(begin) < time.Second) {
				err = fmt.Errorf("at once, or without Retry-After: %v", got.header)
			}
		}
		return err
	})
	if codes[401].Load() > 7 || codes[401].Load() < 4 || codes[401].Load()+codes[429].Load() != 10 {
		t.Errorf("%d times 401, %d times 429", codes[401].Load(), codes[429].Load())
	}
}

// TestC3NobodyIsAnsweredSlowly: whatever is wrong with requests that come with no valid token (the token, the path, the
// method), and from however many of this machine's addresses they come, they are one sender's, and soon made to wait.
func TestC3NobodyIsAnsweredSlowly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("limits: {failureRate: 1, failureBurst: 5}\n")
	asks := []string{"POST /mcp", "GET /nothing", "PUT /mcp", "DELETE /healthz"}
	s := w.serve()
	codes := make([]atomic.Int64, 600)
	together(t, 20, func(i int) error {
		local := &net.TCPAddr{IP: net.IPv4(127, 0, 9, byte(i+1))}
		conn, err := (&net.Dialer{LocalAddr: local, Timeout: patience}).Dial("tcp", s.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer kl_fake\r\n\r\n", asks[i%len(asks)], s.addr)
		got, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			codes[got.StatusCode].Add(1)
		}
		return err
	})
	if slow := codes[429].Load(); slow < 12 || slow > 16 {
		t.Errorf("of 20 requests %d were made to wait: 401 %d, 404 %d, 405 %d", slow, codes[401].Load(), codes[404].Load(), codes[405].Load())
	}
	for _, e := range find(w.audit(), "auth.failed") {
		if e.Details["source"] != "loopback" {
			t.Errorf("recorded with the source %q", e.Details["source"])
		}
	}
}

// TestC7CapsAreEachIdentitysOwn: one identity has so many sessions, streams, calls in flight and calls waiting; over that
// it is refused, told when to come again, and nobody else is.
func TestC7CapsAreEachIdentitysOwn(t *testing.T) {
	t.Parallel()
	const sessions, streams, calls = 100, 100, 64
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure("limits: {callRate: 0}\n")
	s := w.serve()
	w.seed(secretOf("db", ""))
	mallory, _ := w.token("mallory")
	carol, _ := w.token("carol")
	alice, _ := w.token("alice")
	hers := w.web(s.addr, alice, false)
	lend(t, hers, "db")

	first := w.web(s.addr, mallory, false)
	_, err := first.open()
	w.must(err)
	for range sessions {
		_, err := w.web(s.addr, mallory, false).open()
		w.must(err)
	}
	if got, err := do("POST", first.base+"/mcp", rpcLine("1", "ping", args{}), "Authorization", bearer(mallory), "Mcp-Session-Id", first.session); err != nil || got.status != 404 {
		t.Errorf("the oldest of too many sessions: HTTP %d %v", got.status, err)
	}

	for i := range streams + 1 {
		r, err := request(t.Context(), "GET", "http://"+s.addr+"/sse", "", "Authorization", bearer(carol))
		w.must(err)
		got, err := http.DefaultClient.Do(r)
		w.must(err)
		defer got.Body.Close()
		if want := map[bool]int{true: 200, false: 429}[i < streams]; got.StatusCode != want {
			t.Fatalf("stream %d: HTTP %d", i, got.StatusCode)
		}
	}

	var slow []io.Closer // calls whose bodies do not come are in flight all the same
	post := func(token string) *raw {
		c, err := rawHTTP(s.addr)
		w.must(err)
		fmt.Fprintf(c, "POST /mcp HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{", s.addr, token)
		slow = append(slow, c)
		return c
	}
	for range calls {
		post(mallory)
	}
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	late := post(mallory)
	if err := webVictim(s.addr, alice).ask(); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	lend(t, hers, "db")
	got, err := http.ReadResponse(late.r, nil)
	w.must(err)
	if took := time.Since(begin); got.StatusCode != 429 || got.Header.Get("Retry-After") == "" || took < time.Second {
		t.Errorf("one call too many: HTTP %d after %v, %v", got.StatusCode, took, got.Header)
	}
	_, _ = io.Copy(io.Discard, got.Body)
	if _, err := late.r.ReadByte(); !errors.Is(err, io.EOF) && (err == nil || !strings.Contains(err.Error(), "reset")) {
		t.Errorf("its connection goes on: %v", err)
	}
	for _, c := range slow {
		_ = c.Close()
	}
	w.eventually("mallory's calls have ended", webVictim(s.addr, mallory).ask)
}

// TestC4AQuietRelayComesBackToItsLease: where there is no room, a quiet relay's connection is put aside. That is no
// disconnect: its lease goes on past the grace, and is its own again, for better and worse, when its client speaks.
func TestC4AQuietRelayComesBackToItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure("grace: 1s\nlimits: {localConnections: 8}\n")
	w.serve("--http", "off")
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	id := lend(t, a, "db")
	var hers []*raw
	for i := range 12 {
		c, err := w.rawLocal(localHello("mallory"))
		w.must(err)
		hers = append(hers, c)
		if _, err := c.ask(rpcLine("1", "ping", args{})); err != nil && i >= 4 {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	for _, c := range hers { // who has an MCP connection may not administer
		_ = c.Close()
	}
	if n := len(find(w.audit(), "lease.orphaned")); n != 0 {
		t.Errorf("%d leases were orphaned: mallory's own connections should have made room", n)
	}
	// Now all are equally entitled, and alice is the one that was quiet for longest.
	var others []*agent
	for i := range 10 {
		others = append(others, w.agent(fmt.Sprintf("other-%d", i)))
	}
	w.eventually("alice's relay was put aside", func() error { return connectedTo(a.relay) })
	time.Sleep(1500 * time.Millisecond)
	if n := len(find(w.audit(), "lease.orphaned")); n != 0 || len(w.leases()) != 1 {
		t.Fatalf("%d orphaned; leases: %v", n, w.leases())
	}
	if got := call(t, a, "list_credentials", args{}); !strings.Contains(got.raw, id) { // renewing would bind it anew
		t.Fatalf("it is no longer alice's: %s", got.raw)
	}
	for _, o := range others {
		call(t, o, "list_credentials", args{})
	}
	call(t, a, "list_credentials", args{})
	a.leave()
	w.eventually("the lease ended with its client", func() error {
		if live := w.leases(); len(live) > 0 {
			return fmt.Errorf("%v", live)
		}
		return nil
	})
}

// connectedTo is an error if the process has a socket open, as far as one may see.
func connectedTo(pid int) error {
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range open {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:") {
			return fmt.Errorf("it has %s", to)
		}
	}
	return nil
}
