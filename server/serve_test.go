package server

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/secret"
	"keylease/store"
)

// serveReal runs Serve over a real store in p's folders, with one credential in it.
func serveReal(t *testing.T, p Paths, log *lockedBuffer) (stop func()) {
	t.Helper()
	logger := zerolog.New(log)
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- Serve(ctx, Options{Paths: p, Log: logger, Version: "1.0.0", HTTPAddr: "127.0.0.1:0",
			Ready: func(Listening) { close(up) },
			Open: func(ctx context.Context) (*lease.Broker, func() error, error) {
				_, err := os.Stat(p.Config)
				fresh := os.IsNotExist(err)
				if err := os.MkdirAll(p.Config, 0o700); err != nil {
					return nil, nil, err
				}
				st, err := store.Open(store.Options{Dir: p.Data, AnchorDir: p.Config, RootKey: bytes.Repeat([]byte{7}, 32),
					KeySource: "file", Create: fresh, Log: logger, Now: time.Now})
				if err != nil {
					return nil, nil, err
				}
				b, err := lease.Open(ctx, lease.Config{Store: st, Log: logger, Now: time.Now, KeySource: "file", Version: "1.0.0"})
				if err == nil && fresh {
					_, err = b.Put(ctx, identity.Caller{Principal: identity.Principal{Type: identity.Human, Name: "op", By: "uid:0"}},
						lease.NewCredential{Name: "openai", Type: "api-key", Value: secret.New([]byte("sk-fake-canary"))})
				}
				return b, func() error { _ = b.Close(); return st.Close() }, err
			}})
	}()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon did not come up")
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stopping: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// One life over the shipped parts: lease, a daemon that restarts under the client, a client that leaves and comes back.
func TestALeaseLivesThroughARestartAndItsHoldersReturn(t *testing.T) {
	p, log := shortDir(t), &lockedBuffer{}
	stop := serveReal(t, p, log)
	relay := RelayOptions{Paths: p, Version: "1.0.0"}
	s := startRelay(t, context.Background(), relay)
	s.open("claude-code")
	a := s.ask(call1("1", "lease_credential", `"credential":"openai","purpose":"test"`))
	var grant struct {
		LeaseID string `json:"lease_id"`
		Value   string `json:"value"`
	}
	if err := json.Unmarshal(a.Result.Structured, &grant); err != nil || grant.Value != "sk-fake-canary" {
		t.Fatal(a.raw)
	}
	stop()
	serveReal(t, p, log)
	comesTrue(t, "the lease is still the client's", func() bool {
		return strings.Contains(s.ask(call1("2", "list_credentials", "")).raw, grant.LeaseID)
	})
	_ = s.in.Close()
	<-s.done

	other := startRelay(t, context.Background(), relay)
	other.open("gemini-cli-mcp-client")
	if a := other.ask(call1("1", "release_lease", `"lease_id":"`+grant.LeaseID+`"`)); !strings.Contains(a.text(), "not_available") {
		t.Fatalf("another name released it: %s", a.raw)
	}
	again := startRelay(t, context.Background(), relay)
	again.open("claude-code")
	if a := again.ask(call1("1", "release_lease", `"lease_id":"`+grant.LeaseID+`"`)); !strings.Contains(a.text(), `"released"`) {
		t.Fatalf("its holder, back from a restart, could not: %s", a.raw)
	}
	if strings.Contains(log.String(), "canary") {
		t.Error("the value is in the log")
	}
}

func TestStandaloneEndsWithItsClientAndIsTheOnlyOne(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	h.open(t, Options{Paths: p})
	err := Standalone(context.Background(), Options{Paths: p}, RelayOptions{Paths: p, In: strings.NewReader(""), Out: &lockedBuffer{}})
	if running, ok := err.(*RunningError); !ok || running.PID != os.Getpid() {
		t.Errorf("beside a daemon that runs: %v", err)
	}
}

func TestAModernClientKeepsItsNameThroughARestart(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p})
	s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: false})
	s.ask(modernLine("1", "server/discover", "codex-mcp-client", ""))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	h.open(t, Options{Paths: p})
	comesTrue(t, "the relay is back, under its first name", func() bool {
		a := s.ask(modernLine("2", "tools/call", "somebody-else", `"name":"whoami","arguments":{},`))
		return strings.HasPrefix(a.text(), "agent codex declared")
	})
}

func TestAClientWithoutANameStaysWithoutOne(t *testing.T) {
	h, p := newHouse(), shortDir(t)
	stop := h.open(t, Options{Paths: p})
	s := startRelay(t, context.Background(), RelayOptions{Paths: p})
	s.ask(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	h.open(t, Options{Paths: p})
	comesTrue(t, "the relay is back", func() bool {
		a := s.ask(modernLine("2", "tools/call", "root", `"name":"whoami","arguments":{},`))
		if strings.HasPrefix(a.text(), "agent root") {
			t.Fatal("a restart changed who is asking")
		}
		return strings.HasPrefix(a.text(), "agent local declared")
	})
}
