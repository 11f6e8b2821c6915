package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// As the script starts it, this test binary is a server with as much of OpenBao's HTTP API as the script speaks. It shows
// that the script does what it says, and nothing of OpenBao.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "server" {
		os.Exit(fakeBao(strings.TrimPrefix(os.Args[2], "-config=")))
	}
	os.Exit(m.Run())
}

func fakeBao(config string) int {
	text, err := os.ReadFile(config)
	if err != nil {
		return 1
	}
	address := regexp.MustCompile(`\n  address = "([^"]+)"`).FindSubmatch(text)
	var sealed atomic.Bool
	sealed.Store(true)
	var tokens atomic.Int64
	rooted := func(do http.HandlerFunc) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			if sealed.Load() || r.Header.Get("X-Vault-Token") != "fake-root" {
				http.Error(rw, `{"errors":["permission denied"]}`, http.StatusForbidden)
				return
			}
			do(rw, r)
		}
	}
	say := func(rw http.ResponseWriter, v any) { _ = json.NewEncoder(rw).Encode(v) }
	nothing := func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sys/seal-status", func(rw http.ResponseWriter, _ *http.Request) { say(rw, map[string]bool{"sealed": sealed.Load()}) })
	mux.HandleFunc("PUT /v1/sys/init", func(rw http.ResponseWriter, _ *http.Request) {
		say(rw, map[string]any{"keys_base64": []string{"ZmFrZQ=="}, "root_token": "fake-root"})
	})
	mux.HandleFunc("PUT /v1/sys/unseal", func(rw http.ResponseWriter, _ *http.Request) {
		sealed.Store(false)
		say(rw, map[string]bool{"sealed": false})
	})
	mux.HandleFunc("POST /v1/sys/mounts/bench", rooted(nothing))
	mux.HandleFunc("PUT /v1/sys/policies/acl/bench", rooted(nothing))
	mux.HandleFunc("PUT /v1/bench/key", rooted(nothing))
	mux.HandleFunc("POST /v1/auth/token/create", rooted(func(rw http.ResponseWriter, _ *http.Request) {
		say(rw, map[string]any{"auth": map[string]string{"client_token": fmt.Sprintf("fake-%d", tokens.Add(1))}})
	}))
	mux.HandleFunc("GET /v1/bench/key", func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("X-Vault-Token"), "fake-") || r.Header.Get("X-Vault-Token") == "fake-root" {
			http.Error(rw, `{"errors":["permission denied"]}`, http.StatusForbidden)
			return
		}
		say(rw, map[string]any{"data": map[string]string{"value": "fake"}})
	})
	_ = http.ListenAndServe(string(address[1]), mux)
	return 1
}

// TestTheScriptComparesTwoServers: with something that speaks OpenBao's API in its place, both are started, asked by 1
// and 64 callers, measured and ended.
func TestTheScriptComparesTwoServers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("memory is read from Linux's /proc")
	}
	fake, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--bao", fake, "--turn", "50ms", "--rounds", "1", "--leases", "200", "--disk", os.TempDir()}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`(?m)^\| 1 \| \d+/s, .* \| \d+/s, .* \| [\d.]+× `, `(?m)^\| 64 \| `, `with these and 200 more that live: OpenBao [1-9]\d* MB, keylease [1-9]\d* MB`} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in:\n%s", want, &out)
		}
	}
}

func TestTheScriptSaysWhatItMisses(t *testing.T) {
	t.Setenv("KEYLEASE_BENCH_BAO", "")
	if err := run(t.Context(), nil, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "--bao") {
		t.Errorf("%v", err)
	}
}
