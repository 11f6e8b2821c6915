package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"keylease/internal/wholefile"
	"keylease/server"
	"keylease/store"
)

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{Use: "backup FILE", Short: "Write everything that is stored to one sealed file, while keylease goes on lending", Args: exactly("FILE"),
		Long: `Write everything that is stored to one sealed file, while keylease goes on lending. FILE must not exist; - is stdout.

The file opens with the root key alone, which is not in it: keep a copy of that elsewhere. policy.yaml and keylease.yaml
are not in it either. What is destroyed later stays in backups made before. keylease restore FILE brings it back.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			to := args[0]
			if to == "-" {
				if a.json {
					return usagef("name a file", "--json and the backup can't both go to stdout")
				}
				if isTerminal(a.out) {
					return usagef("name a file, or lead it into a program", "a backup is not for a terminal")
				}
				return a.withAdmin(func(c *server.AdminClient) error {
					b, err := c.Backup(cmd.Context(), a.out)
					if err == nil {
						a.sayf("keylease: %s", copied(b))
					}
					return err
				})
			}
			if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				return backupExists(to, err)
			}
			if err := a.placeFor(to); err != nil {
				return err
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				b, err := writeBackup(to, func(out io.Writer) (store.Backup, error) { return c.Backup(cmd.Context(), out) })
				if err != nil {
					return err
				}
				return a.print(backedUp{to, b}, func(w io.Writer) { a.tellBackup(w, to, b) })
			})
		}}
}

type backedUp struct {
	File string `json:"file"`
	store.Backup
}

func copied(b store.Backup) string {
	return fmt.Sprintf("%s and %s, %d bytes; the trail up to event %d", plural(int(b.Records), "record"), plural(int(b.Versions), "value"), b.Bytes, b.HeadSeq)
}

func (a *app) tellBackup(w io.Writer, to string, b store.Backup) {
	fmt.Fprintf(w, "backup       %s (%s)\n", terminal(to), copied(b))
	s, err := a.settings(true)
	if err != nil {
		return
	}
	if source, create, err := a.keySource(s); err == nil && !create {
		if path, ok := keyPath(source, s); ok {
			fmt.Fprintf(w, "root key     %s (not in the backup, and nothing opens it without: keep a copy elsewhere)\n", path)
		} else {
			fmt.Fprintf(w, "root key     from %s (not in the backup, and nothing opens it without)\n", keyEnv)
		}
	}
}

func backupExists(path string, err error) error {
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	return fail(exitConflict, "choose another name, or remove it first", "there is something at %s already", terminal(path))
}

// placeFor refuses a file in a folder that is not there, and in the data folder: what is there is lost with the store that
// the file is kept for.
func (a *app) placeFor(path string) error {
	s, err := a.settings(true)
	if err != nil {
		return err
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(exitNotFound, "make it first, or name another", "there is no folder %s", terminal(filepath.Dir(path)))
	}
	if err != nil {
		return nil // who makes the file says it
	}
	data, err := filepath.EvalSymlinks(s.Data)
	if err != nil {
		return nil // a daemon of somewhere else
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return err
	}
	if folder == data || strings.HasPrefix(folder, data+string(filepath.Separator)) {
		return usagef("name one elsewhere, on another disk if there is one", "%s lies in the data folder, and would be lost with it", terminal(path))
	}
	return nil
}

// writeBackup makes path for us alone, whole and on disk, or not at all.
func writeBackup(path string, fill func(io.Writer) (store.Backup, error)) (b store.Backup, err error) {
	err = wholefile.NewAnywhere(path, func(f *os.File) error {
		b, err = fill(f)
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return b, backupExists(path, nil)
	}
	return b, err
}
