package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/rs/zerolog"
)

// checkTables looks at the footer of each table that the MANIFEST names, which Badger believes before it checks
// anything: where a length in it is wrong, Badger panics in a goroutine of its own, which nobody can recover. A table
// that the MANIFEST does not name was being written when the machine stopped, and Badger removes it.
func checkTables(dir string) error {
	f, err := os.Open(filepath.Join(dir, "MANIFEST"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, magic, badgerOptions(dir, zerolog.Nop()))
	if err != nil {
		return fmt.Errorf("%w: reading %s: %w", ErrIntegrity, f.Name(), err)
	}
	for id := range manifest.Tables {
		path := table.NewFilename(id, dir)
		if err := checkTable(path); err != nil {
			return fmt.Errorf("%w: the table %s: %w: restore the folder from a backup", ErrIntegrity, path, err)
		}
	}
	return nil
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
	return length(info.Size())
}
