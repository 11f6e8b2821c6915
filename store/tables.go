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

// checkTables looks at each table that the MANIFEST names. Badger believes lengths in a table before it checks
// anything, and panics in a goroutine of its own where one is wrong, which nobody can recover. A table that the
// MANIFEST does not name was being written when the machine stopped, and Badger removes it.
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
