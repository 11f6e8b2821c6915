package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keylease/internal/identity"
)

// noneLeft fails the test if a goroutine outlives what was started in it after this call.
func noneLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		goleak.VerifyNone(t, before)
	})
}

func TestAClientThatReadsNothingIsCutAndBlocksNobody(t *testing.T) {
	noneLeft(t)
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p, hurry: 8 * time.Second})
	defer stop()
	deaf, other := dialWire(t, p, hello{As: "deaf"}), dialWire(t, p, hello{As: "other"})
	for id := range 5 {
		deaf.send(call1(fmt.Sprint(id), "big", ""))
	}
	for id := range 20 {
		if a := other.ask(call1(fmt.Sprint(id), "whoami", "")); !strings.HasPrefix(a.text(), "agent other") {
			t.Fatal(a.raw)
		}
	}
	if h.gone() != 0 {
		t.Error("others waited until the deaf client was cut")
	}
	for deadline := time.Now().Add(30 * time.Second); h.gone() != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the deaf client's session never ended")
		}
	}
}

func TestALineThatNeverEndsIsGivenUp(t *testing.T) {
	noneLeft(t)
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p, hurry: 100 * time.Millisecond})
	defer stop()
	for _, part := range []string{"{", strings.Repeat("x", 60<<10)} {
		w := dialWire(t, p, hello{As: "slow"})
		w.send(`{"jsonrpc":"2.0","id":1,"method":"ping"}`)
		w.next()
		time.Sleep(150 * time.Millisecond) // a line that has not begun has all the time in the world
		_, _ = w.conn.Write([]byte(part))
		_ = w.conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		if _, err := w.r.ReadByte(); err != io.EOF {
			t.Errorf("%d bytes and no end: %v", len(part), err)
		}
	}
}

// One process has no more calls in flight over many connections and names than over one.
func TestCallsInFlightCountOverAllConnectionsOfAProcess(t *testing.T) {
	h, p := openHouse(t)
	for i := range 4 {
		w := dialWire(t, p, hello{As: fmt.Sprintf("name-%d", i)})
		for id := range maxInFlight / 2 {
			w.send(call1(fmt.Sprint(id), "hold", `"mark":"m"`))
		}
	}
	for range maxInFlight {
		<-h.entered
	}
	select {
	case <-h.entered:
		t.Error("more calls run than may")
	case <-time.After(50 * time.Millisecond):
	}
	go func() {
		for range maxInFlight {
			<-h.entered
		}
	}()
	close(h.release)
	comesTrue(t, "those that waited ran too", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.ran["m"] == 2*maxInFlight
	})
}

func TestAnswersAndStreamsThatNobodyReadsAreCut(t *testing.T) {
	noneLeft(t)
	w := newWeb(t)
	w.writeTime = 200 * time.Millisecond
	deaf := func(request string) net.Conn {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		_, _ = io.WriteString(conn, request)
		return conn
	}
	body, headers := callModern(1, "big")
	post := fmt.Sprintf("POST /mcp HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nAuthorization: Bearer tok-deaf\r\n%s\r\nContent-Length: %d\r\n\r\n%s",
		w.addr, strings.Join(headers, "\r\n"), len(body), body)
	for range 3 {
		defer deaf(post).Close()
	}
	calls := w.sessions.callsOf(identity.Principal{Type: identity.Agent, Name: "deaf", Proof: identity.Token, By: "token:tk_deaf"})
	eventually(t, "the calls began", func() bool { return len(calls) == 3 })
	eventually(t, "the calls ended", func() bool { return len(calls) == 0 })

	events := deaf(fmt.Sprintf("GET /sse HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer tok-deaf\r\n\r\n", w.addr))
	defer events.Close()
	lines := bufio.NewScanner(events)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "data: ") {
	}
	to := strings.TrimPrefix(lines.Text(), "data: ")
	wantStatus(t, "a call over SSE", w.do("POST", to, callTool(1, "big"), as("deaf")...), 202)
	eventually(t, "the stream ended", func() bool {
		return slices.ContainsFunc(w.happened(), func(e string) bool { return strings.HasPrefix(e, "detach") })
	})
}

// However many connections others open, a caller's own stays; and who opens them makes room with theirs.
func TestIdleHTTPConnectionsMakeRoomForOthers(t *testing.T) {
	noneLeft(t)
	w := newWeb(t, func(o *httpOptions) { o.Limits = Limits{HTTPConnections: 8} })
	open := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		return conn, bufio.NewReader(conn)
	}
	get := func(conn net.Conn, r *bufio.Reader, path, token string) error {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", path, w.addr, token)
		res, err := http.ReadResponse(r, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
		}
		return err
	}
	alice, answers := open()
	if err := get(alice, answers, "/mcp", "tok-alice"); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		conn, r := open()
		if i%3 == 0 {
			continue // says nothing at all
		}
		if err := get(conn, r, "/mcp", []string{"", "tok-mallory"}[i%2]); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := get(alice, answers, "/mcp", "tok-alice"); err != nil {
		t.Errorf("alice's connection was closed for others: %v", err)
	}
	w.bounds.crowd.mu.Lock()
	defer w.bounds.crowd.mu.Unlock()
	if n := w.bounds.crowd.here; n > 8 {
		t.Errorf("%d connections are open", n)
	}
}

// What waits for its turn is bounded too, is told when to come again, and lets nobody else wait.
func TestCallsOverTheRateWaitAndAreThenRefused(t *testing.T) {
	noneLeft(t)
	w := newWeb(t, func(o *httpOptions) { o.Limits = Limits{CallRate: 2, CallBurst: 4} })
	w.bounds.wait = 100 * time.Millisecond
	body, headers := callModern(1, "whoami")
	seen := map[int]int{}
	for range 8 {
		a := w.do("POST", "/mcp", body, append(as("mallory"), headers...)...)
		seen[a.StatusCode]++
		if a.StatusCode == 429 && (a.Header.Get("Retry-After") == "" || !a.Close) {
			t.Errorf("refused with %v, closed: %t", a.Header, a.Close)
		}
	}
	if seen[200] < 2 || seen[200] > 7 || seen[429] == 0 || seen[200]+seen[429] != 8 {
		t.Errorf("answers: %v", seen)
	}
	wantStatus(t, "somebody else", w.do("POST", "/mcp", body, append(as("alice"), headers...)...), 200)
}

// What nobody proved is counted by where it came from, and over the rate slowly answered, whatever the answer is: a
// failure of ours too, as when an issuer can't be reached.
func TestWhateverNobodyIsToldCostsAFailure(t *testing.T) {
	w := newWeb(t, func(o *httpOptions) { o.Limits = Limits{FailureRate: 0.001, FailureBurst: 2} })
	w.bounds.wait = 50 * time.Millisecond
	for i := range 2 {
		wantStatus(t, fmt.Sprint(i), w.do("GET", "/mcp", "", "Authorization: Bearer broken"), 503)
	}
	begin := time.Now()
	wantStatus(t, "unavailable", w.do("GET", "/mcp", "", "Authorization: Bearer broken"), 503)
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
	wantStatus(t, "no such path", w.do("GET", "/nothing", ""), 429)
	wantStatus(t, "no such method", w.do("PUT", "/mcp", ""), 429)
	wantStatus(t, "no such method of what anybody may ask", w.do("PUT", "/healthz", ""), 429)
	wantStatus(t, "what anybody may ask", w.do("GET", "/healthz", ""), 200)
	wantStatus(t, "somebody", w.do("GET", "/mcp", "", as("alice")...), 400)
}

func TestAnAddressIsItsNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:80": "loopback", "127.9.8.7:1": "loopback", "[::1]:80": "loopback", "[::ffff:127.0.0.9]:1": "loopback",
		"192.0.2.7:80": "192.0.2.7", "[::ffff:192.0.2.7]:80": "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64", "[2001:db8:1:2::1%eth0]:80": "2001:db8:1:2::/64", "pipe": "pipe",
	} {
		if got := network(addr); got != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
}

// What anybody may ask, all connections of one address may ask at one caller's rate.
func TestManyConnectionsAskForHealthAtOneRate(t *testing.T) {
	w := newWeb(t, func(o *httpOptions) { o.Limits = Limits{CallRate: 0.001, CallBurst: 4} })
	w.bounds.wait = 50 * time.Millisecond
	codes := map[int]int{}
	for range 8 {
		r := w.request("GET", "/healthz", "")
		r.Close = true
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		codes[res.StatusCode]++
	}
	if codes[200] != 4 || codes[429] != 4 {
		t.Errorf("%v", codes)
	}
}

// Who puts thousands aside has its own forgotten for them, and what came back leaves nothing behind.
func TestSessionsPutAsideAreForgottenOfWhoHasTheMost(t *testing.T) {
	who := func(uid int) identity.Principal { return declared("x", &localPeer{UID: uid}) }
	a := &absentees{}
	a.note("first", who(1))
	for i := range 2 * maxAbsent {
		a.note(fmt.Sprint(i), who(2))
	}
	if len(a.all) != maxAbsent || a.back("first", who(2)) || !a.back("first", who(1)) || a.back("first", who(1)) {
		t.Errorf("%d remembered; the one session of another user was to be among them, once", len(a.all))
	}
	for i := range 2 * maxAbsent {
		a.back(fmt.Sprint(i), who(2))
	}
	if len(a.all) != 0 || len(a.count) != 0 {
		t.Errorf("left: %d sessions, %v", len(a.all), a.count)
	}
}

// A session's id is what mcp-go knows it by: it goes on only where the hello says whose it is, before mcp-go hears of it.
func TestASessionGoesOnOnlyForWhoSaysSoInTheHello(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p, Limits: Limits{LocalConnections: 1}})
	defer stop()
	session := func(w *wire, line string) string {
		w.ask(line)
		time.Sleep(100 * time.Millisecond) // until it is quiet: one that is at work does not make room for its equal
		all := h.callers()
		return all[len(all)-1].Session
	}
	id := session(dialWire(t, p, hello{As: "x"}), call1("1", "whoami", ""))
	dialWire(t, p, hello{As: "y"})
	comesTrue(t, "x was put aside", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return slices.Contains(h.lapsed, id)
	})
	later := dialWire(t, p, hello{Session: id})
	if got := session(later, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`); got == id {
		t.Error("a connection that said later who it is changed its session's id under way")
	}
	if got := session(dialWire(t, p, hello{As: "x", Session: id}), call1("1", "whoami", "")); got != id {
		t.Errorf("whose it is came back as %s instead of %s", got, id)
	}
}
