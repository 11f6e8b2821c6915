package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func openHouse(t *testing.T) (*house, Paths) {
	h, p := newHouse(), shortDir(t)
	h.open(t, Options{Paths: p, Version: "1.0.0"})
	return h, p
}

func TestSocketServesBothEras(t *testing.T) {
	h, p := openHouse(t)
	legacy := dialWire(t, p, hello{})
	if a := legacy.ask(handshake("0", "claude-code")); a.Result.ServerInfo.Name != "test" {
		t.Fatal(a.raw)
	}
	legacy.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	if a := legacy.ask(call1("1", "whoami", "")); a.text() != "agent claude-code declared claude-code/1.0" {
		t.Fatal(a.raw)
	}
	m := dialWire(t, p, hello{})
	if a := m.ask(modernLine(`"d"`, "server/discover", "codex-mcp-client", "")); a.Error != nil || !strings.Contains(a.raw, "2026-07-28") {
		t.Fatal(a.raw)
	}
	if a := m.ask(modernLine("2", "tools/call", "codex-mcp-client", `"name":"whoami","arguments":{},`)); a.text() != "agent codex declared codex-mcp-client/2" {
		t.Fatal(a.raw)
	}
	if n := len(h.callers()); n != 2 {
		t.Errorf("%d sessions were attached", n)
	}
	_ = legacy.conn.Close()
	comesTrue(t, "the session ended", func() bool { return h.gone() == 1 })
}

func TestADeclaredNameIsFixedForTheConnection(t *testing.T) {
	h, p := openHouse(t)
	w := dialWire(t, p, hello{})
	w.ask(handshake("0", "first"))
	w.ask(handshake("1", "second"))
	w.ask(modernLine("2", "tools/list", "third", ""))
	if a := w.ask(modernLine("3", "tools/call", "fourth", `"name":"whoami","arguments":{"identity":"root"},`)); a.text() != "agent first declared first/1.0" {
		t.Fatal(a.raw)
	}
	w = dialWire(t, p, hello{As: "deploy-bot"})
	w.ask(handshake("0", "claude-code"))
	if a := w.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent deploy-bot declared") {
		t.Fatal(a.raw)
	}
	w = dialWire(t, p, hello{})
	w.ask(`{"jsonrpc":"2.0","id":1,"method":"ping"}`) // says nothing of who it is, and need not
	w.ask(handshake("0", "Visual Studio Code"))
	if a := w.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent vscode declared") {
		t.Fatal(a.raw)
	}
	w = dialWire(t, p, hello{})
	if a := w.ask(call1("1", "whoami", "")); !strings.HasPrefix(a.text(), "agent local declared") {
		t.Fatal(a.raw)
	}
	for _, c := range h.callers() {
		if c.By == "" || c.Session == "" || c.PID != os.Getpid() || c.Transport != "local" {
			t.Errorf("incomplete caller %+v", c)
		}
	}
}

func TestABadTokenIsNeverDowngradedToAName(t *testing.T) {
	h, p := openHouse(t)
	w := dialWire(t, p, hello{Token: "kl_fake_bad", As: "claude-code"})
	w.ask(handshake("0", "claude-code"))
	if a := w.ask(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); a.Error != nil || !strings.Contains(a.raw, "whoami") {
		t.Fatal(a.raw)
	}
	if a := w.ask(call1("2", "whoami", "")); a.text() != "unauthenticated" {
		t.Fatal(a.raw)
	}
	if n := len(h.callers()); n != 0 {
		t.Errorf("%d sessions were attached", n)
	}

	w = dialWire(t, p, hello{Token: "kl_fake_good", As: "root"})
	w.ask(handshake("0", "claude-code"))
	if a := w.ask(call1("2", "whoami", "")); !strings.HasPrefix(a.text(), "agent ci token") {
		t.Fatal(a.raw)
	}
	h.mu.Lock()
	h.revoked = true
	h.mu.Unlock()
	if a := w.ask(call1("3", "whoami", "")); a.text() != "unauthenticated" {
		t.Fatalf("a token that was revoked under the connection still works: %s", a.raw)
	}
}

func TestGarbageIsAnsweredAndTheConnectionGoesOn(t *testing.T) {
	_, p := openHouse(t)
	w := dialWire(t, p, hello{})
	for line, want := range map[string]int{
		`garbage`: -32700,
		`{"jsonrpc":"2.0","id":1,"method":"ping"`: -32700,
		`[]`: -32600,
		`{"a":` + strings.Repeat("[", 30000) + strings.Repeat("]", 30000) + `}`:                                             -32600,
		`{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}`:                                                                   -32600,
		`{"jsonrpc":"2.0","id":1,"Method":"ping"}`:                                                                          -32600,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"panic","arguments":{"a":1,"A":2}}}`:                -32600,
		`{"jsonrpc":"1.0","id":1,"method":"ping"}`:                                                                          -32600,
		`{"jsonrpc":"2.0","id":null,"method":"ping"}`:                                                                       -32600,
		`{"jsonrpc":"2.0","id":1.5,"method":"ping"}`:                                                                        -32600,
		`{"jsonrpc":"2.0","id":{},"method":"ping"}`:                                                                         -32600,
		`{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`:                                                           -32600,
		`{"jsonrpc":"2.0","id":1}`:                                                                                          -32600,
		`{"jsonrpc":"2.0","id":1,"method":5}`:                                                                               -32600,
		`{"jsonrpc":"2.0","id":1,"method":"no/such"}`:                                                                       -32601,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call"}`:                                                                    -32602,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"sk-fake-canary"}}`:                                 -32602,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":{"sk-fake-canary":1}}}`:                             -32600,
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":["sk-fake-canary"],"clientInfo":"boo"}}`: -32600,
	} {
		a := w.ask(line)
		if a.Error == nil || a.Error.Code != want {
			t.Errorf("%.100s: %s, want %d", line, a.raw, want)
		}
		if strings.Contains(a.raw, "canary") {
			t.Errorf("%.100s: what was sent came back: %s", line, a.raw)
		}
	}
	w.send("\n\r\n" + `{"jsonrpc":"2.0","id":99,"result":{}}`) // blank lines, and an answer to nothing
	if a := w.ask(`{"jsonrpc":"2.0","id":"after","method":"ping"}`); a.Error != nil || string(a.ID) != `"after"` {
		t.Fatal(a.raw)
	}
}

func TestALineOf70KiBEndsTheConnection(t *testing.T) {
	_, p := openHouse(t)
	w := dialWire(t, p, hello{})
	go func() {
		_, _ = w.conn.Write([]byte(call1("1", "whoami", `"x":"`+strings.Repeat("x", 70<<10)+`"`) + "\n"))
	}()
	if a := w.next(); a.Error == nil || a.Error.Code != -32600 || string(a.ID) != "null" {
		t.Fatal(a.raw)
	}
	if _, err := w.r.ReadByte(); err == nil {
		t.Fatal("the connection goes on")
	}
}

func TestAPanicTellsTheClientOnlyAnIDThatIsInTheLog(t *testing.T) {
	var log lockedBuffer
	h, p := newHouse(), shortDir(t)
	h.open(t, Options{Paths: p, Log: zerolog.New(&log)})
	w := dialWire(t, p, hello{As: "x"})
	a := w.ask(call1("7", "panic", ""))
	if a.Error == nil || a.Error.Code != -32603 || strings.Contains(a.raw, "canary") || string(a.ID) != "7" {
		t.Fatal(a.raw)
	}
	id := strings.TrimPrefix(a.Error.Message, "internal error ")
	if len(id) < 20 || !strings.Contains(log.String(), id) {
		t.Errorf("the id %q is not in the log", id)
	}
	if strings.Contains(log.String(), "canary") {
		t.Errorf("what the panic held is in the log")
	}
	if a := w.ask(call1("8", "whoami", "")); a.Error != nil {
		t.Fatalf("one panic stopped the connection: %s", a.raw)
	}
}

func TestAnIDInFlightCannotBeUsedAgain(t *testing.T) {
	h, p := openHouse(t)
	w := dialWire(t, p, hello{As: "x"})
	w.send(call1("1", "hold", `"mark":"a"`))
	<-h.entered
	for _, id := range []string{"1", `"1"`} {
		if a := w.ask(call1(id, "whoami", "")); a.Error == nil || a.Error.Code != -32600 {
			t.Fatal(a.raw)
		}
	}
	close(h.release)
	if a := w.next(); a.text() != "held a" || string(a.ID) != "1" {
		t.Fatal(a.raw)
	}
	if a := w.ask(call1("1", "whoami", "")); a.Error != nil {
		t.Fatalf("the id is free again: %s", a.raw)
	}
}

// B3: equal JSON-RPC ids on two connections never cross, neither their answers nor their cancellations.
func TestEqualIDsOfTwoConnectionsNeverCross(t *testing.T) {
	h, p := openHouse(t)
	a, b := dialWire(t, p, hello{As: "a"}), dialWire(t, p, hello{As: "b"})
	a.send(call1("1", "hold", `"mark":"a"`))
	b.send(call1("1", "hold", `"mark":"b"`))
	<-h.entered
	<-h.entered
	a.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	if got := a.next(); got.text() != "cancelled a" {
		t.Fatal(got.raw)
	}
	a.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	a.ask(`{"jsonrpc":"2.0","id":2,"method":"ping"}`)
	close(h.release)
	if got := b.next(); got.text() != "held b" {
		t.Fatalf("another connection's cancellation reached b: %s", got.raw)
	}
	var all sync.WaitGroup
	for _, name := range []string{"x", "y", "z"} {
		all.Go(func() {
			w := dialWire(t, p, hello{As: name})
			for range 200 {
				if got := w.ask(call1("1", "whoami", "")); !strings.HasPrefix(got.text(), "agent "+name+" ") {
					t.Errorf("%s got the answer of %s", name, got.text())
				}
			}
		})
	}
	all.Wait()
}

func TestAClientThatDiesMidCallLeavesNothingBehind(t *testing.T) {
	h, p := openHouse(t)
	w := dialWire(t, p, hello{As: "x"})
	w.send(call1("1", "hold", `"mark":"a"`))
	<-h.entered
	w.send(`{"jsonrpc":"2.0","id":2,"meth`) // half a line
	_ = w.conn.Close()
	time.Sleep(20 * time.Millisecond)
	if h.gone() != 0 {
		t.Error("the session ended before its call")
	}
	close(h.release)
	comesTrue(t, "the session ended", func() bool { return h.gone() == 1 })
}

func TestMoreCallsThanSlotsAllGetAnswers(t *testing.T) {
	h, p := openHouse(t)
	w := dialWire(t, p, hello{As: "x"})
	const n = 3 * maxInFlight
	go func() {
		for i := range n {
			w.send(call1(`"c`+strings.Repeat("i", i)+`"`, "hold", `"mark":"m"`))
		}
	}()
	for range maxInFlight {
		<-h.entered
	}
	select {
	case <-h.entered:
		t.Fatal("more calls run than may")
	case <-time.After(20 * time.Millisecond):
	}
	go func() {
		for range n - maxInFlight {
			<-h.entered
		}
	}()
	close(h.release)
	for range n {
		if a := w.next(); a.text() != "held m" {
			t.Fatal(a.raw)
		}
	}
}

func TestHelloOnlyAdmitsWhatItKnows(t *testing.T) {
	_, p := openHouse(t)
	for line, why := range map[string]string{
		"GET / HTTP/1.1":               "not a keylease hello",
		"":                             "not a keylease hello",
		`{"keylease":2,"kind":"mcp"}`:  "version 1",
		`{"keylease":1,"kind":"root"}`: "does not know",
		`{"keylease":1,"kind":"mcp","kind":"admin"}`:                                  "not a keylease hello",
		`{"keylease":1,"kind":"mcp","as":"../x*"}`:                                    "must begin",
		`{"keylease":1,"kind":"mcp","as":"Root"}`:                                     "must begin",
		`{"keylease":1,"kind":"mcp","as":"x` + "`" + `"}`:                             "not allowed",
		`{"keylease":1,"kind":"mcp","token":"` + strings.Repeat("x", maxHello) + `"}`: "longer than",
	} {
		conn, err := connect(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(line + "\n"))
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		got, _ := io.ReadAll(conn)
		_ = conn.Close()
		if !strings.Contains(string(got), why) || !strings.Contains(string(got), `"ok":false`) {
			t.Errorf("%.60q: %q, want %q", line, got, why)
		}
	}
}

func TestWhoSaysNoHelloIsNotWaitedForLong(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	start := time.Now()
	go func() { _, _ = a.Write([]byte(`{"keylease":1`)) }()
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	if _, err := readHello(b, bufio.NewReader(b)); err == nil || time.Since(start) > helloTime+time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestAdminConnectionSpeaksHTTPAndIsKnownByTheKernelsWord(t *testing.T) {
	_, p := openHouse(t)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialAdmin(ctx, DialOptions{Paths: p})
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://keylease/v1/anything")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if want := fmt.Sprintf("uid %d pid %d", os.Geteuid(), os.Getpid()); string(body) != want {
		t.Errorf("got %q, want %q", body, want)
	}
}

func TestTheSocketIsClosedToOthers(t *testing.T) {
	_, p := openHouse(t)
	for path, want := range map[string]os.FileMode{p.SocketPath(): 0o600, p.Data: 0o700, p.lock(): 0o600} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", filepath.Base(path), info.Mode(), err, want)
		}
	}
}
