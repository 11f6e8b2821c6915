//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cycle leases and releases n times through the daemon's socket, 64 at a time, and shows after each tenth what stays:
// memory of its own, threads, descriptors that are not the store's, disk. The trail grows with every event until it is
// pruned, so disk is shown for each cycle; everything else has to come back to what it was. Goroutines are counted at
// the end, when the daemon is ended with SIGQUIT, which makes it list them.
func (r *run) cycle(n int) error {
	w, _, err := r.served(100, 0)
	if err != nil {
		return err
	}
	begin := w.look()
	fmt.Printf("| cycles | memory of its own | resident | threads | descriptors | disk | disk for each cycle |\n|---|---|---|---|---|---|---|\n")
	show := func(done int, now footprint) {
		each := "–"
		if done > 0 {
			each = fmt.Sprintf("%d B", (now.disk-begin.disk)/int64(done))
		}
		fmt.Printf("| %d | %.1f MB | %.1f MB | %d | %d | %.1f MB | %s |\n", done, float64(now.own)/1024, float64(now.resident)/1024, now.threads, now.descriptors, float64(now.disk)/1e6, each)
	}
	show(0, begin)
	c, err := w.local("bench")
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	for done := 0; done < n; {
		step := min((n+9)/10, n-done)
		_, err := c.drive(64, func(calls int, _ time.Time) bool { return calls >= 2*step }, lendAndGiveBack(64, 100, true))
		if err != nil {
			return err
		}
		done += step
		show(done, w.look())
	}
	fmt.Printf("\n%d cycles in %s.\n", n, time.Since(began).Round(time.Second))
	c.Close()
	time.Sleep(30 * time.Second) // Badger gives its buffers back one by one, and what was garbage goes after twenty seconds of quiet
	show(n, w.look())
	goroutines, err := w.goroutines()
	if err != nil {
		return err
	}
	fmt.Printf("\nHalf a minute later, with nobody connected: the last line, and %d goroutines", goroutines)
	fresh, _, err := r.served(1, 0)
	if err != nil {
		return err
	}
	if goroutines, err = fresh.goroutines(); err != nil {
		return err
	}
	fmt.Printf("; a new daemon has %d.\n", goroutines)
	return nil
}

// footprint is what a daemon takes.
type footprint struct {
	own, resident        int // KiB
	threads, descriptors int
	disk                 int64
}

func (w *world) look() (f footprint) {
	f.own, f.resident, f.threads = status(w.pid, "RssAnon"), status(w.pid, "VmRSS"), status(w.pid, "Threads")
	dir := fmt.Sprintf("/proc/%d/fd", w.pid)
	all, _ := os.ReadDir(dir)
	for _, fd := range all {
		if to, _ := os.Readlink(filepath.Join(dir, fd.Name())); filepath.Base(filepath.Dir(to)) != "store" {
			f.descriptors++
		}
	}
	_ = filepath.WalkDir(w.data(), func(path string, d fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && d.Type().IsRegular() && syscall.Stat(path, &st) == nil {
			f.disk += st.Blocks * 512 // Badger's log is sparse
		}
		return nil
	})
	return f
}

// goroutines ends the daemon so that it lists them, and counts.
func (w *world) goroutines() (int, error) {
	_ = syscall.Kill(w.pid, syscall.SIGQUIT)
	w.gone()
	n := strings.Count(w.log.String(), "\ngoroutine ")
	if n == 0 {
		return 0, fmt.Errorf("the daemon did not list its goroutines: %s", tail(w.log.String()))
	}
	return n, nil
}
