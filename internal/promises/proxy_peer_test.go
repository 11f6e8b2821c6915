//go:build linux

package promises

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wireAs is wire by a connection that is another user's.
func wireAs(t *testing.T, uid int, network, addr, handle, text string) (string, error) {
	t.Helper()
	var conn net.Conn
	var refused error
	asThread(t, uid, func() error { conn, refused = net.Dial(network, addr); return nil })
	if refused != nil {
		return "", refused
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, err := io.WriteString(conn, strings.ReplaceAll(text, "{H}", handle))
	if err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return withoutDate(string(got)), err
}

func withoutDate(answer string) string {
	before, rest, _ := strings.Cut(answer, "Date: ")
	_, after, _ := strings.Cut(rest, "\n")
	return before + after
}

const ask = "GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {H}\r\nConnection: close\r\n\r\n"

// TestB8TheProxyServesItsUserAlone: another user with the right handle gets what a wrong one gets, by TCP and by the
// socket.
func TestB8TheProxyServesItsUserAlone(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	w := newWorld(t)
	w.seed(proxied("svc", upstream(t, echo), ""))
	b := borrow(t, w.agent("claude"), "svc")
	for _, path := range []string{b.socket, w.data()} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	mine, err := wire("tcp", b.addr(), b.handle, ask)
	if err != nil || !strings.HasPrefix(mine, "HTTP/1.1 200 ") {
		t.Fatalf("%v %s", err, mine)
	}
	wrong, err := wire("tcp", b.addr(), "klh_AAAAAAAAAAAAAAAAAAAAAAAAAA", ask)
	w.must(err)
	if got, err := wireAs(t, otherUID, "tcp", b.addr(), b.handle, ask); err != nil || got != withoutDate(wrong) || !strings.HasPrefix(got, "HTTP/1.1 403 ") {
		t.Errorf("another user by TCP: %v %s, and a wrong handle: %s", err, got, wrong)
	}
	if got, err := wireAs(t, otherUID, "unix", b.socket, b.handle, ask); err == nil {
		t.Errorf("another user by the socket: %s", got)
	}
	for dir := w.data(); len(dir) >= len(w.home); dir = filepath.Dir(dir) {
		w.must(os.Chmod(dir, 0o755))
	}
	w.must(os.Chmod(b.socket, 0o666))
	if got, err := wireAs(t, otherUID, "unix", b.socket, b.handle, ask); err != nil || got != withoutDate(wrong) {
		t.Errorf("another user by a socket that is open: %v %s", err, got)
	}
	w.must(os.Chmod(w.data(), 0o700))
	w.must(os.Chmod(w.socket(), 0o600))
	w.eventually("it is in the trail", func() error {
		trail := w.ok("audit", "--json", "--event", "auth.failed")
		if !strings.Contains(trail, "proxy uid:"+strconv.Itoa(otherUID)) {
			return os.ErrNotExist
		}
		return nil
	})
}

// TestB8InSystemModeALeaseIsItsUsers: of two users who both may lease, one does not use the other's handle.
func TestB8InSystemModeALeaseIsItsUsers(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	up := upstream(t, echo)
	s.up()
	s.seed(proxied("svc", up, ""))
	b := borrow(t, s.agentAs(agentUID, "x"), "svc")
	other := borrow(t, s.agentAs(groupUID, "y"), "svc")
	if b.socket != filepath.Join(s.run(), "proxy.sock") {
		t.Errorf("the socket is %s", b.socket)
	}
	wrong, err := wireAs(t, agentUID, "tcp", b.addr(), "klh_AAAAAAAAAAAAAAAAAAAAAAAAAA", ask)
	s.must(err)
	for network, addr := range map[string]string{"tcp": b.addr(), "unix": b.socket} {
		for _, one := range []struct {
			uid    int
			handle string
			works  bool
		}{{agentUID, b.handle, true}, {groupUID, b.handle, false}, {agentUID, other.handle, false}, {otherUID, b.handle, false}, {adminUID, b.handle, false}, {0, b.handle, false}, {daemonUID, b.handle, false}} {
			got, err := wireAs(t, one.uid, network, addr, one.handle, ask)
			if err != nil || strings.HasPrefix(got, "HTTP/1.1 200 ") != one.works || !one.works && got != wrong {
				t.Errorf("uid %d by %s: %v %.300s", one.uid, network, err, got)
			}
		}
	}
	if got, err := wireAs(t, groupUID, "tcp", other.addr(), other.handle, ask); err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("who comes by a group, by TCP: %v %.300s", err, got)
	}
}

// TestHandlesAreTriedSlowly: who sends wrong ones without end waits for each, and a right one from there is not held up.
func TestHandlesAreTriedSlowly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("limits: {failureRate: 1, failureBurst: 5}\n")
	w.seed(proxied("svc", upstream(t, echo), ""))
	b := borrow(t, w.agent("claude"), "svc")
	wrong := borrowed{base: b.base, handle: "klh_AAAAAAAAAAAAAAAAAAAAAAAAAA"}
	began := time.Now()
	together(t, 20, func(int) error { _, err := wrong.get("/x"); return err })
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("20 wrong handles took %v", took)
	}
	began = time.Now()
	got, err := b.get("/x")
	w.must(err)
	if took := time.Since(began); got.status != 200 || took > 1500*time.Millisecond {
		t.Errorf("a right one: %d after %v", got.status, took)
	}
}
