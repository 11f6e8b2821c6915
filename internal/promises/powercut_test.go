//go:build linux

package promises

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cutDisk is a file system of its own, the file that stands for its disk, and a world that lives on it. What a program
// wrote and did not sync is in the kernel's memory, and not in that file.
type cutDisk struct {
	w     *world
	dir   string // of the images; in memory
	image string
	cuts  int
}

// onDisk moves the world's home onto one. The binary stays where it is.
func (w *world) onDisk() *cutDisk {
	w.t.Helper()
	d := &cutDisk{w: w, dir: w.home}
	d.image = d.next()
	w.home = filepath.Join(d.dir, "home")
	w.must(os.Mkdir(w.home, 0o700))
	w.must(os.WriteFile(d.image, nil, 0o600))
	w.must(os.Truncate(d.image, 600<<20))
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-N", "4096", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", d.image)
	out, err := mkfs.CombinedOutput()
	if err == nil {
		out, err = d.mount()
	}
	if err != nil {
		w.t.Skipf("a power cut is tried on a file system of its own, and none can be made and mounted here (it needs root, loop devices and mkfs.ext4): %v %s", err, out)
	}
	w.t.Cleanup(func() {
		w.endAll()
		d.unmount()
	})
	return d
}

func (d *cutDisk) next() string {
	d.cuts++
	return filepath.Join(d.dir, fmt.Sprintf("disk-%d", d.cuts))
}

// mount mounts the image. The kernel writes nothing back by itself for ten minutes, so that what survives was synced.
func (d *cutDisk) mount() ([]byte, error) {
	return exec.Command("mount", "-o", "loop,noatime,commit=600", d.image, d.w.home).CombinedOutput()
}

func (d *cutDisk) unmount() {
	d.w.t.Helper()
	d.w.eventually("the disk is let go of", func() error { return syscall.Unmount(d.w.home, 0) })
}

// sync is for what a test wrote by itself.
func (d *cutDisk) sync() {
	d.w.t.Helper()
	d.w.must(exec.Command("sync", "-f", d.w.home).Run())
}

// cut ends the daemon and the power: what is read from then on is what the disk had in that instant.
func (d *cutDisk) cut(s *served) {
	w := d.w
	w.t.Helper()
	s.kill()
	w.endAll() // a command whose daemon was killed starts another
	old, cut := d.image, d.next()
	if out, err := exec.Command("cp", "--sparse=always", old, cut).CombinedOutput(); err != nil {
		w.t.Fatalf("%v %s", err, out)
	}
	d.unmount()
	w.must(os.Remove(old))
	d.image = cut
	if out, err := d.mount(); err != nil { // which replays its journal
		w.t.Fatalf("mounting the disk after a power cut: %v %s", err, out)
	}
}

// TestG7APowerCutLosesNothingAcknowledged: the power goes at random moments, or on an answer, while 32 callers lease,
// renew and release and an admin rotates, stores and revokes. What was acknowledged is there; what was not is whole or
// not there; the trail verifies.
func TestG7APowerCutLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	cuts, longest, rests, big := 2, 100*time.Millisecond, 2, 4
	if os.Getenv("KEYLEASE_TEST_LOOPS") != "" {
		cuts, longest, rests, big = 20, 100*time.Millisecond, 5, 16
	}
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		cuts, longest, rests, big = 40, 400*time.Millisecond, 5, 16
	}
	w := newWorld(t)
	d := w.onDisk()

	// What made the store a moment ago is on the disk, too: folders, key, anchor and all.
	s := w.serve()
	w.seed(secretOf("first", ""))
	d.cut(s)
	s = w.serve()
	if !strings.Contains(w.ok("ls"), "first") {
		t.Fatal("what was stored first is gone")
	}
	s.kill()

	w.configure(killedConfig)
	w.policy(openPolicy)
	d.sync()
	k, s := newKilled(w)
	w.seed(secretOf("turned", ""))
	turned, stored := []string{valueOf("turned")}, map[string]bool{}
	for n := range cuts {
		time.Sleep(10*time.Millisecond + rand.N(longest))
		turned = append(turned, fmt.Sprintf("%s-%d", valueOf("turned"), n))
		if o := w.cliIn(turned[len(turned)-1], "rotate", "turned"); o.code != 0 {
			t.Fatal(o)
		}
		var items []string
		for i := range big { // so that tables are written, too
			name := fmt.Sprintf("big-%d-%d", n, i)
			stored[name] = true
			items = append(items, fmt.Sprintf("name: %s, type: generic-secret, value: %q", name, strings.Repeat("fake-", 12_000)))
		}
		w.seed(items...)
		switch n % 3 {
		case 0:
			k.killOnAnswer(s, longest)
		case 1:
			k.revoke(s, fmt.Sprintf("web-%d", rand.IntN(killedIdentities)), rand.N(longest))
		}
		d.cut(s)
		s = w.serve()
		k.front.Store(&s.addr)
		if n%rests == rests-1 || n == cuts-1 {
			k.check()
		} else {
			w.ok("audit", "verify", "--key", k.fingerprint)
		}
		k.holds(s, turned, stored)
		if t.Failed() {
			t.Fatalf("after %d power cuts", n+1)
		}
	}
	k.stop()
	k.check()
	t.Logf("%d power cuts; %s", cuts+1, k.sum())
}

// holds checks what an admin was told: the newest value is given, and what was stored is there.
func (k *killed) holds(s *served, turned []string, stored map[string]bool) {
	w := k.w
	w.t.Helper()
	if got, err := k.callers[0].web.fresh(s).try("lease_credential", args{"credential": "turned", "ttl": "1s", "purpose": fmt.Sprint("turn ", len(turned))}); err != nil || got.get("value") != turned[len(turned)-1] {
		w.t.Errorf("rotated %d times, and lent is %v %s", len(turned)-1, err, got.raw)
	}
	k.aside++
	var list struct {
		Credentials []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(w.ok("ls", "--json")), &list); err != nil {
		w.t.Fatal(err)
	}
	there := map[string]bool{}
	for _, c := range list.Credentials {
		there[c.Name] = true
	}
	for name := range stored {
		if !there[name] {
			w.t.Errorf("%s was stored, and is gone", name)
		}
	}
}

// fresh is the same caller on a connection of its own.
func (c *web) fresh(s *served) *web { return c.w.web(s.addr, c.token, true) }
