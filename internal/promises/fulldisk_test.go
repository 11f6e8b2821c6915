//go:build linux

package promises

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dataDisk puts the data folder, and nothing else, on a file system of its own.
func (w *world) dataDisk(mib int64, options string) (image string) {
	w.t.Helper()
	image = filepath.Join(w.home, "data.img")
	w.must(os.MkdirAll(w.data(), 0o700))
	w.must(os.WriteFile(image, nil, 0o600))
	w.must(os.Truncate(image, mib<<20))
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-N", "1024", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", image).CombinedOutput()
	if err == nil {
		out, err = w.mountData(image, options)
	}
	if err != nil {
		w.t.Skipf("a full disk is tried on a file system of its own, and none can be made and mounted here (it needs root, loop devices and mkfs.ext4): %v %s", err, out)
	}
	w.t.Cleanup(func() {
		w.endAll()
		w.unmountData()
	})
	return image
}

func (w *world) mountData(image, options string) ([]byte, error) {
	out, err := exec.Command("mount", "-o", "loop,noatime,"+options, image, w.data()).CombinedOutput()
	if err == nil {
		err = os.Chmod(w.data(), 0o700)
	}
	return out, err
}

func (w *world) unmountData() {
	w.t.Helper()
	w.eventually("the disk is let go of", func() error { return syscall.Unmount(w.data(), 0) })
}

func (w *world) free() int64 {
	w.t.Helper()
	var fs syscall.Statfs_t
	w.must(syscall.Statfs(w.data(), &fs))
	return int64(fs.Bavail) * fs.Bsize
}

// hog is somebody else's file on the same disk.
func (w *world) hog() string { return filepath.Join(w.data(), "somebody-else's") }

// leave takes at once all of the disk but so many bytes.
func (w *world) leave(free int64) {
	w.t.Helper()
	f, err := os.OpenFile(w.hog(), os.O_CREATE|os.O_WRONLY, 0o600)
	w.must(err)
	defer f.Close()
	info, err := f.Stat()
	w.must(err)
	if more := w.free() - free; more > 0 {
		w.must(syscall.Fallocate(int(f.Fd()), 0, info.Size(), more))
	}
}

// fill takes what is left at 50 MB/s, and goes on taking what is given up until stop is closed.
func (w *world) fill(stop <-chan struct{}) {
	f, err := os.OpenFile(w.hog(), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-stop:
			tick.Stop()
			return
		case <-tick.C:
			if _, err := f.Write(chunk); err != nil { // then what is left
				_, _ = f.Write(chunk[:4096])
			}
		}
	}
}

func (s *served) readyz(want string) error {
	got, err := do("GET", "http://"+s.addr+"/readyz", "")
	if err == nil && !strings.Contains(got.body, want) {
		err = fmt.Errorf("%d %s", got.status, got.body)
	}
	return err
}

// TestG4AFullDisk: somebody else fills the disk of the data folder at 50 MB/s while 32 callers lease, renew and release.
// Nothing dies. First nothing new is lent; then what ends takes effect and is not acknowledged; when there is room
// again it is recorded, by itself. A daemon that is killed meanwhile starts frozen, once there is room to start.
func TestG4AFullDisk(t *testing.T) {
	t.Parallel()
	rounds := 1
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		rounds = 4
	}
	w := newWorld(t)
	w.dataDisk(400, "")
	w.configure(killedConfig)
	w.policy(openPolicy)
	k, s := newKilled(w)
	w.eventually("the ballast is there", func() error {
		info, err := os.Stat(filepath.Join(w.data(), "ballast"))
		if err == nil && info.Sys().(*syscall.Stat_t).Blocks*512 < 48<<20 {
			err = errors.New("it takes no room")
		}
		return err
	})
	token, _ := w.token("tester")
	me := w.web(s.addr, token, true)
	lend := func() answer {
		got, err := me.try("lease_credential", args{"credential": "api", "ttl": "1h", "purpose": fmt.Sprint("aside ", k.aside)})
		w.must(err)
		if !got.refused {
			k.aside++
		}
		return got
	}
	for range rounds {
		first, second := lend(), lend()
		w.leave(100 << 20)
		stop := make(chan struct{})
		go w.fill(stop)
		w.eventually("nothing new is lent", func() error {
			if got := lend(); got.code() != "unavailable" || got.get("error", "reason") != "store_full" {
				return errors.New(got.raw)
			}
			return nil
		})
		if got, err := me.try("list_credentials", args{}); err != nil || got.refused {
			t.Errorf("list: %v %s", err, got.raw)
		}
		w.eventually("the disk is full", func() error { return s.readyz(`"store":"full"`) })
		if err := s.readyz(`"store_since":"2`); err != nil {
			t.Error(err)
		}
		for range 2 {
			begun := time.Now()
			got, err := me.try("release_lease", args{"lease_id": first.lease()})
			w.must(err)
			if got.code() != "unavailable" || !strings.Contains(got.raw, "has ended") {
				t.Errorf("a release on a full disk: %s", got.raw)
			}
			if took := time.Since(begun); took > 6*time.Second {
				t.Errorf("it took %v to say so", took)
			}
		}
		live := w.leases()
		if _, is := live[first.lease()]; is {
			t.Error("a lease that was released on a full disk is live")
		}
		if _, is := live[second.lease()]; !is {
			t.Error("a lease that nobody ended is gone")
		}
		if o := w.cli("ls"); o.code != 0 {
			t.Errorf("ls: %s", o)
		}
		close(stop)
		w.must(os.Remove(w.hog()))
		w.eventually("it lends again", func() error {
			if got := lend(); got.refused {
				return errors.New(got.raw)
			}
			return s.readyz(`"store":"ok"`)
		})
		for _, l := range []answer{first, second} {
			if got, err := me.try("release_lease", args{"lease_id": l.lease()}); err != nil || got.get("status") != "released" {
				t.Errorf("released again: %v %s", err, got.raw)
			}
		}
		k.check()
		if t.Failed() {
			return
		}
	}

	// Killed while it owes.
	owed := lend()
	open := k.shut() // what others fill at more than 50 MB/s may kill a daemon that writes meanwhile
	w.leave(10 << 20)
	time.Sleep(50 * time.Millisecond)
	got, err := me.try("release_lease", args{"lease_id": owed.lease()})
	w.must(err)
	if !got.refused { // the ballast was there
		t.Logf("the ballast was let go for it: %s", got.raw)
		owed = lend()
	}
	w.leave(10 << 20)
	open()
	w.eventually("something is owed", func() error { return s.readyz(`"store":"full"`) })
	if _, err := me.try("release_lease", args{"lease_id": owed.lease()}); err != nil {
		t.Fatal(err)
	}
	s.kill()
	if o := w.refused(1, "serve", "--http", "127.0.0.1:0"); !strings.Contains(o.err, "MiB") || !strings.Contains(o.err, "hint: make room on that disk") {
		t.Errorf("a start on a full disk says: %s", o)
	}
	w.must(os.Remove(w.hog()))
	s = w.serve()
	k.front.Store(&s.addr)
	if err := s.readyz(`"lending":"frozen"`); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.log.String(), "FROZEN") || !strings.Contains(s.log.String(), "may be live again") {
		t.Errorf("serve does not say why it is frozen: %s", s.log)
	}
	w.ok("thaw")
	k.stop()
	k.check()
	t.Log(k.sum())
}

// TestG4ADiskThatFails: the file system of the data folder gives up, as one does that finds itself damaged: every write
// fails from then on. Each verb is refused in bounded time, list and /readyz answer; after the disk was repaired a new
// start has everything that was acknowledged.
func TestG4ADiskThatFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := w.dataDisk(300, "errors=remount-ro")
	w.configure(killedConfig)
	w.policy(openPolicy)
	k, s := newKilled(w)
	time.Sleep(300 * time.Millisecond)
	device, err := exec.Command("findmnt", "-n", "-o", "SOURCE", w.data()).Output()
	w.must(err)
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(device))), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("test"), 0o600); err != nil {
		t.Skipf("this kernel has no error for ext4 to be told of: %v", err)
	}
	w.eventually("it is seen", func() error {
		if s.readyz(`"store":"read-only"`) != nil {
			return s.readyz(`"store":"failing"`)
		}
		return nil
	})
	token := k.callers[0].web.token
	me := w.web(s.addr, token, true)
	for tool, a := range map[string]args{"lease_credential": {"credential": "api", "purpose": "aside"}, "release_lease": {"lease_id": "ls_aaaaaaaaaaaaaaaaaaaaaaaaaa"}} {
		begun := time.Now()
		got, err := me.try(tool, a)
		if err != nil || got.code() != "unavailable" || time.Since(begun) > 6*time.Second {
			t.Errorf("%s after %v: %v %s", tool, time.Since(begun), err, got.raw)
		}
	}
	if got, err := me.try("list_credentials", args{}); err != nil || got.refused {
		t.Errorf("list: %v %s", err, got.raw)
	}
	w.leases()
	s.kill()
	open := k.shut()
	w.endAll()
	w.unmountData()
	if out, err := exec.Command("e2fsck", "-p", "-f", image).CombinedOutput(); err != nil && len(out) == 0 { // 1: repaired
		t.Fatalf("%v %s", err, out)
	}
	if out, err := w.mountData(image, "errors=remount-ro"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	// A file system that gives up in the middle of a sync may say yes to it and lose it: Linux does not tell when it can't
	// note any more that a block of a file was filled. Nothing here can prevent that, but it has to be found.
	if o := w.cli("leases"); o.code != 0 {
		if !strings.Contains(o.err, "events are missing") {
			t.Fatal(o)
		}
		t.Logf("the file system lost what it had synced, and the start is refused: %s", o.err)
		return
	}
	s = w.serve()
	k.front.Store(&s.addr)
	open()
	k.stop()
	k.check()
	t.Log(k.sum())
}
