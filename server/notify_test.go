//go:build linux || darwin

package server

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/lease"
)

// told waits for a file that the notified program writes when it is done.
func told(t *testing.T, path string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(path); err == nil {
			return string(data)
		}
	}
	t.Fatal("the program did not run")
	return ""
}

func script(t *testing.T, body string) (program, out string) {
	t.Helper()
	dir := t.TempDir()
	program, out = filepath.Join(dir, "tell"), filepath.Join(dir, "out")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+strings.ReplaceAll(body, "OUT", out)), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, out
}

func TestTheNotifiedProgramGetsTheQuestionAndNoEnvironment(t *testing.T) {
	t.Setenv("KEYLEASE_ROOT_KEY", "fake-canary-key")
	t.Setenv("HTTPS_PROXY", "http://fake-canary")
	program, out := script(t, "{ cat; env; pwd; } > OUT.new; mv OUT.new OUT\n")
	NewNotifier(context.Background(), []string{program}, "/home/of-the-operator", zerolog.Nop()).Notify(lease.ApprovalInfo{ID: "ap_1", Purpose: "$(id)"})
	text := told(t, out)
	if strings.Contains(text, "canary") || !strings.Contains(text, `"approval_id":"ap_1"`) || !strings.Contains(text, "$(id)") ||
		!strings.Contains(text, "HOME=/home/of-the-operator\n") || !strings.HasSuffix(text, "\n/\n") {
		t.Error(text)
	}
}

func TestANotifiedProgramThatHangsIsEndedWithItsChildren(t *testing.T) {
	program, out := script(t, "sleep 1000 & echo $! > OUT.new; mv OUT.new OUT; wait\n")
	n := NewNotifier(context.Background(), []string{program}, "/", zerolog.Nop())
	n.limit = 300 * time.Millisecond
	for range 3 * notifyMost { // more than run at a time, and nobody waits for them
		n.Notify(lease.ApprovalInfo{ID: "ap_1"})
	}
	pid, err := strconv.Atoi(strings.TrimSpace(told(t, out)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(n.slots) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it still runs")
		}
	}
	for end := time.Now().Add(20 * time.Second); alive(pid) && !zombie(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its child still runs")
		}
	}
}

// zombie reports whether a process has ended and nobody asked for its code, as in a container without an init.
func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(stat), ") Z ")
}
