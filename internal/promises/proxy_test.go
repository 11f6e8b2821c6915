//go:build linux

package promises

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// upstream is a service on this machine, for as long as the test runs.
func upstream(t testing.TB, serve http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(serve)
	t.Cleanup(s.Close)
	return s.URL
}

// proxied is a credential that is used through the proxy.
func proxied(name, url, more string) string {
	if more == "" {
		more = `allow: ["* /**"]`
	}
	return "name: " + name + ", type: api-key, value: " + keyOf(name) + `, upstream: {url: "` + url + `", header: "Authorization: Bearer {value}", ` + more + "}"
}

func keyOf(name string) string { return "sk-fake-0123456789abcdef-" + name }

// borrowed is a lease by proxy, as the agent sees it.
type borrowed struct {
	id, base, handle string
}

func borrow(t testing.TB, c caller, name string) borrowed {
	t.Helper()
	a := call(t, c, "lease_credential", args{"credential": name, "purpose": "test"})
	if a.refused || a.get("delivery") != "proxy" {
		t.Fatalf("lease of %s: %s", name, a.raw)
	}
	if strings.Contains(a.raw, keyOf(name)) {
		t.Fatal("the lease tells the key")
	}
	return borrowed{a.lease(), a.get("use", "base_url"), a.get("use", "api_key")}
}

// TestD6AHandleStandsForTheKey: wherever a client puts the handle the upstream gets the key, and the handle never.
func TestD6AHandleStandsForTheKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	type seen struct {
		auth, uri, dump string
	}
	got := make(chan seen, 1)
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		var dump strings.Builder
		_ = r.Header.Write(&dump)
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Header.Get("Authorization"), r.RequestURI, dump.String() + string(body)}
		_, _ = io.WriteString(rw, "hello "+r.Header.Get("Authorization"))
	})
	w.seed(proxied("svc", up, ""))
	a := w.agent("claude")
	b := borrow(t, a, "svc")
	res, err := do("POST", b.base+"/v1/x?q=1", "body", "Authorization", "Bearer "+b.handle)
	w.must(err)
	s := <-got
	if res.status != 200 || s.auth != "Bearer "+keyOf("svc") || s.uri != "/v1/x?q=1" || strings.Contains(s.dump, b.handle) {
		t.Errorf("%d %s: %+v", res.status, res.body, s)
	}
	if string(res.body) != "hello Bearer [secret]" {
		t.Errorf("answer: %q", res.body)
	}
}
