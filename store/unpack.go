package store

import (
	"bytes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// backupReader reads a backup, frame by frame, and believes nothing that does not authenticate. It holds one frame.
type backupReader struct {
	in     io.Reader
	at     int64 // how many bytes were read
	header backupHeader
	sum    [32]byte
	keys   *keyring
	aead   cipher.AEAD
	number uint64
	sealed []byte
	is     Backup
}

// damaged is what is wrong with a backup, and where.
func (r *backupReader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBackup, fmt.Sprintf(format, args...))
}

// full fills b, or says where the file ends.
func (r *backupReader) full(b []byte) error {
	n, err := io.ReadFull(r.in, b)
	r.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return r.damaged("it is cut off at byte %d, after %d whole frames", r.at, r.number)
	}
	if err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	return nil
}

// readBackup reads the header.
func readBackup(in io.Reader) (*backupReader, error) {
	r := &backupReader{in: in}
	start := make([]byte, len(backupMagic)+4)
	if err := r.full(start); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(start[len(backupMagic):])
	if string(start[:len(backupMagic)]) != backupMagic {
		return nil, r.damaged("this is no backup made by keylease backup, or its first bytes were changed")
	}
	if n > maxBackupHeader {
		return nil, r.damaged("its header was changed (bytes %d to %d)", len(backupMagic), len(start))
	}
	b := append(start, make([]byte, n+sha256.Size)...)
	if err := r.full(b[len(start):]); err != nil {
		return nil, err
	}
	b, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	r.sum = sha256.Sum256(b)
	if !bytes.Equal(sum, r.sum[:]) {
		return nil, r.damaged("its header was changed (before byte %d)", r.at)
	}
	h := &r.header
	if err := json.Unmarshal(b[len(start):], h); err != nil || !h.Keycheck.sound() || h.StoreID != h.Keycheck.StoreID {
		return nil, r.damaged("its header does not say what it should")
	}
	if h.Format != backupFormat {
		return nil, r.damaged("it is of format %d, and this version of keylease reads %d", h.Format, backupFormat)
	}
	return r, nil
}

// unlock derives the keys. ErrWrongKey: root is not that of the store when it was backed up.
func (r *backupReader) unlock(root []byte) error {
	var err error
	if r.keys, err = r.header.Keycheck.keys(root); err != nil {
		return fmt.Errorf("opening the backup: %w", err)
	}
	salt, err := hex.DecodeString(r.header.Salt)
	if err != nil {
		return r.damaged("its header does not say what it should")
	}
	r.aead, err = r.keys.backupAEAD(salt)
	return err
}

// items passes every key and value to fn, in order; both hold until fn returns. It returns nil only if the backup is
// whole.
func (r *backupReader) items(fn func(key, value []byte) error) error {
	for {
		from := r.at
		kind, plain, err := r.frame()
		if err != nil {
			return err
		}
		if kind == frameEnd {
			return r.end(plain)
		}
		for b := plain; len(b) > 0; {
			key, rest, ok := cutBytes(b)
			value, rest, ok2 := cutBytes(rest)
			if !ok || !ok2 || len(key) == 0 {
				return r.damaged("frame %d (at byte %d) is not made as it should be", r.number, from)
			}
			b = rest
			r.count(key)
			if err := fn(key, value); err != nil {
				return err
			}
		}
	}
}

func (r *backupReader) count(key []byte) {
	r.is.Items++
	switch key[0] {
	case 'r':
		r.is.Records++
	case 'd':
		r.is.Versions++
	}
}

func cutBytes(b []byte) (field, rest []byte, ok bool) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return nil, nil, false
	}
	return b[used : used+int(n)], b[used+int(n):], true
}

func (r *backupReader) frame() (kind byte, plain []byte, err error) {
	from := r.at
	start := make([]byte, frameStart)
	if err := r.full(start); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(start[1:])
	if n > maxFrame || start[0] != frameData && start[0] != frameEnd {
		return 0, nil, r.damaged("frame %d (at byte %d) was changed", r.number+1, from)
	}
	if cap(r.sealed) < int(n) {
		r.sealed = make([]byte, n)
	}
	r.sealed = r.sealed[:n]
	if err := r.full(r.sealed); err != nil {
		return 0, nil, err
	}
	r.number++
	plain, err = open(r.aead, r.sealed, frameAAD(r.sum, r.number, start[0]))
	if err != nil {
		return 0, nil, r.damaged("frame %d (bytes %d to %d) was changed, or belongs elsewhere", r.number, from, r.at-1)
	}
	return start[0], plain, nil
}

// end checks the end frame against what was read, and that nothing follows.
func (r *backupReader) end(plain []byte) error {
	var end Backup
	if err := json.Unmarshal(plain, &end); err != nil {
		return r.damaged("its end does not say what it should")
	}
	if end.Items != r.is.Items || end.Records != r.is.Records || end.Versions != r.is.Versions || end.StoreID != r.header.StoreID || end.Epoch != r.header.Epoch {
		return r.damaged("it holds %d items, and its end speaks of %d", r.is.Items, end.Items)
	}
	end.Bytes = r.at
	r.is = end
	var more [1]byte
	if n, err := io.ReadFull(r.in, more[:]); n > 0 {
		return r.damaged("something was added to it: it should end at byte %d", r.at)
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the backup: %w", err)
	}
	return nil
}
