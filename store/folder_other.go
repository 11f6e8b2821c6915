//go:build !unix

package store

import (
	"io/fs"
	"os"
)

// Where there are no unix modes, a folder is as private as the system made it.

func privateFiles() {}

func closedToOthers(string, fs.FileInfo, bool) error { return nil }

func trustAnchorFolder(dir string, create bool) error { return makeFolder(dir, create) }

func openPlain(path string, flag int) (*os.File, error) { return os.OpenFile(path, flag, 0o600) }

func lockFile(*os.File) error { return nil }
