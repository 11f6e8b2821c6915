//go:build linux

package promises

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// forever is a service that streams until its caller leaves, that never answers at /hang, and that never reads at /deaf.
// left gets the path of each request that its caller left.
func forever(t *testing.T) (origin string, left chan string) {
	left = make(chan string, 100)
	return upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/hang"):
			<-r.Context().Done()
		case strings.HasPrefix(r.URL.Path, "/stream"):
			for r.Context().Err() == nil {
				_, _ = io.WriteString(rw, "data: more\n\n")
				rw.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
			}
		default:
			_, _ = io.WriteString(rw, "ok")
			return
		}
		left <- r.URL.Path
	}), left
}

// opened is a request that is under way: its head, or its error, has come.
type opened struct {
	res *http.Response
	err error
}

func (b borrowed) open(ctx context.Context, path string) chan opened {
	out := make(chan opened, 1)
	r, err := request(ctx, "GET", b.base+path, "", "Authorization", "Bearer "+b.handle)
	if err != nil {
		out <- opened{err: err}
		return out
	}
	go func() {
		res, err := http.DefaultClient.Do(r)
		out <- opened{res, err}
	}()
	return out
}

// TestG4TheEndOfALeaseCutsItsRequests: when release, revoke or freeze has answered, and once the time is up, a stream
// that was open is cut so that its reader notices, a request that waits is refused, the upstream knows, and the next
// request gets 403.
func TestG4TheEndOfALeaseCutsItsRequests(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, w *world, a *agent, b borrowed){
		"release": func(t *testing.T, w *world, a *agent, b borrowed) {
			call(t, a, "release_lease", args{"lease_id": b.id})
		},
		"operator":      func(t *testing.T, w *world, _ *agent, b borrowed) { w.ok("release", b.id) },
		"revoke-leases": func(t *testing.T, w *world, _ *agent, _ borrowed) { w.ok("revoke-leases", "--identity", "claude") },
		"revoke":        func(t *testing.T, w *world, _ *agent, _ borrowed) { w.ok("revoke", "svc") },
		"freeze":        func(t *testing.T, w *world, _ *agent, _ borrowed) { w.ok("freeze") },
		"expiry":        func(t *testing.T, _ *world, _ *agent, _ borrowed) {},
		"disconnect":    func(t *testing.T, w *world, a *agent, _ borrowed) { a.leave() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("grace: 1s\n")
			up, left := forever(t)
			w.seed(proxied("svc", up, ""))
			a := w.agent("claude")
			ttl := "1h"
			if name == "expiry" {
				ttl = "2s"
			}
			b := borrow(t, a, "svc", "ttl", ttl)
			ctx, cancel := timeout()
			defer cancel()
			stream := <-b.open(ctx, "/stream")
			w.must(stream.err)
			defer stream.res.Body.Close()
			_, err := io.ReadFull(stream.res.Body, make([]byte, 100))
			w.must(err)
			hang := b.open(ctx, "/hang")
			time.Sleep(50 * time.Millisecond)
			end(t, w, a, b)
			if name != "expiry" && name != "disconnect" { // which nobody answers for
				got, err := b.get("/now")
				w.must(err)
				if want := map[bool]int{true: 503, false: 403}[name == "freeze"]; got.status != want || got.body == "ok" {
					t.Errorf("after the answer: %d %s", got.status, got.body)
				}
			}
			if _, err := io.Copy(io.Discard, stream.res.Body); err == nil {
				t.Error("the stream ended as if it were whole")
			} else if ctx.Err() != nil {
				t.Fatal("the stream was not cut")
			}
			waited := <-hang
			w.must(waited.err)
			defer waited.res.Body.Close()
			if waited.res.StatusCode != 403 {
				t.Errorf("what waited: %d", waited.res.StatusCode)
			}
			for range 2 {
				select {
				case <-left:
				case <-ctx.Done():
					t.Fatal("the upstream does not know")
				}
			}
			if got, err := b.get("/now"); err != nil || got.status == 200 {
				t.Errorf("afterwards: %v %d", err, got.status)
			}
			w.eventually("both uses ended in the trail", func() error {
				trail := w.ok("audit", "--json", "--event", "lease.used")
				if strings.Count(trail, "/stream") < 1 || strings.Count(trail, "/hang") < 1 {
					return errors.New(trail)
				}
				return nil
			})
		})
	}
}

// TestG4ASlowReaderAndASlowSenderAreCutToo: a client that takes nothing, or sends nothing of its body, holds up no release.
func TestG4ASlowReaderAndASlowSenderAreCutToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := upstream(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for r.Context().Err() == nil {
			if _, err := rw.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	w.seed(proxied("svc", up, ""))
	a := w.agent("claude")
	b := borrow(t, a, "svc")
	for _, text := range []string{"GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nContent-Length: 100\r\n\r\nsome"} {
		conn, err := net.Dial("tcp", b.addr())
		w.must(err)
		defer conn.Close()
		_, err = io.WriteString(conn, strings.ReplaceAll(text, "{H}", b.handle))
		w.must(err)
	}
	time.Sleep(200 * time.Millisecond) // until the buffers are full
	began := time.Now()
	call(t, a, "release_lease", args{"lease_id": b.id})
	t.Logf("the release took %v", time.Since(began))
	w.eventually("both have ended, and that is recorded", func() error {
		if trail := w.ok("audit", "--json", "--event", "lease.used"); strings.Count(trail, "duration_ms") < 2 {
			return errors.New(trail)
		}
		return nil
	})
}

// TestG1EachUseIsOnDiskWithinASecond: what was used before the daemon was killed stands in the trail, also a stream that
// was still open; and the same base URL and handle work again.
func TestG1EachUseIsOnDiskWithinASecond(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("grace: 1h\n")
	up, _ := forever(t)
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	ctx, cancel := timeout()
	defer cancel()
	stream := <-b.open(ctx, "/stream")
	w.must(stream.err)
	defer stream.res.Body.Close()
	for i := range 20 {
		if got, err := b.get(fmt.Sprintf("/one/%d?q", i)); err != nil || got.status != 200 {
			t.Fatalf("%v %d %s", err, got.status, got.body)
		}
	}
	time.Sleep(time.Second)
	w.killDaemon()
	if _, err := io.Copy(io.Discard, stream.res.Body); err == nil {
		t.Error("the stream of a daemon that was killed ended as if it were whole")
	}
	w.ok("ls") // starts another
	trail := w.ok("audit", "--json", "--event", "lease.used")
	for i := range 20 {
		if strings.Count(trail, fmt.Sprintf(`/one/%d"`, i)) != 1 {
			t.Errorf("use %d is not in the trail once: %s", i, tail(trail, 2000))
		}
	}
	if strings.Count(trail, "/stream") != 1 || !strings.Contains(trail, "begun") {
		t.Errorf("the stream that was open is not in the trail: %s", tail(trail, 2000))
	}
	if got, err := b.get("/again"); err != nil || got.status != 200 {
		t.Errorf("the same base URL after a restart: %v %d %s", err, got.status, got.body)
	}
}

// TestAPortThatSomebodyElseTookEndsItsLeases: their handles may have been sent there.
func TestAPortThatSomebodyElseTookEndsItsLeases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("grace: 1h\n")
	up, _ := forever(t)
	w.seed(proxied("svc", up, ""), secretOf("db", ""))
	a := w.agent("claude")
	b := borrow(t, a, "svc")
	kept := lend(t, a, "db")
	w.killDaemon()
	var thief net.Listener
	w.eventually("the port is free", func() (err error) { thief, err = net.Listen("tcp", b.addr()); return err })
	defer thief.Close()
	leases := w.ok("leases", "--json")
	if strings.Contains(leases, b.id) || !strings.Contains(leases, kept) {
		t.Errorf("leases after the port was taken: %s", leases)
	}
	if trail := w.ok("audit", "--json", "--event", "lease.revoked"); !strings.Contains(trail, b.id) || !strings.Contains(trail, "another program has the proxy's port") {
		t.Errorf("the trail: %s", trail)
	}
	next := borrow(t, w.agent("claude"), "svc")
	if next.base == b.base {
		t.Fatal("the proxy says that it listens where somebody else does")
	}
	if got, err := next.get("/x"); err != nil || got.status != 200 {
		t.Errorf("%v %d %s", err, got.status, got.body)
	}
	if got, err := do("GET", next.base+"/x", "", "Authorization", "Bearer "+b.handle); err != nil || got.status != 403 {
		t.Errorf("the old handle: %v %d", err, got.status)
	}
}

// TestAProxyWithAnAddressOfItsOwn: serve takes it at once, and a program that has it already is exit 8.
func TestAProxyWithAnAddressOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.configure("proxy: {listen: \"" + l.Addr().String() + "\"}\n")
	if o := w.refused(8, "serve", "--http", "off"); !strings.Contains(o.err, l.Addr().String()) {
		t.Errorf("%s", o)
	}
	_ = l.Close()
	up, _ := forever(t)
	w.serve("--http", "off")
	w.ok("ls") // it is up
	if got, err := do("GET", "http://"+l.Addr().String()+"/x", ""); err != nil || got.status != 403 {
		t.Errorf("%v %d", err, got.status)
	}
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	if got, err := b.get("/x"); b.addr() != l.Addr().String() || err != nil || got.status != 200 {
		t.Errorf("%s: %v %d", b.base, err, got.status)
	}
	w.configure("proxy: {listen: \"0.0.0.0:1\"}\n")
	w.refused(2, "serve")
	if _, err := os.Stat(filepath.Join(w.data(), "proxy.address")); err == nil {
		t.Error("an address that the operator chose was kept as if it were ours")
	}
}

// TestG10APolicyEditHoldsForTheNextRequest of a lease that is live already.
func TestG10APolicyEditHoldsForTheNextRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	up, _ := forever(t)
	w.seed(proxied("svc", up, ""))
	b := borrow(t, w.agent("claude"), "svc")
	for i, step := range []struct {
		policy string
		status int
	}{{openPolicy, 200}, {openPolicy + "    delivery: [value]\n", 403}, {openPolicy, 200}, {openPolicy + "    effect: nonsense\n", 200}} {
		w.policy(step.policy)
		if got, err := b.get("/x"); err != nil || got.status != step.status {
			t.Errorf("step %d: %v %d, want %d", i, err, got.status, step.status)
		}
	}
}
