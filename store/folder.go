package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// trustFolder makes sure that dir is a folder of our own which nobody else can look into. With create it is made, and
// an empty one of ours is closed to others.
func trustFolder(dir string, create bool) error {
	if err := makeFolder(dir, create); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNoStore, dir)
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%w: %s is a symbolic link: name the folder it leads to", ErrFolder, dir)
	case !info.IsDir():
		return fmt.Errorf("%w: %s is not a folder", ErrFolder, dir)
	}
	return closedToOthers(dir, info, create)
}

func makeFolder(dir string, create bool) error {
	if !create {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder: %w", err)
	}
	return nil
}
