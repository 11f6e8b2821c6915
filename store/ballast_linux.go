package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate makes a file of which every byte has its place on the disk. On a disk in memory it would take the memory of
// who needs it: errors.ErrUnsupported.
func allocate(path string, size int64) error {
	var fs unix.Statfs_t
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err = unix.Fstatfs(int(f.Fd()), &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		err = errors.ErrUnsupported
	}
	for err == nil {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); err != unix.EINTR {
			break
		}
		err = nil
	}
	if err == unix.EOPNOTSUPP {
		err = errors.ErrUnsupported
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}
