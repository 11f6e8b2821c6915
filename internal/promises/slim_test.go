//go:build linux

package promises

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// A relay that waits for its client is small, and goes on to work: there is one for each client, all day. What
// is its own is 3.7 MB, and the rest the program's file.
func TestAWaitingRelayIsSmall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	a := w.agent("claude")
	call(t, a, "list_credentials", args{})
	relays := w.processes("mcp")
	if len(relays) != 1 {
		t.Fatalf("want one relay, there are %v", relays)
	}
	w.eventually("the relay is small", func() error {
		anon, all := memoryOf(relays[0], "RssAnon"), memoryOf(relays[0], "VmRSS")
		if anon > 5<<10 || all > 15<<10 {
			return fmt.Errorf("it has %d kB of its own, %d kB in all", anon, all)
		}
		return nil
	})
	if !strings.Contains(call(t, a, "list_credentials", args{}).raw, `"db"`) {
		t.Error("it does not work any more")
	}
}

// memoryOf is a line of a process's status, in kB.
func memoryOf(pid int, what string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), what+":")
	n, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return n
}
