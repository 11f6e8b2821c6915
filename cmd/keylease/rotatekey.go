package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/internal/wholefile"
	"keylease/server"
	"keylease/store"
)

func (a *app) rotateKeyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "rotate-key", Short: "Replace the root key, while keylease goes on lending", Args: exactly(),
		Long: `Replace the root key, while keylease goes on lending. Names, tokens, leases and the trail stay; every stored value is
put under the new key, and nothing that keylease uses opens with the old one any more.

Where the root key is a file, keylease makes the new one and puts it in the place of the old. Else, or with
--new-root-key-file, you make it (openssl rand -hex 32) and put it where the old one comes from before the next start.

Backups made until then open with the old key only: keep a copy of it as long as you keep them, or make a new backup and
remove them. What serve --accept-loss put aside (lost-* in the data folder) opens with the old key too: remove it once
nobody needs it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var key []byte
			if cmd.Flags().Changed("new-root-key-file") {
				var err error
				if key, err = a.newRootKey(file); err != nil {
					return err
				}
				defer clear(key)
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				r, err := c.RotateKey(cmd.Context(), key)
				if err != nil {
					return err
				}
				return a.print(r, func(w io.Writer) { a.tellRotated(w, r) })
			})
		}}
	c.Flags().StringVar(&file, "new-root-key-file", "", "file that holds the new key, 32 bytes in hex or base64; - is stdin")
	return c
}

// newRootKey reads a key that the operator made.
func (a *app) newRootKey(file string) ([]byte, error) {
	var data []byte
	var err error
	if file == "-" {
		data, err = readAll(a.in, "stdin", 1024)
	} else {
		data, err = readTrusted(file, 1024, 0o077)
	}
	if err != nil {
		return nil, usagef("", "reading the new root key: %s", err)
	}
	defer clear(data)
	key, err := parseKey(data, file)
	if err != nil {
		return nil, usagef("a root key is 32 bytes, written as 64 hex digits or in base64: openssl rand -hex 32 makes one", "%s", err)
	}
	return key, nil
}

func (a *app) tellRotated(w io.Writer, r lease.KeyRotation) {
	fmt.Fprintf(w, "the root key was replaced: it is number %d of this store\n", r.Generation)
	s, err := a.settings(true)
	path, ok := keyPath(r.Source, s)
	switch {
	case err == nil && ok && r.Placed:
		fmt.Fprintf(w, "root key     %s (new: keep a copy elsewhere; without it nothing can be read)\n", path)
	case err == nil && ok:
		fmt.Fprintf(w, "root key     put the new one at %s before keylease starts again: the old one opens nothing any more\n", path)
	default:
		fmt.Fprintf(w, "root key     put the new one where the old one came from (%s) before keylease starts again\n", terminal(r.Source))
	}
	fmt.Fprintf(w, "backups      those made until now open with the old key only: make a new one (keylease backup FILE)\n")
}

// newKeyName is where a new root key lies beside the one in force, until that one is replaced by it.
func newKeyName(path string) string { return path + ".new" }

// newKey makes root keys for a store whose key is the file at path. A crash leaves the old file or both, and settleKey
// tells which is in force.
func newKey(path string) func() (lease.NewKey, error) {
	return func() (lease.NewKey, error) {
		at := newKeyName(path)
		key := make([]byte, keyLen)
		_, _ = rand.Read(key) // never fails
		text := append([]byte(hex.EncodeToString(key)), '\n')
		defer clear(text)
		err := writeNew(at, text)
		if err != nil {
			clear(key)
			return lease.NewKey{}, err
		}
		return lease.NewKey{Key: key, Place: func() error { return placeKey(at, path) }, Drop: func() { _ = os.Remove(at) }}, nil
	}
}

func placeKey(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return wholefile.SyncFolder(filepath.Dir(to))
}

// settleKey ends what a rotation that was cut short left: two key files, of which one opens the store in dir. The other
// never did, or does no more.
func settleKey(dir, path string) error {
	at := newKeyName(path)
	opens := func(path string) (bool, error) {
		data, err := readTrusted(path, 1024, 0o077)
		if err != nil {
			return false, err
		}
		defer clear(data)
		key, err := parseKey(data, path)
		if err != nil {
			return false, err
		}
		defer clear(key)
		return store.KeyFits(dir, key)
	}
	fits, err := opens(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // as nearly always
	case err != nil:
		return fail(exitSealed, "", "reading the new root key: %w", err)
	case fits:
		return placeKey(at, path)
	}
	if fits, err := opens(path); err != nil || !fits {
		return nil // opening the store says what is wrong
	}
	return os.Remove(at)
}
