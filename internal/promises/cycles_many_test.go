//go:build linux

package promises

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestC5AMillionLeases: 10^6 leases that came and went, 64 at a time over one connection, leave what the first tenth of
// them left: memory, threads, descriptors, and goroutines like those of a daemon that nobody ever called. What a disk keeps is their entries, the same for each, until the trail is pruned. The first tenth
// counts, since some things fill once: the last 65,536 ended leases are remembered (13 MB), Badger keeps the buffers with
// which it writes tables, at most eight and tens of MB each under load, and gives back one every two seconds once it is left alone.
func TestC5AMillionLeases(t *testing.T) {
	t.Parallel()
	many, rest := 4000, time.Duration(0)
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		many, rest = 1_000_000, 90*time.Second
	}
	fresh := newWorld(t)
	few := goroutinesOf(t, fresh, fresh.serve("--http", "off"))
	w := newWorld(t)
	w.configure("limits: {callRate: 0}\n")
	w.policy(openPolicy)
	s := w.serve("--http", "off")
	w.seed(secretOf("db", ""))
	pid := s.Process.Pid
	w.cycled(max(many/10, 4000))
	settled := calm(pid, 0, rest)
	files, threads, stored := descriptors(pid), entries(pid, "task"), w.stored()
	began := time.Now()
	w.cycled(many)
	took, high := time.Since(began), anonymous(pid)
	each := (w.stored() - stored) / int64(many)
	after := calm(pid, settled+16<<10, rest)
	t.Logf("%d leases in %s: %d KiB before, %d at the end, %d when it was left alone; %d bytes on the disk for each", many, took, settled, high, after, each)
	if after > settled+24<<10 {
		t.Errorf("%d leases left %d KiB behind", many, after-settled)
	}
	if n := descriptors(pid); n > files+2 {
		t.Errorf("%d descriptors, %d before", n, files)
	}
	if n := entries(pid, "task"); n > threads+8 {
		t.Errorf("%d threads, %d before", n, threads)
	}
	if each > 4<<10 {
		t.Errorf("each lease left %d bytes on the disk", each)
	}
	if live := w.leases(); len(live) != 0 {
		t.Errorf("%d leases live", len(live))
	}
	if n := goroutinesOf(t, w, s); n > few+10 {
		t.Errorf("%d goroutines, %d in a daemon that nobody called", n, few)
	}
}

// calm waits until a process has no more memory of its own than enough, or for as long as rest, and says how much it has.
func calm(pid, enough int, rest time.Duration) int {
	for deadline := time.Now().Add(rest); time.Now().Before(deadline) && anonymous(pid) > enough; {
		time.Sleep(50 * time.Millisecond)
	}
	return anonymous(pid)
}

// stored is what the data folder takes of the disk: Badger's log is longer than it is full.
func (w *world) stored() (sum int64) {
	w.t.Helper()
	var st syscall.Stat_t
	w.must(filepath.WalkDir(w.data(), func(path string, d fs.DirEntry, err error) error {
		if syscall.Stat(path, &st) == nil && d.Type().IsRegular() { // a table may go meanwhile
			sum += st.Blocks * 512
		}
		return nil
	}))
	return sum
}

// cycled leases and releases n times over one connection, with 64 calls in flight.
func (w *world) cycled(n int) {
	w.t.Helper()
	c, err := w.rawLocal(localHello("cycler"))
	w.must(err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Minute))
	say := func(id int, method string, params any) { // 64 short lines always fit what the kernel buffers
		_, err := io.WriteString(c, rpcLine(fmt.Sprint(id), method, params)+"\n")
		w.must(err)
	}
	lendOne := func(id int) {
		say(id, "tools/call", args{"name": "lease_credential", "arguments": args{"credential": "db"}})
	}
	if _, err := c.r.ReadString('\n'); err != nil {
		w.t.Fatalf("hello: %v", err)
	}
	say(1, "initialize", args{"protocolVersion": legacy, "capabilities": args{}, "clientInfo": args{"name": "cycler", "version": "1"}})
	if _, err := c.r.ReadString('\n'); err != nil {
		w.t.Fatalf("initialize: %v", err)
	}
	next, begun := 2, 0
	for ; begun < min(n, 64); begun++ {
		lendOne(next)
		next++
	}
	for left := min(n, 64); left > 0; next++ {
		line, err := c.r.ReadString('\n')
		if err != nil || strings.Contains(line, `"isError":true`) || strings.Contains(line, `"error":{`) {
			w.t.Fatalf("%v %.500s", err, line)
		}
		_, after, _ := strings.Cut(line, `"lease_id":"`)
		id, _, _ := strings.Cut(after, `"`)
		switch {
		case id == "":
			w.t.Fatalf("an answer without a lease: %.500s", line)
		case strings.Contains(line, `"status":"granted"`):
			say(next, "tools/call", args{"name": "release_lease", "arguments": args{"lease_id": id}})
		case begun < n:
			begun++
			lendOne(next)
		default:
			left--
		}
	}
}

// goroutinesOf ends a daemon with SIGQUIT, on which Go lists its goroutines, and counts them.
func goroutinesOf(t *testing.T, w *world, s *served) int {
	t.Helper()
	_ = s.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.exited:
	case <-time.After(patience):
		t.Fatal("SIGQUIT did not end the daemon")
	}
	n := strings.Count(s.log.String(), "\ngoroutine ")
	if n == 0 {
		t.Fatalf("no goroutines are listed: %s", tail(s.log.String(), 500))
	}
	return n
}
