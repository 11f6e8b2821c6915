package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"keylease/internal/wholefile"
)

// homeFolder is HOME, or what the system's user table says: MCP clients pass HOME but not XDG_*, and some pass nothing.
func homeFolder(env func(string) string) (string, error) {
	if home := env("HOME"); filepath.IsAbs(home) {
		return filepath.Clean(home), nil
	}
	u, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil || !filepath.IsAbs(u.HomeDir) {
		return "", fail(exitError, "set HOME", "HOME is not set and the system does not know a home folder for uid %d", os.Getuid())
	}
	return u.HomeDir, nil
}

// userName is what the environment of a daemon says about its user.
func userName() string {
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

// readTrusted reads a file that only its owner may have written: a plain file of ours or of root's, not reached over a
// symbolic link, without any of the bits in forbidden, of at most limit bytes.
func readTrusted(path string, limit int64, forbidden os.FileMode) ([]byte, error) {
	f, err := openTrusted(path, forbidden)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, limit)
}

func openTrusted(path string, forbidden os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|noWait, 0) // a pipe is opened too, and then refused: nobody may ever write to it
	if err != nil {
		if info, lerr := os.Lstat(path); lerr == nil && info.Mode()&os.ModeSymlink != 0 {
			return nil, fmt.Errorf("%s is a symbolic link, and could be made to lead elsewhere: name the file itself", path)
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = trusted(path, info, forbidden)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func trusted(path string, info os.FileInfo, forbidden os.FileMode) error {
	closed := bits(forbidden)
	if ownerOf(info) == 0 && groupOf(info) == 0 {
		forbidden &^= 0o040 // what systemd grants a service of its credentials (an ACL) shows in these bits
	}
	switch owner := ownerOf(info); {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a plain file", path)
	case owner != os.Geteuid() && owner != 0:
		return fmt.Errorf("%s belongs to uid %d, neither to you nor to root", path, owner)
	case info.Mode().Perm()&forbidden != 0:
		return fmt.Errorf("%s is open to others (mode %04o): chmod %s it", path, info.Mode().Perm(), closed)
	}
	return nil
}

func bits(forbidden os.FileMode) string {
	switch {
	case forbidden&0o040 != 0:
		return "go-rwx"
	case forbidden&0o004 != 0:
		return "0640" // its group may read it
	}
	return "go-w"
}

func readAll(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		clear(data)
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}

const ownFolder = "choose a folder of your own"

// makeFolder makes dir for us alone, and refuses one that somebody else could write in.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder %s: %w", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("looking at the folder %s: %w", dir, err)
	}
	if owner := ownerOf(info); owner != os.Geteuid() && owner != 0 {
		return fail(exitUnreachable, ownFolder, "the folder %s belongs to uid %d, neither to you nor to root", dir, owner)
	}
	if info.Mode().Perm()&0o022 != 0 {
		hint := "chmod go-w " + dir
		if ownerOf(info) != os.Geteuid() || info.Mode()&os.ModeSticky != 0 { // it is meant for everybody
			hint = ownFolder
		}
		return fail(exitUnreachable, hint, "others may write in the folder %s (mode %04o)", dir, info.Mode().Perm())
	}
	return nil
}

// writeNew makes path for us alone and on disk, or leaves it alone where it exists (fs.ErrExist). A crash in between
// leaves a file that is whole or none at all.
func writeNew(path string, data []byte) error {
	return wholefile.New(path, func(f *os.File) error { _, err := f.Write(data); return err })
}

// replace puts data in the place of the file at path, whole or not at all, and keeps its mode.
func replace(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return wholefile.Replace(path, data, info.Mode().Perm())
}
