//go:build !unix

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Where there are no unix modes, a folder is as private as the system made it.

func privateFiles() {}

func trustFolder(dir string, create bool) error {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the folder: %w", err)
		}
	}
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNoStore, dir)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%w: %s is not a folder", ErrFolder, dir)
	}
	return nil
}

func trustAnchorFolder(dir string, create bool) error {
	if create {
		return os.MkdirAll(dir, 0o700)
	}
	return nil
}

func openPlain(path string, flag int) (*os.File, error) { return os.OpenFile(path, flag, 0o600) }

func syncFolder(string) error { return nil }
