package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// self is this test binary, as the command that a stack runs: it runs the one test that is named.
func self(test string) []string {
	return []string{os.Args[0], "-test.run=^" + test + "$", "-test.count=1"}
}

func TestTheFrontAddsATokenAndChangesNothingElse(t *testing.T) {
	seen := make(chan *http.Request, 1)
	far := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r }))
	defer far.Close()
	if err := withFront(t.Context(), far.URL, "tok-fake", self("TestFromOutside")); err != nil {
		t.Fatal(err)
	}
	r := <-seen
	for name, want := range map[string]string{"Authorization": "Bearer tok-fake", "Origin": "http://evil.example.com",
		"Mcp-Method": "tools/list", "X-Forwarded-For": "", "Sec-Fetch-Site": "cross-site"} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if r.Host != "evil.example.com" || r.URL.Path != "/mcp" {
		t.Errorf("host %q, path %q", r.Host, r.URL.Path)
	}
}

// The fixtures stand behind the doors that clients of keylease meet: what is refused there is refused here.
func TestTheFixturesStandBehindTheRealDoors(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := withFixtures(ctx, self("TestFromInside")); err != nil {
		t.Fatal(err)
	}
	var ended *exec.ExitError
	if err := withFixtures(ctx, []string{"sh", "-c", "exit 7"}); !errors.As(err, &ended) || ended.ExitCode() != 7 {
		t.Errorf("a command that failed: %v", err)
	}
}

func TestFromOutside(t *testing.T) {
	wantStatus(t, 200, "evil.example.com", `{}`, "Origin", "http://evil.example.com", "Sec-Fetch-Site", "cross-site", "Mcp-Method", "tools/list")
}

func TestFromInside(t *testing.T) {
	const ask = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
	wantStatus(t, 403, "evil.example.com", ask)
	wantStatus(t, 403, "", ask, "Origin", "http://evil.example.com")
	wantStatus(t, 415, "", ask, "Content-Type", "text/plain")
	wantStatus(t, 400, "", strings.Replace(ask, `"method"`, `"Method"`, 1))
	wantStatus(t, 413, "", `{"x":"`+strings.Repeat("x", 70<<10)+`"}`)
	wantStatus(t, 404, "", strings.Replace(ask, "initialize", "tools/list", 1), "Mcp-Session-Id", "made-up")
	if body := wantStatus(t, 200, "", ask); !strings.Contains(body, "keylease-conformance") {
		t.Errorf("initialize: %s", body)
	}
}

// wantStatus sends one message to CONFORMANCE_URL, which only a stack's command has.
func wantStatus(t *testing.T, want int, host, body string, headers ...string) string {
	t.Helper()
	url := os.Getenv("CONFORMANCE_URL")
	if url == "" {
		t.Skip("a stack runs this")
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	r.Host = host
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		t.Errorf("host %q %v: %d, want %d: %s %v", host, headers, res.StatusCode, want, text, err)
	}
	return string(text)
}
