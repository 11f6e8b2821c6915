package store

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"keylease/internal/secret"
)

// TestTheLogThatIsWrittenIsTheLogThatIsSynced: Badger goes on to another log when one is full and when keys are
// destroyed; each transaction has to be synced where it lies.
func TestTheLogThatIsWrittenIsTheLogThatIsSynced(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	logs := map[string]bool{}
	look := func(what string) {
		t.Helper()
		there, err := filepath.Glob(filepath.Join(storeDir(s.dir), "*.mem"))
		if err != nil || len(there) == 0 {
			t.Fatalf("%s: no logs: %v", what, err)
		}
		if newest := slices.Max(there); s.wal.file.Name() != newest {
			t.Fatalf("%s: %s is synced, %s is written", what, s.wal.file.Name(), newest)
		}
		logs[s.wal.file.Name()] = true
	}
	big := secret.New(bytes.Repeat([]byte{'x'}, 900<<10))
	for i := range 45 {
		c := leaseCreated(i)
		c.Values = []ValueWrite{{CredentialID: "cr_big", Version: i, Value: big}}
		record(t, s, c)
		look(fmt.Sprintf("write %d", i))
	}
	if err := s.Destroy([]ValueRef{{CredentialID: "cr_big", Version: 3}}); err != nil {
		t.Fatal(err)
	}
	record(t, s, leaseCreated(99))
	look("after destroying")
	if len(logs) < 4 {
		t.Errorf("only %d logs were written: the test shows nothing", len(logs))
	}
}
