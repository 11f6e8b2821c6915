//go:build linux

package promises

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestC5WhatIsGivenBackIsGone: leases that came and went leave nothing behind in memory, and no descriptor or thread; on
// disk only their entries.
func TestC5WhatIsGivenBackIsGone(t *testing.T) {
	t.Parallel()
	const many = 1500
	w := newWorld(t)
	w.configure("limits: {callRate: 0}\n")
	w.policy("version: 1\nlimits: {leaseRate: 0}\nrules: [{name: all, identities: [\"*\"], credentials: [\"*\"]}]\n")
	s := w.serve("--http", "off")
	w.seed(secretOf("db", ""))
	agents := []*agent{w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")}
	cycles := func(n int) {
		var all sync.WaitGroup
		for _, a := range agents {
			all.Go(func() {
				for range n / len(agents) {
					got, err := a.try("lease_credential", args{"credential": "db"})
					if err == nil && !got.refused {
						got, err = a.try("release_lease", args{"lease_id": got.lease()})
					}
					if err != nil || got.refused {
						t.Errorf("%v %s", err, got.raw)
						return
					}
				}
			})
		}
		all.Wait()
	}
	cycles(many / 3) // whatever grows once has grown
	pid, disk := s.Process.Pid, func() (sum int64) {
		for _, data := range tree(w, w.data()) {
			sum += int64(len(data))
		}
		return sum
	}
	before, files, threads, stored := anonymous(pid), descriptors(pid), entries(pid, "task"), disk()
	cycles(many)
	after := anonymous(pid)
	t.Logf("%d leases: %d KiB before, %d after; %d bytes on the disk for each", many, before, after, (disk()-stored)/int64(many))
	if after > before+24<<10 { // Badger's memory table, 16 MiB, fills and empties; the last 65,536 ended leases are remembered
		t.Errorf("%d leases left %d KiB behind", many, after-before)
	}
	if n := descriptors(pid); n > files+2 {
		t.Errorf("%d descriptors, %d before", n, files)
	}
	if n := entries(pid, "task"); n > threads+8 {
		t.Errorf("%d threads, %d before", n, threads)
	}
	if each := (disk() - stored) / int64(many); each > 4<<10 {
		t.Errorf("each lease left %d bytes on the disk", each)
	}
	if live := w.leases(); len(live) != 0 {
		t.Errorf("%d leases live", len(live))
	}
}

// anonymous is how much memory a process has that is no file's, in KiB: the tables of the trail, which grows, are mapped.
func anonymous(pid int) int {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	_, after, _ := strings.Cut(string(text), "RssAnon:")
	kib, _ := strconv.Atoi(strings.TrimSpace(strings.Split(after, "kB")[0]))
	return kib
}

// descriptors counts those that are not of the store's own files.
func descriptors(pid int) (n int) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	all, _ := os.ReadDir(dir)
	for _, fd := range all {
		if to, _ := os.Readlink(filepath.Join(dir, fd.Name())); filepath.Base(filepath.Dir(to)) != "store" {
			n++
		}
	}
	return n
}

// entries counts what /proc lists of a process.
func entries(pid int, what string) int {
	all, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), what))
	return len(all)
}
