//go:build linux || darwin

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// freeBytes is what an ordinary user can still write where dir lies.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

// dropEmptyMemtables removes the 0-byte logs that a kill during Badger's rotation leaves and that fail its next open.
// It does so under Badger's own lock: for a process that is alive such a file is about to be used.
func dropEmptyMemtables(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // lets go of the lock
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s", ErrLocked, dir)
		}
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		if info, err := os.Lstat(log); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			if err := os.Remove(log); err != nil {
				return err
			}
		}
	}
	return nil
}
