//go:build linux

package promises

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// holder is the pid that the daemon of this world wrote into its lock; 0 where there is none.
func (w *world) holder() int {
	var note struct {
		PID int `json:"pid"`
	}
	data, _ := os.ReadFile(filepath.Join(w.data(), "lock"))
	_ = json.Unmarshal(data, &note)
	return note.PID
}

func (w *world) answers() bool {
	conn, err := net.DialTimeout("unix", w.socket(), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// processes lists this world's live keylease processes that were started with this verb; "" lists all.
func (w *world) processes(verb string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		text, _ := os.ReadFile(path)
		argv := strings.Split(string(text), "\x00")
		if argv[0] == w.bin && (verb == "" || len(argv) > 1 && argv[1] == verb) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// killDaemon ends whatever daemon runs here, however it was started, and returns its pid.
func (w *world) killDaemon() int {
	w.t.Helper()
	pids := w.processes("serve")
	if len(pids) != 1 {
		w.t.Fatalf("want one daemon, there are %v", pids)
	}
	w.must(syscall.Kill(pids[0], syscall.SIGKILL))
	w.gone(pids[0])
	return pids[0]
}

// stopDaemon asks whatever daemon runs here to end, and waits until it has.
func (w *world) stopDaemon() {
	w.t.Helper()
	for _, pid := range w.processes("serve") {
		w.must(syscall.Kill(pid, syscall.SIGTERM))
		w.gone(pid)
	}
}

// gone waits until the process has let go of all it had open: a zombie has, one that has only lost its memory has not.
func (w *world) gone(pid int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("process %d is gone", pid), func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, state, _ := strings.Cut(string(stat), ") ")
		if err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X") {
			return errors.New(string(stat))
		}
		return nil
	})
}

// endAll ends what is left, relays first: they would start another daemon.
func (w *world) endAll() {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		left := append(w.processes("mcp"), w.processes("")...)
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	w.t.Errorf("these processes would not end: %v", w.processes(""))
}
