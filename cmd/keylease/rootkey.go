package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"keylease/store"
)

// The root key is 32 bytes. Where it comes from is settled when the store is made and recorded with it, as "file"
// (root.key in the config folder), "file:PATH" or "environment"; from then on no other source is tried, whatever happens to be set. Only the operator's explicit
// word (--root-key-file, rootKeyFile) names another file. It is never generated for a store that exists: that could
// only be the wrong one.
const (
	keyLen     = 32
	sourceEnv  = "environment"
	sourceFile = "file"
	fileFrom   = "file:"
	keyEnv     = "KEYLEASE_ROOT_KEY"
)

// keySource says where the root key of the store comes from, and whether the store has to be made.
func (a *app) keySource(s settings) (source string, create bool, err error) {
	recorded, err := store.KeySource(s.Data)
	switch {
	case errors.Is(err, store.ErrNoStore):
		create = true
	case err != nil:
		return "", false, err
	}
	switch {
	case s.explicitKey:
		return fileFrom + s.RootKeyFile, create, nil
	case !create:
		return recorded, false, nil
	case a.env(keyEnv) != "":
		return sourceEnv, true, nil
	}
	return sourceFile, true, nil
}

// keyPath is the file that source names; ok is false for another kind of source.
func keyPath(source string, s settings) (path string, ok bool) {
	if source == sourceFile {
		return filepath.Join(s.paths.Config, "root.key"), true
	}
	return strings.CutPrefix(source, fileFrom)
}

// rootKey reads the key from source. With generate, a file that is not there is made.
func (a *app) rootKey(s settings, source string, generate bool) ([]byte, error) {
	if source == sourceEnv {
		text := a.env(keyEnv)
		if text == "" {
			return nil, fail(exitSealed, "set "+keyEnv+" to the 32 bytes this store was made with, in hex or base64",
				"the root key of this store comes from the environment, and %s is not set", keyEnv)
		}
		return parseKey([]byte(text), keyEnv)
	}
	path, ok := keyPath(source, s)
	if !ok {
		return nil, fail(exitSealed, "use the version of keylease that made it", "the root key of this store comes from %q, which this version does not know", source)
	}
	if generate {
		if err := generateKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	data, err := readTrusted(path, 1024, 0o077)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(exitSealed, "put it back from where you keep a copy, or name it with --root-key-file; without it the store can't be opened",
			"the root key is not at %s", path)
	case err != nil:
		return nil, fail(exitSealed, "", "reading the root key: %w", err)
	}
	defer clear(data)
	return parseKey(data, path)
}

// generateKey makes a new key file, or reports fs.ErrExist.
func generateKey(path string) error {
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	key := make([]byte, keyLen)
	_, _ = rand.Read(key) // never fails
	text := append([]byte(hex.EncodeToString(key)), '\n')
	defer clear(key)
	defer clear(text)
	return writeNew(path, text)
}

// parseKey reads 64 hex digits or the base64 of 32 bytes. Its errors do not repeat them.
func parseKey(text []byte, from string) ([]byte, error) {
	text = bytes.TrimSpace(text)
	if key, err := hex.DecodeString(string(text)); err == nil && len(key) == keyLen {
		return key, nil
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if key, err := enc.DecodeString(string(text)); err == nil && len(key) == keyLen {
			return key, nil
		}
	}
	return nil, fail(exitSealed, "a root key is 32 bytes, written as 64 hex digits or in base64", "%s does not hold a root key", from)
}
