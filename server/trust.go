package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// onlyRootAnd reports an error unless root and uid alone decide what lies at path: it and every folder above it belong
// to one of the two, and nobody else may write in them. In a folder where everybody may make things (/tmp) only what
// is root's or our own counts: anybody could have been there first, uid too. What is not there yet is judged by the
// folders that are. Mode bits only: an ACL that grants more is root's or uid's own doing, and is not looked at.
func onlyRootAnd(uid int, path string) error {
	at, rest := "/", steps(path)
	open := false // at is a folder where everybody may make things
	for links := 0; ; {
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking at %s: %w", at, err)
		}
		owner, mode := ownerOf(info), info.Mode()
		if owner != 0 && owner != uid || open && owner != 0 && owner != os.Geteuid() {
			return fmt.Errorf("%s belongs to uid %d", at, owner)
		}
		if mode.Type() == fs.ModeSymlink {
			to, err := os.Readlink(at)
			if links++; err != nil || links > 16 {
				return fmt.Errorf("following the link %s: %w", at, errors.Join(err, errors.New("too many links")))
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(at), to)
			}
			at, rest, open = "/", append(steps(to), rest...), false
			continue
		}
		writers := mode.Perm() & 0o022
		if groupOf(info) == 0 {
			writers &^= 0o020 // root's own group
		}
		open = writers != 0 && mode.IsDir() && mode&fs.ModeSticky != 0 && len(rest) > 0
		if writers != 0 && !open && mode.Type() != fs.ModeSocket { // of a socket the bits say who may connect
			return fmt.Errorf("others may write to %s (mode %04o)", at, mode.Perm())
		}
		if len(rest) == 0 {
			return nil
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

func steps(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' })
}
