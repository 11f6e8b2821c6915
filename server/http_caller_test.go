package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"keylease/internal/identity"
)

func TestAPeerIsHereWhereItCouldReachOurLoopback(t *testing.T) {
	at := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		peer, local string
		want        bool
	}{
		{"127.0.0.1:5000", "127.0.0.1:8700", false},
		{"127.8.8.8:5000", "127.0.0.1:8700", false},
		{"[::1]:5000", "[::1]:8700", false},
		{"[::ffff:127.0.0.1]:5000", "[::1]:8700", false},
		{"192.0.2.7:5000", "192.0.2.7:8700", false}, // to an address of one's own
		{"192.0.2.8:5000", "192.0.2.7:8700", true},
		{"[fe80::1%eth0]:5000", "[fe80::1%eth0]:8700", false},
		{"[2001:db8::1]:5000", "[2001:db8::2]:8700", true},
		{"@", "127.0.0.1:8700", true},
		{"", "127.0.0.1:8700", true},
	} {
		if got := elsewhere(c.peer, at(c.local)); got != c.want {
			t.Errorf("%s, which is connected to %s, is elsewhere: %v", c.peer, c.local, got)
		}
	}
	if elsewhere("127.0.0.1:5000", nil) || !elsewhere("192.0.2.8:5000", nil) {
		t.Error("where the own end of a connection is not known, loopback alone is here")
	}
}

// TestACallerFromAnotherMachineIsKnownForOne: over every road; what a request says of itself counts for nothing.
func TestACallerFromAnotherMachineIsKnownForOne(t *testing.T) {
	w := newWeb(t)
	seen := make(chan string, 1)
	w.MCP.AddTool(mcp.NewTool("where"), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		c, _ := identity.From(ctx)
		seen <- fmt.Sprint(c.Transport, " remote=", c.Remote)
		return mcp.NewToolResultText("ok"), nil
	})
	from := func(peer string, r *http.Request) {
		t.Helper()
		r.RemoteAddr = peer
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8700}))
		rec := httptest.NewRecorder()
		w.srv.Handler.ServeHTTP(rec, r)
		if rec.Code >= 300 {
			t.Fatalf("%s: %d %s", peer, rec.Code, rec.Body)
		}
	}
	events := w.open("/sse", as("a")...)
	message := strings.TrimPrefix(events.next(t), w.url)
	lies := []string{"X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1", "Forwarded: for=127.0.0.1"}
	modern, headers := callModern(1, "where")
	for peer, remote := range map[string]bool{"127.0.0.1:1": false, "192.0.2.7:1": false, "192.0.2.8:1": true} {
		for road, r := range map[string]*http.Request{
			"http":  w.request("POST", "/mcp", modern, as("a", append(headers, lies...)...)...),
			"http ": w.request("POST", "/mcp", callTool(2, "where"), as("a", append([]string{w.begin("a")}, lies...)...)...),
			"sse":   w.request("POST", message, callTool(3, "where"), as("a", lies...)...),
		} {
			r.URL.Host, r.Host = "", "127.0.0.1:8700"
			from(peer, r)
			if got, want := <-seen, fmt.Sprint(strings.TrimSpace(road), " remote=", remote); got != want {
				t.Errorf("%s from %s: %s, want %s", road, peer, got, want)
			}
		}
	}
}
