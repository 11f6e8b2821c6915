package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	"github.com/rs/zerolog"
)

// checkFiles looks at what Badger believes without a check, or repairs by destroying. used: events are known to be in
// the database, so that a missing MANIFEST is damage — Badger would open empty, without an error, and delete its tables.
func checkFiles(dir string, used bool) error {
	path := filepath.Join(dir, "MANIFEST")
	info, err := os.Stat(path)
	switch {
	case used && (errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0):
		return fmt.Errorf("%w: %s is missing or empty", ErrIntegrity, path)
	case errors.Is(err, fs.ErrNotExist):
		return nil // a new store
	case err != nil:
		return err
	}
	registry, err := os.Lstat(filepath.Join(dir, "KEYREGISTRY"))
	if used && (errors.Is(err, fs.ErrNotExist) || err == nil && registry.Size() == 0) { // it panics
		return fmt.Errorf("%w: %s is missing or empty", ErrIntegrity, filepath.Join(dir, "KEYREGISTRY"))
	}
	return checkTables(dir)
}

// unnamed says which tables are there that the MANIFEST does not name: Badger deletes them. One that was being written
// when the machine stopped, or the disk was full, is none to miss; otherwise the MANIFEST lost its end.
func unnamed(dir string) (said []string) {
	named, err := readManifest(dir)
	if err != nil {
		return nil // checkTables says so
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	for _, path := range paths {
		if id, ok := table.ParseFileID(path); ok {
			if _, listed := named[id]; !listed {
				said = append(said, fmt.Sprintf("the MANIFEST does not name %s, which is there", filepath.Base(path)))
			}
		}
	}
	return said
}

// checkTables looks at each table that the MANIFEST names. Badger believes lengths in a table before it checks
// anything, and panics in a goroutine of its own where one is wrong, which nobody can recover. A table that the
// MANIFEST does not name was being written when the machine stopped, and Badger removes it.
func checkTables(dir string) error {
	tables, err := readManifest(dir)
	if err != nil {
		return err
	}
	for id := range tables {
		path := table.NewFilename(id, dir)
		if err := checkTable(path); err != nil {
			return fmt.Errorf("%w: the table %s: %w", ErrIntegrity, path, err)
		}
	}
	return nil
}

// readManifest returns the tables that the MANIFEST names.
func readManifest(dir string) (map[uint64]badger.TableManifest, error) {
	f, err := os.Open(filepath.Join(dir, "MANIFEST"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, magic, badgerOptions(dir, zerolog.Nop()))
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrIntegrity, f.Name(), err)
	}
	return manifest.Tables, nil
}

// checkTable reads a table's end:
//
//	… · index [n] · n u32 · checksum [c] · c u32
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	length := func(max int64) error {
		var b [4]byte
		if _, err := f.ReadAt(b[:], end-4); err != nil {
			return errors.New("its end is missing")
		}
		n := int64(binary.BigEndian.Uint32(b[:]))
		if end -= 4 + n; n == 0 || n > max || end < 4 {
			return errors.New("its end is not what was written")
		}
		return nil
	}
	if err := length(64); err != nil {
		return err
	}
	if err := length(info.Size()); err != nil {
		return err
	}
	return checkBlocks(path)
}

// checkBlocks has Badger's own reader look at every block, here, where a panic of it can be recovered: it takes lengths
// out of a block before it checks the block's sum, and at open it does so in a goroutine of its own.
func checkBlocks(path string) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("one of its blocks is not what was written")
		}
	}()
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	t, err := table.OpenTable(file, table.Options{ChkMode: options.OnTableRead, Compression: options.None})
	if err != nil {
		return err
	}
	return t.Close(-1)
}
