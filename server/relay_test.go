package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// agent is a client with a relay of its own.
type stdio struct {
	t    testing.TB
	in   *io.PipeWriter
	r    *bufio.Reader
	done chan error
}

func startRelay(t testing.TB, ctx context.Context, o RelayOptions) *stdio {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	o.In, o.Out = inR, outW
	s := &stdio{t, inW, bufio.NewReaderSize(outR, 1<<20), make(chan error, 1)}
	go func() {
		err := Relay(ctx, o)
		_, _ = outW.Close(), inR.Close()
		s.done <- err
	}()
	t.Cleanup(func() {
		_, _ = inW.Close(), outR.Close()
	})
	return s
}

func (s *stdio) send(line string) {
	s.t.Helper()
	if _, err := s.in.Write([]byte(line + "\n")); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stdio) next() lineAnswer {
	s.t.Helper()
	got := make(chan []byte, 1)
	go func() {
		line, _ := s.r.ReadBytes('\n')
		got <- line
	}()
	select {
	case line := <-got:
		return parseAnswer(s.t, line)
	case <-time.After(15 * time.Second):
		s.t.Fatal("no answer from the relay")
		return lineAnswer{}
	}
}

func (s *stdio) ask(line string) lineAnswer {
	s.t.Helper()
	s.send(line)
	return s.next()
}

// open shakes hands as a legacy client does.
func (s *stdio) open(client string) {
	s.t.Helper()
	if a := s.ask(handshake("0", client)); a.Error != nil {
		s.t.Fatal(a.raw)
	}
	s.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
}

// far is a relay's daemon whose connections a test can cut.
type far struct {
	dials atomic.Int64
	cut   chan net.Conn
	down  atomic.Bool
	reads chan string // lines from the relay, hello excluded
}

func newFar() *far { return &far{cut: make(chan net.Conn, 10), reads: make(chan string, 100)} }

// dial gives the relay a connection whose far end is read line by line and written to by the test.
func (f *far) dial(context.Context) (*link, error) {
	if f.down.Load() {
		return nil, &StartError{1, "sk-less last line"}
	}
	f.dials.Add(1)
	a, b := net.Pipe()
	go func() {
		r := bufio.NewReader(b)
		for {
			line, err := readLine(r, maxRead)
			if err != nil {
				return
			}
			f.reads <- string(line)
		}
	}()
	f.cut <- b
	return &link{conn: a, r: bufio.NewReader(a)}, nil
}

func (f *far) expect(t testing.TB, part string) {
	t.Helper()
	select {
	case line := <-f.reads:
		if !strings.Contains(line, part) {
			t.Fatalf("the daemon read %s, want %s", line, part)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("the daemon never read %s", part)
	}
}

func say(t testing.TB, conn net.Conn, line string) {
	t.Helper()
	if _, err := conn.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
}

const greeted = `{"jsonrpc":"2.0","id":0,"result":{"serverInfo":{"name":"test"}}}`

func TestRelaySurvivesADaemonThatIsKilledInTheMiddleOfACall(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	f := newFar()
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	s.send(handshake("0", "claude-code"))
	first := <-f.cut
	f.expect(t, `"initialize"`)
	say(t, first, greeted)
	s.next()
	s.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	f.expect(t, "initialized")
	s.send(call1("7", "lease_credential", ""))
	f.expect(t, `"id":7`)
	s.send(`{"jsonrpc":"2.0","id":8,"method":"tools/list"}`)
	f.expect(t, `"id":8`)
	_ = first.Close()

	a := s.next()
	if string(a.ID) != "7" || !a.Result.IsError || !strings.Contains(a.text(), "unknown whether it took effect") ||
		string(a.Result.Structured) != a.text() || !strings.Contains(a.text(), `"code":"unavailable"`) ||
		!strings.Contains(a.text(), "your_leases") {
		t.Fatal(a.raw)
	}
	second := <-f.cut // without the client having said a word
	f.expect(t, `"initialize"`)
	say(t, second, greeted) // swallowed
	f.expect(t, "initialized")
	f.expect(t, `"id":8`) // asked again: it changes nothing
	say(t, second, `{"jsonrpc":"2.0","id":8,"result":{"tools":[]}}`)
	if a := s.next(); string(a.ID) != "8" {
		t.Fatal(a.raw)
	}
	s.send(call1("9", "lease_credential", ""))
	f.expect(t, `"id":9`)
	say(t, second, `{"jsonrpc":"2.0","id":9,"result":{}}`)
	if a := s.next(); string(a.ID) != "9" {
		t.Fatal(a.raw)
	}
	_ = s.in.Close()
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
}

func TestRelayReconnectsAfterIdleOnlyWhenItsClientSpeaks(t *testing.T) {
	f := newFar()
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	s.send(handshake("0", "x"))
	first := <-f.cut
	f.expect(t, "initialize")
	say(t, first, greeted)
	s.next()
	say(t, first, `{"keylease":"idle","read":1}`)
	_ = first.Close()
	time.Sleep(100 * time.Millisecond)
	if n := f.dials.Load(); n != 1 {
		t.Fatalf("an idle daemon was started again: %d connections", n)
	}
	s.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}`)
	time.Sleep(20 * time.Millisecond)
	if n := f.dials.Load(); n != 1 {
		t.Fatal("a notification started a daemon")
	}
	s.send(call1("1", "list_credentials", ""))
	second := <-f.cut
	f.expect(t, "initialize")
	say(t, second, greeted)
	f.expect(t, `"id":1`)
	say(t, second, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	if a := s.next(); string(a.ID) != "1" {
		t.Fatal(a.raw)
	}
}

func TestRelaySendsAgainWhatADaemonThatStopsNeverRead(t *testing.T) {
	f := newFar()
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	s.send(call1("1", "lease_credential", ""))
	first := <-f.cut
	f.expect(t, `"id":1`)
	s.send(call1("2", "lease_credential", ""))
	f.expect(t, `"id":2`)
	say(t, first, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	s.next()
	say(t, first, `{"keylease":"stop","read":1}`) // 2 had no effect
	_ = first.Close()
	second := <-f.cut
	f.expect(t, `"id":2`)
	say(t, second, `{"jsonrpc":"2.0","id":2,"result":{}}`)
	if a := s.next(); string(a.ID) != "2" || a.Result.IsError {
		t.Fatal(a.raw)
	}
}

func TestRelayWithoutADaemonSaysWhyAndTriesAgain(t *testing.T) {
	f := newFar()
	f.down.Store(true)
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	for range 2 {
		a := s.ask(handshake("0", "x"))
		if a.Error == nil || !strings.Contains(a.Error.Message, "sk-less last line") {
			t.Fatal(a.raw)
		}
	}
	f.down.Store(false)
	s.send(handshake("0", "x"))
	conn := <-f.cut
	f.expect(t, "initialize")
	say(t, conn, greeted)
	if a := s.next(); a.Error != nil {
		t.Fatal(a.raw)
	}
	f.down.Store(true)
	s.send(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	f.expect(t, "tools/list")
	_ = conn.Close()
	if a := s.next(); a.Error == nil || string(a.ID) != "1" {
		t.Fatal(a.raw)
	}
	_ = s.in.Close()
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
}

func TestRelayAnswersBadLinesItself(t *testing.T) {
	f := newFar()
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	for line, id := range map[string]string{
		"garbage":                         "null",
		`{"jsonrpc":"2.0","id":1,"ID":2}`: "null",
		call1(`"long"`, "x", `"a":"`+strings.Repeat("x", 70<<10)+`"`): `"long"`,
		call1(`2`, "x", `"a":"`+strings.Repeat("x", 2<<20)+`"`):       "null",
	} {
		if a := s.ask(line); a.Error == nil || string(a.ID) != id {
			t.Errorf("%.40s: %s", line, a.raw)
		}
	}
	if f.dials.Load() != 0 {
		t.Error("garbage started a daemon")
	}
	s.send(call1("1", "x", ""))
	conn := <-f.cut
	f.expect(t, `"id":1`)
	if a := s.ask(call1("1", "x", "")); a.Error == nil || a.Error.Code != -32600 {
		t.Fatal(a.raw)
	}
	say(t, conn, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	if a := s.next(); a.Error != nil {
		t.Fatal(a.raw)
	}
}

func TestRelayWaitsForAnswersAfterEOFAndEndsOnASignal(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	f := newFar()
	s := startRelay(t, context.Background(), RelayOptions{dial: f.dial, AutoStart: true})
	s.send(call1("1", "x", ""))
	conn := <-f.cut
	f.expect(t, `"id":1`)
	_ = s.in.Close()
	time.Sleep(20 * time.Millisecond)
	say(t, conn, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	if a := s.next(); string(a.ID) != "1" {
		t.Fatal(a.raw)
	}
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	s = startRelay(t, ctx, RelayOptions{dial: f.dial, AutoStart: true})
	s.send(call1("1", "x", ""))
	<-f.cut
	f.expect(t, `"id":1`)
	cancel()
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
}

func TestRelayEndsWhenItsClientReadsNoMore(t *testing.T) {
	f := newFar()
	inR, inW := io.Pipe()
	defer inW.Close()
	done := make(chan error, 1)
	go func() {
		done <- Relay(context.Background(), RelayOptions{In: inR, Out: brokenPipe{}, dial: f.dial, AutoStart: true})
	}()
	_, _ = inW.Write([]byte("garbage\n"))
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the relay goes on")
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestRelayThroughTheRealDaemon(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p, Version: "1.0.0"})
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, Version: "1.0.0", AutoStart: false})
	s.open("claude-code")
	if a := s.ask(call1("1", "whoami", "")); a.text() != "agent claude-code declared claude-code/1.0" {
		t.Fatal(a.raw)
	}
	s.send(call1("2", "hold", `"mark":"a"`))
	<-h.entered
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	time.Sleep(50 * time.Millisecond)
	close(h.release) // a call in flight is answered by a daemon that stops
	if a := s.next(); a.text() != "held a" {
		t.Fatal(a.raw)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	h.open(t, Options{Paths: p, Version: "1.0.1"})
	comesTrue(t, "the relay is back", func() bool {
		a := s.ask(call1("3", "whoami", ""))
		return a.text() == "agent claude-code declared claude-code/1.0"
	})
}

func TestNewerAsksOnlyUpwards(t *testing.T) {
	for _, c := range []struct {
		mine, theirs string
		want         bool
	}{{"1.2.3", "1.2.3", false}, {"1.2.4", "1.2.3", true}, {"1.2.3", "1.10.0", false}, {"v2.0.0", "1.9.9", true}, {"devel-a", "devel-b", true}, {"devel", "devel", false}} {
		if got := newer(c.mine, c.theirs); got != c.want {
			t.Errorf("newer(%s, %s) = %v", c.mine, c.theirs, got)
		}
	}
}

func TestUnknownOutcomeIsOneAnswerInTwoForms(t *testing.T) {
	a := parseAnswer(t, unknownOutcome(json.RawMessage(`"x"`)))
	if string(a.Result.Structured) != a.text() || !json.Valid([]byte(a.text())) {
		t.Fatal(a.raw)
	}
}
