//go:build linux

package promises

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// elsewhere is another machine: a HOME that has of w only what its owner keeps beside his backups.
func (w *world) elsewhere() *world {
	w.t.Helper()
	other := newWorld(w.t)
	for _, name := range []string{"root.key", "policy.yaml", "keylease.yaml"} {
		if data, err := os.ReadFile(filepath.Join(w.config(), name)); err == nil {
			other.write(filepath.Join(other.config(), name), string(data))
		}
	}
	return other
}

// restoredJSON is what restore says.
type restoredJSON struct {
	Backup struct {
		HeadSeq uint64 `json:"head_seq"`
	} `json:"backup"`
	Store struct {
		Credentials, Versions, Leases, Tokens int
	} `json:"store"`
	Missing uint64 `json:"missing"`
}

// TestABackupMadeWhileSixteenLeaseIsWholeElsewhere: trial G12. What was acknowledged before the backup began is in it;
// another machine with the same root key restores it, verifies the trail against the noted key, and lends.
func TestABackupMadeWhileSixteenLeaseIsWholeElsewhere(t *testing.T) {
	t.Parallel()
	const callers = 16
	w := newWorldOn(t, os.TempDir()) // on a disk that takes its time
	w.configure("limits: {callRate: 0}\n")
	w.policy(openPolicy)
	s := w.serve()
	print := regexp.MustCompile(`SHA256:\S{43}`).FindString(s.log.String())
	w.seed(secretOf("db", ""))
	token, tokenID := w.token("web")
	over := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var enough atomic.Bool
	var work sync.WaitGroup
	for range callers {
		work.Go(func() {
			c := w.web(s.addr, token, true)
			c.over = over
			for !enough.Load() {
				got, err := c.try("lease_credential", args{"credential": "db", "ttl": "1h"})
				if err != nil || got.refused {
					t.Errorf("%v %s", err, got.raw)
					return
				}
				mu.Lock()
				acknowledged[got.lease()] = true
				mu.Unlock()
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	mu.Lock()
	before := map[string]bool{}
	for id := range acknowledged {
		before[id] = true
	}
	mu.Unlock()
	file := filepath.Join(w.home, "backup")
	w.ok("backup", file)
	enough.Store(true)
	work.Wait()
	if info, err := os.Lstat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if len(before) < callers {
		t.Fatalf("%d leases only before the backup", len(before))
	}

	kept := w.elsewhere()
	var did restoredJSON
	kept.json(&did, "restore", file, "--keep-leases")
	if did.Store.Credentials != 1 || did.Store.Versions != 1 || did.Store.Leases < len(before) {
		t.Errorf("%+v, and %d were acknowledged", did, len(before))
	}
	there := kept.serve()
	if out := kept.ok("audit", "verify", "--key", print); !strings.Contains(out, "authenticated") {
		t.Error(out)
	}
	live := kept.leases()
	for id := range before {
		if _, is := live[id]; !is {
			t.Errorf("lease %s was acknowledged before the backup, and is not there", id)
		}
	}
	if got, err := kept.web(there.addr, token, true).try("lease_credential", args{"credential": "db"}); err == nil && !got.refused {
		t.Errorf("a token works on after a restore: %s", got.raw)
	}
	var fresh struct {
		Token string `json:"token"`
	}
	kept.json(&fresh, "token", "rotate", tokenID)
	if got := call(t, kept.web(there.addr, fresh.Token, true), "lease_credential", args{"credential": "db", "delivery": "value"}); got.get("value") != valueOf("db") {
		t.Errorf("what is lent after the restore: %s", got.code())
	}
	if all := kept.audit(); len(find(all, "store.restored")) != 1 || uint64(len(all)) <= did.Backup.HeadSeq {
		t.Errorf("the trail has %d entries and does not tell of the restore", len(all))
	}

	ended := w.elsewhere()
	ended.ok("restore", file)
	ended.serve()
	if n := len(ended.leases()); n != 0 {
		t.Errorf("%d leases go on though nobody asked for that", n)
	}
	ended.eventually("each lease has its end in the trail", func() error {
		all := ended.audit()
		if over := len(find(all, "lease.revoked")); over < did.Store.Leases {
			return fmt.Errorf("%d of %d", over, did.Store.Leases)
		}
		return nil
	})
	ended.ok("audit", "verify", "--key", print)
	t.Logf("%d leases before the backup, %d in it", len(before), did.Store.Leases)
}

// TestABadBackupIsRefusedWhole: each region of the file changed, the file cut, another key, another store's file: named,
// with its exit code, and nothing is left behind.
func TestABadBackupIsRefusedWhole(t *testing.T) {
	t.Parallel()
	w := lived(t)
	file := filepath.Join(w.home, "backup")
	w.ok("backup", file)
	data, err := os.ReadFile(file)
	w.must(err)
	other := w.elsewhere()
	bad := filepath.Join(other.home, "bad")
	header := 12 + int(binary.BigEndian.Uint32(data[8:]))
	refused := func(what string, b []byte, code int, says string) {
		t.Helper()
		other.must(os.WriteFile(bad, b, 0o600))
		if o := other.cli("restore", bad); o.code != code || !strings.Contains(o.err, says) {
			t.Errorf("%s: %s", what, o)
		}
		if left, _ := os.ReadDir(filepath.Dir(other.data())); len(left) > 0 {
			t.Fatalf("%s: %s was left", what, left[0].Name())
		}
	}
	for what, at := range map[string]int{"magic": 3, "length of the header": 9, "header": header / 2, "sum": header + 3, "kind of a frame": header + 32,
		"length of a frame": header + 35, "nonce": header + 39, "first frame": header + 80, "middle": len(data) / 2, "end": len(data) - 40, "last byte": len(data) - 1} {
		b := bytes.Clone(data)
		b[at] ^= 1
		refused(what+" changed", b, 9, "the backup is not what was written: ")
	}
	for _, at := range []int{0, 5, header / 2, header + 32, len(data) / 2, len(data) - 1} {
		refused(fmt.Sprintf("cut at %d of %d", at, len(data)), data[:at], 9, "the backup is not what was written: it is cut off at byte "+fmt.Sprint(at))
	}
	refused("something added", append(bytes.Clone(data), data...), 9, "added")
	refused("no backup", []byte(strings.Repeat("no backup at all ", 100)), 9, "no backup")

	stranger := lived(t)
	theirs := filepath.Join(stranger.home, "backup")
	stranger.ok("backup", theirs)
	b, err := os.ReadFile(theirs)
	w.must(err)
	refused("another store's", b, 6, "root key")
	other.must(os.Rename(filepath.Join(other.config(), "root.key"), filepath.Join(other.home, "aside")))
	refused("no root key", data, 6, "the root key is not at")
	other.must(os.Rename(filepath.Join(other.home, "aside"), filepath.Join(other.config(), "root.key")))

	// Where it would go, and where it comes from.
	other.refused(3, "restore", filepath.Join(other.home, "nothing"))
	other.refused(2, "restore", other.home)
	other.must(os.MkdirAll(other.data(), 0o700))
	other.write(filepath.Join(other.data(), "something"), "of somebody's")
	if o := other.refused(8, "restore", file); !strings.Contains(o.err, "move the folder away") {
		t.Error(o)
	}
	other.must(os.RemoveAll(other.data()))
	other.must(os.Symlink(other.home, other.data()))
	other.refused(8, "restore", file)
	other.must(os.Remove(other.data()))
	other.must(os.Mkdir(other.data(), 0o755)) // empty, as a packager makes it
	other.ok("restore", file)
	if info, err := os.Stat(other.data()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	other.verified()

	w.refused(8, "backup", file)
	w.must(os.Symlink(filepath.Join(w.home, "nowhere"), filepath.Join(w.home, "link")))
	w.refused(8, "backup", filepath.Join(w.home, "link"))
	w.refused(3, "backup", filepath.Join(w.home, "no", "folder", "here"))
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, data) {
		t.Error("a backup that was there was changed")
	}
}

// TestARestoreThatIsKilledLeavesNothingHalf: at any moment there is no store, or a whole one.
func TestARestoreThatIsKilledLeavesNothingHalf(t *testing.T) {
	t.Parallel()
	w := lived(t)
	file := filepath.Join(w.home, "backup")
	w.ok("backup", file)
	kills, done := 10, 0
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		kills = 100
	}
	other := w.elsewhere()
	for range kills {
		cmd := exec.Command(other.bin, "restore", file)
		cmd.Env, cmd.Dir = other.env(), other.home
		other.must(cmd.Start())
		time.Sleep(rand.N(120 * time.Millisecond))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := os.Stat(other.data()); err != nil {
			continue
		}
		done++
		other.verified()
		other.stopDaemon()
		other.must(os.RemoveAll(other.data()))
	}
	if o := other.cli("restore", file); o.code != 0 {
		t.Fatal(o)
	}
	other.verified()
	t.Logf("%d of %d were faster than the kill", done, kills)
}

// TestADiskTooSmallForARestoreIsToldSo: and nothing is left on it.
func TestADiskTooSmallForARestoreIsToldSo(t *testing.T) {
	t.Parallel()
	w := lived(t)
	file := filepath.Join(w.home, "backup")
	w.ok("backup", file)
	other := w.elsewhere()
	disk := filepath.Dir(other.data())
	other.must(os.MkdirAll(disk, 0o700))
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=20m,mode=0700"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, 0) })
	o := other.cli("restore", file)
	if o.code == 0 || !strings.Contains(o.err, "is full") {
		t.Error(o)
	}
	if left, _ := os.ReadDir(disk); len(left) > 0 {
		t.Errorf("%s was left", left[0].Name())
	}
}
