package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestARestoreOntoAFullDiskIsRefusedBeforeBadgerIsOpened: Badger's log is a mapped file, and the first byte of it that
// the disk has no room for is the end of the process.
func TestARestoreOntoAFullDiskIsRefusedBeforeBadgerIsOpened(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	record(t, s, leaseCreated(0))
	file, _ := backup(t, s)
	o := elsewhere(t)
	begun := false
	o.Free = func(dir string) (uint64, error) {
		left, _ := os.ReadDir(storeDir(dir))
		begun = begun || len(left) > 0
		return reserve - 1, nil
	}
	if _, err := Unpack(t.Context(), bytes.NewReader(file), o, keyOf(o)); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if begun {
		t.Error("Badger was opened on a disk that nobody had looked at")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Dir), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestTheProbeFollowsNoLink: what it writes is nothing, and would be the end of what the link leads to.
func TestTheProbeFollowsNoLink(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("all there is"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, filepath.Join(s.dir, "probe")); err != nil {
		t.Fatal(err)
	}
	if err := s.probe(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(precious); string(b) != "all there is" {
		t.Errorf("%d bytes: %v", len(b), err)
	}
}
