package store

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A backup is a stream that says of itself whether it is whole:
//
//	magic [8] · n u32 · header, JSON [n] · SHA-256 of all before [32]
//	frames: kind u8 · n u32 · sealed [n]
//
// The header holds keycheck as it was, so that the root key and the file are all that a restore needs. A frame is
// sealed under a key of this backup alone, to the header, its number and its kind: none can be changed, left out, moved
// or taken from elsewhere. A data frame is a sequence of (uvarint length, key, uvarint length, value), as Badger had them
// at one moment, still sealed as in the store. The end frame, JSON, counts what came before and names the head that the
// trail must end with; nothing comes after it.
//
// Who has the file and not the root key learns how large the store is, and when the backup was made.
type backupHeader struct {
	Format   int       `json:"format"`
	StoreID  string    `json:"store_id"`
	Epoch    uint64    `json:"epoch"`
	Made     time.Time `json:"made"`
	Salt     string    `json:"salt"` // of the frames' key, in hex
	Keycheck keycheck  `json:"keycheck"`
}

// Backup says what is in a backup.
type Backup struct {
	StoreID    string    `json:"store_id"`
	Epoch      uint64    `json:"epoch"`
	Made       time.Time `json:"made"`
	HeadSeq    uint64    `json:"head_seq"` // the trail's last event
	Head       Digest    `json:"head"`
	Records    uint64    `json:"records"`  // credentials and tokens
	Versions   uint64    `json:"versions"` // values that can be read
	Items      uint64    `json:"items"`    // all that was copied
	Bytes      int64     `json:"bytes"`    // of the file
	Generation int       `json:"root_key_generation"`
}

const (
	backupMagic     = "KLBACKUP"
	backupFormat    = 2
	maxBackupHeader = 16 << 10

	frameData  = 1
	frameEnd   = 2
	frameSize  = 256 << 10 // a data frame is closed once it has this much; a single item may be larger
	maxFrame   = 4 << 20   // more than the largest item
	frameStart = 1 + 4

	// framePause is given to whoever leases meanwhile: four seconds a gigabyte.
	framePause = time.Millisecond
)

func (k *keyring) backupAEAD(salt []byte) (cipher.AEAD, error) {
	d := deriver{parent: k.backup, salt: salt}
	a := d.aead("backup frames")
	return a, d.err()
}

func frameAAD(header [32]byte, number uint64, kind byte) []byte {
	return tuple(make([]byte, 0, 96)).text("backup").bytes(header[:]).num(number).bytes([]byte{kind})
}

// frameWriter writes the stream.
type frameWriter struct {
	out    io.Writer
	aead   cipher.AEAD
	header [32]byte
	number uint64
	frame  []byte
	sealed []byte
	is     Backup
}

func (w *frameWriter) write(b []byte) error {
	n, err := w.out.Write(b)
	w.is.Bytes += int64(n)
	return err
}

func (w *frameWriter) begin(h backupHeader) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	b := append([]byte(backupMagic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(backupMagic):], uint32(len(data)))
	b = append(b, data...)
	w.header = sha256.Sum256(b)
	return w.write(append(b, w.header[:]...))
}

func (w *frameWriter) item(key, value []byte) error {
	w.is.Items++
	switch key[0] {
	case 'r':
		w.is.Records++
	case 'd':
		w.is.Versions++
	}
	w.frame = append(binary.AppendUvarint(w.frame, uint64(len(key))), key...)
	w.frame = append(binary.AppendUvarint(w.frame, uint64(len(value))), value...)
	if len(w.frame) < frameSize {
		return nil
	}
	return w.flush()
}

func (w *frameWriter) flush() error {
	if len(w.frame) == 0 {
		return nil
	}
	err := w.put(frameData, w.frame)
	w.frame = w.frame[:0]
	return err
}

func (w *frameWriter) put(kind byte, plain []byte) error {
	w.number++
	w.sealed = w.aead.Seal(append(w.sealed[:0], sealedFormat), nil, plain, frameAAD(w.header, w.number, kind))
	start := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(w.sealed)))
	err := errors.Join(w.write(start), w.write(w.sealed))
	time.Sleep(framePause)
	return err
}

func (w *frameWriter) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	end := w.is
	end.Bytes = 0 // the reader counts
	data, err := json.Marshal(end)
	if err != nil {
		return err
	}
	return w.put(frameEnd, data)
}

// Backup writes everything, as it is at one moment, to out. Everything goes on meanwhile; what comes later is not in
// it. Its memory does not grow with the store. On an error what was written is no backup, and says so when it is read.
func (s *Store) Backup(ctx context.Context, out io.Writer) (Backup, error) {
	if err := s.checkpoint(); err != nil { // so that the head in it is signed
		return Backup{}, err
	}
	w := frameWriter{out: out}
	h, txn, it, err := s.still(&w)
	if err != nil {
		return Backup{}, err
	}
	defer s.open.RUnlock()
	defer txn.Discard()
	defer it.Close()
	if err := w.begin(h); err != nil {
		return Backup{}, fmt.Errorf("writing the backup: %w", err)
	}
	own := (&rootKeys{generation: h.Keycheck.Generation}).dataKeys()
	for it.Rewind(); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return Backup{}, err
		}
		if s.torn.Load() { // whoever opens the database anew waits for us
			return Backup{}, fmt.Errorf("%w: the disk failed while the backup was written", ErrUnavailable)
		}
		key := it.Item().Key()
		if len(key) == 0 || key[0] == rotationKey[0] || key[0] == 'd' && string(key[:min(len(own), len(key))]) != string(own) {
			continue // of a root key that is not, or no longer, in force
		}
		if err := it.Item().Value(func(value []byte) error { return w.item(key, value) }); err != nil {
			return Backup{}, fmt.Errorf("writing the backup: %w", err)
		}
	}
	if err := w.end(); err != nil {
		return Backup{}, fmt.Errorf("writing the backup: %w", err)
	}
	return w.is, nil
}

// still takes hold of one moment: between two groups, with the key check that belongs to it. The caller lets go of open.
func (s *Store) still(w *frameWriter) (backupHeader, *badger.Txn, *badger.Iterator, error) {
	salt := make([]byte, 32)
	rand.Read(salt)
	s.disk.Lock()
	defer s.disk.Unlock()
	if s.db.IsClosed() {
		return backupHeader{}, nil, nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	kc, err := readKeycheck(s.dir)
	if err != nil {
		return backupHeader{}, nil, nil, err
	}
	if w.aead, err = s.keys.backupAEAD(salt); err != nil {
		return backupHeader{}, nil, nil, err
	}
	at := s.durable()
	h := backupHeader{Format: backupFormat, StoreID: s.ID(), Epoch: s.anchor.epoch, Made: s.now().UTC(), Salt: hex.EncodeToString(salt), Keycheck: kc}
	w.is = Backup{StoreID: h.StoreID, Epoch: h.Epoch, Made: h.Made, HeadSeq: at.seq, Head: at.hash, Generation: int(kc.Generation)}
	if s.torn.Load() || !s.open.TryRLock() {
		return backupHeader{}, nil, nil, fmt.Errorf("%w: it can't be read before it was opened anew", ErrUnavailable)
	}
	txn := s.db.NewTransaction(false)
	return h, txn, txn.NewIterator(badger.IteratorOptions{}), nil // not prefetched: what is read is held once
}
