package store

import (
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// TestMergingLeavesOldTablesAlone: what is written does not grow with what is there. The snapshots are in the way, as
// they are in a daemon's life: they change, and lie in the same tables as the newest groups.
func TestMergingLeavesOldTablesAlone(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	purpose := strings.Repeat("x", 2000)
	n := 0
	fill := func(tables int) map[int]badger.TableInfo {
		t.Helper()
		for range tables {
			var last *Pending
			for range memTable / 2200 {
				c := leaseCreated(n)
				c.Entry.Purpose = purpose
				last, n = s.Submit(c), n+1
			}
			if _, err := last.Wait(); err != nil {
				t.Fatal(err)
			}
			if err := s.Snapshot([]byte("a snapshot")); err != nil {
				t.Fatal(err)
			}
		}
		merged := map[int]badger.TableInfo{}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			clear(merged)
			waiting := 0
			for _, table := range s.db.Tables() {
				if merged[int(table.ID)] = table; table.Level == 0 {
					delete(merged, int(table.ID))
					waiting++
				}
			}
			if waiting < 2 && len(merged) > 0 {
				return merged
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d tables wait", waiting)
			}
		}
	}
	old := fill(4)
	now := fill(6)
	gone := 0
	for id := range old {
		if _, there := now[id]; !there {
			gone++
		}
	}
	if len(old) < 3 || gone > 2 { // the newest of then, and the one with all that is no group
		t.Errorf("of %d tables %d were written anew when others came: now there are %d", len(old), gone, len(now))
	}
}
