//go:build unix

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// privateFiles makes all that this process creates readable by its owner only: Badger itself would make its files 0644.
func privateFiles() { syscall.Umask(0o077) }

// closedToOthers makes sure that a folder is ours and that nobody else can look into it. With create an empty one of
// ours is closed to others.
func closedToOthers(dir string, info fs.FileInfo, create bool) error {
	switch {
	case owner(info) != os.Geteuid():
		return notOurs(dir, info, "chown -R")
	case info.Mode().Perm()&0o077 != 0:
		if left, err := os.ReadDir(dir); create && err == nil && len(left) == 0 {
			return os.Chmod(dir, 0o700)
		}
		return fmt.Errorf("%w: %s is open to others (mode %04o): chmod 700 %s", ErrFolder, dir, info.Mode().Perm(), dir)
	}
	return nil
}

// trustAnchorFolder is trustFolder for the folder of the root key: others may look, not write.
func trustAnchorFolder(dir string, create bool) error {
	if err := makeFolder(dir, create); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // a missing anchor is told apart by openAnchor
	case err != nil:
		return err
	case owner(info) != os.Geteuid() && owner(info) != 0:
		return notOurs(dir, info, "chown")
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: others can write to %s (mode %04o): chmod go-w %s", ErrFolder, dir, info.Mode().Perm(), dir)
	}
	return nil
}

func notOurs(dir string, info fs.FileInfo, chown string) error {
	return fmt.Errorf("%w: %s belongs to uid %d, not to you (uid %d): run keylease as its owner, or: %s %d %s",
		ErrFolder, dir, owner(info), os.Geteuid(), chown, os.Geteuid(), dir)
}

func owner(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}

// openPlain opens a regular file of our own, following no link.
func openPlain(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", ErrFolder, path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || owner(info) != os.Geteuid()) {
		err = fmt.Errorf("%w: %s is not a plain file of yours", ErrFolder, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockFile takes the lock of f, which goes with the file; ErrLocked: another has it.
func lockFile(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return fmt.Errorf("taking its lock: %w", err)
	}
	return nil
}
