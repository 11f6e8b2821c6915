// Package wholefile makes files that are whole and on disk, or not there at all. A crash in between leaves at most a
// hidden file beside, with the name of the one that was to be.
package wholefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// ErrUnsynced: the file is there and whole, and whether its name would be after a power cut is not known.
var ErrUnsynced = errors.New("the folder could not be synced")

// New makes path, for us alone (0600), with what fill writes. It never replaces a file: fs.ErrExist. An error of fill is
// returned as it is.
func New(path string, fill func(*os.File) error) error {
	return place(path, fill, os.Link) // unlike rename, it never replaces
}

// NewAnywhere is New also where a disk has no links, as sticks have none: there the name is free a moment before.
func NewAnywhere(path string, fill func(*os.File) error) error {
	return place(path, fill, func(tmp, path string) error {
		err := os.Link(tmp, path)
		if errors.Is(err, syscall.EPERM) || errors.Is(err, errors.ErrUnsupported) {
			if _, there := os.Lstat(path); errors.Is(there, fs.ErrNotExist) {
				return os.Rename(tmp, path)
			}
		}
		return err
	})
}

// Replace puts data in the place of path, or makes it, with mode.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return place(path, func(f *os.File) error {
		_, err := f.Write(data)
		return errors.Join(err, f.Chmod(mode))
	}, os.Rename)
}

func place(path string, fill func(*os.File) error, name func(tmp, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return fmt.Errorf("making a file beside %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	if err := fill(f); err != nil {
		_ = f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := name(f.Name(), path); err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	if err := SyncFolder(dir); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsynced, err)
	}
	return nil
}

// SyncFolder makes the names in dir durable, where the system and the disk know of that.
func SyncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
