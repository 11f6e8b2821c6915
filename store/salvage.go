package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4/table"
)

// salvage makes Badger's folder one that Badger opens, with as much as can be had of it. It gives up more at each step,
// and stops at the first that a trial opening survives. A copy of everything lies aside by now.
func salvage(o Options) error {
	dir := storeDir(o.Dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockStore(dir)
	if err != nil {
		return err
	}
	defer unlock()
	steps := []func(string) error{
		mendTables, // damaged tables go; a MANIFEST that does not name the others is made anew
		func(dir string) error { return removeAll(dir, "KEYREGISTRY", "DISCARD", "*.vlog") }, // nothing of ours is in them
		func(dir string) error { return removeAll(dir, "*.mem") },                            // the newest events
	}
	var died error
	for _, step := range steps {
		if err := step(dir); err != nil {
			return err
		}
		if died = trial(o, anchored{}); !errors.Is(died, ErrIntegrity) {
			return died
		}
	}
	return fmt.Errorf("nothing can be opened of what is left: restore a backup: %w", died)
}

func removeAll(dir string, patterns ...string) error {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// mendTables removes the tables that are damaged. Where the MANIFEST then does not name exactly those that are left, it
// is made anew, with all of them on level 0: there Badger takes the newest version of a key wherever it lies.
func mendTables(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return err
	}
	var sound []uint64
	for _, path := range paths {
		id, ok := table.ParseFileID(path)
		if !ok || checkTable(path) != nil {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		sound = append(sound, id)
	}
	slices.Sort(sound)
	named, err := readManifest(dir)
	if err == nil && slices.Equal(slices.Sorted(maps.Keys(named)), sound) {
		return nil
	}
	return writeManifest(dir, sound)
}

// writeManifest writes a MANIFEST as Badger reads it. One change set names all tables, each with its id alone: what
// else there is to say of them (level, key, compression) is zero.
//
//	"Bdgr" · our magic u16 · Badger's u16 · length u32 · CRC-32C u32 · protobuf: n × 0a length (08 id)
func writeManifest(dir string, tables []uint64) error {
	var set []byte
	for _, id := range tables {
		change := binary.AppendUvarint([]byte{0x08}, id)
		set = append(binary.AppendUvarint(append(set, 0x0a), uint64(len(change))), change...)
	}
	const badgerMagic = 8
	b := []byte("Bdgr")
	b = binary.BigEndian.AppendUint16(b, magic)
	b = binary.BigEndian.AppendUint16(b, badgerMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(set)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(set, crcTable))
	b = append(b, set...)
	path := filepath.Join(dir, "MANIFEST")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return writeOnce(path, b)
}
