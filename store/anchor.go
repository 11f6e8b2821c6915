package store

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
)

// anchor is the newest head, kept outside the data folder, so that a trail that lost its end — by a bad disk, which
// Badger does not notice, or by somebody — is found out. It is written after each group and so never ahead of the
// store; it is synced each second, so a power cut can leave it behind, which is harmless.
//
//	magic [8] · store id [16] · epoch u64 · seq u64 · head [32] · MAC [32] over all before
type anchor struct {
	file  *os.File
	head  // as last written
	dirty atomic.Bool
}

const (
	anchorMagic = "KLANCHR1"
	anchorSize  = 8 + 16 + 8 + 8 + 32 + 32
	epoch       = 1 // counts the losses that an operator accepted; there is no way to accept one yet
)

func anchorPath(dir string, storeID []byte) string {
	return filepath.Join(dir, fmt.Sprintf("anchor.%x", storeID[:4]))
}

// openAnchor opens the anchor of a store whose keys are proven, and makes it where the making of the store was cut
// short before (see Open).
func openAnchor(o Options, keys *keyring) (*anchor, error) {
	left, _ := os.ReadDir(storeDir(o.Dir)) // before the anchor: whoever makes a store makes this last
	begun := len(left) > 0
	if err := trustAnchorFolder(o.AnchorDir, o.Create); err != nil {
		return nil, err
	}
	path := anchorPath(o.AnchorDir, keys.store[:])
	f, err := openPlain(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		switch {
		case begun:
			return nil, fmt.Errorf("%w: its anchor %s is missing, so nobody can tell whether events were cut off: put the file back", ErrIntegrity, path)
		case !o.Create:
			return nil, fmt.Errorf("%w: %s was not made to the end", ErrNoStore, o.Dir)
		}
		if err := writeOnce(path, encodeAnchor(keys, head{})); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err = openPlain(path, os.O_RDWR)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the anchor: %w", err)
	}
	a := &anchor{file: f}
	switch err := a.reload(keys); {
	case err != nil:
		return nil, errors.Join(err, f.Close())
	case !begun && a.seq > 0:
		return nil, errors.Join(fmt.Errorf("%w: %s is missing or empty, and with it %d events: restore the folder from a backup",
			ErrIntegrity, storeDir(o.Dir), a.seq), f.Close())
	case !begun && !o.Create:
		return nil, errors.Join(fmt.Errorf("%w: %s was not made to the end", ErrNoStore, o.Dir), f.Close())
	}
	return a, nil
}

func encodeAnchor(keys *keyring, h head) []byte {
	b := make([]byte, 0, anchorSize)
	b = append(b, anchorMagic...)
	b = append(b, keys.store[:]...)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = append(b, h.hash[:]...)
	mac := keyed(keys.anchor, b)
	return append(b, mac[:]...)
}

// read returns the head in the file.
func (a *anchor) read(keys *keyring) (head, error) {
	var b [anchorSize + 1]byte
	n, err := a.file.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return head{}, fmt.Errorf("reading the anchor: %w", err)
	}
	var h head
	if n == anchorSize {
		h.seq = binary.BigEndian.Uint64(b[32:])
		copy(h.hash[:], b[40:])
	}
	if n != anchorSize || !hmac.Equal(b[:anchorSize], encodeAnchor(keys, h)) {
		return head{}, fmt.Errorf("%w: the anchor %s was changed, or is another store's: put the right one back", ErrIntegrity, a.file.Name())
	}
	return h, nil
}

func (a *anchor) reload(keys *keyring) (err error) {
	a.head, err = a.read(keys)
	return err
}

// put writes h, which must be on disk already.
func (a *anchor) put(keys *keyring, h head) error {
	if h == a.head {
		return nil
	}
	if _, err := a.file.WriteAt(encodeAnchor(keys, h), 0); err != nil {
		return fmt.Errorf("writing the anchor: %w", err)
	}
	a.head = h
	a.dirty.Store(true)
	return nil
}

func (a *anchor) sync() error {
	if !a.dirty.Swap(false) {
		return nil
	}
	return a.file.Sync()
}

func (a *anchor) close() error { return errors.Join(a.sync(), a.file.Close()) }
