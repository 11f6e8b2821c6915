package store

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// An export is the trail, or the end of it, for whoever has no root key: lines of JSON, in UTF-8.
//
//	{"begin": ExportBegin}
//	Entry, one a line, as encoding/json writes it
//	{"end": ExportEnd}
//
// It is whole or it has no end. Entries are chained, so the signature over the last hash is one over all of them: see
// VerifyExports. It holds what the trail holds — names, purposes, times — in plain, and never a value.

// ExportBegin is an export's first line: what follows is this store's, and follows this.
type ExportBegin struct {
	Format int    `json:"format"` // 1
	Store  string `json:"store"`  // its id, in hex
	From   uint64 `json:"from"`   // seq of the first Entry
	Prev   Digest `json:"prev"`   // hash of the Entry before it; zero for the first of all
}

// ExportEnd is an export's last line.
type ExportEnd struct {
	ExportBegin
	Epoch     uint64    `json:"epoch"` // the anchor's
	Seq       uint64    `json:"seq"`   // of the last Entry; From-1 where there is none
	Hash      Digest    `json:"hash"`  // of the last Entry; Prev where there is none
	Time      time.Time `json:"time"`  // of the export
	PublicKey []byte    `json:"public_key"`
	Signature []byte    `json:"signature"` // Ed25519, over "keylease export 1" and all of the above but the key
}

const (
	exportFormat  = 1
	exportContext = "keylease export 1"
)

func (e ExportEnd) signed() []byte {
	id, _ := hex.DecodeString(e.Store)
	b := tuple(nil).text(exportContext).num(uint64(e.Format)).bytes(id).num(e.Epoch).num(e.From).bytes(e.Prev[:])
	return b.num(e.Seq).bytes(e.Hash[:]).num(uint64(e.Time.UnixNano()))
}

// verifies reports whether e is of one piece and signed by the key that it names.
func (e ExportEnd) verifies() error {
	switch {
	case e.Format != exportFormat:
		return fmt.Errorf("it has format %d, which this keylease does not know", e.Format)
	case e.From == 0 || e.Seq+1 < e.From:
		return errors.New("its end does not fit its beginning")
	case len(e.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(e.PublicKey, e.signed(), e.Signature):
		return errors.New("its signature does not verify")
	}
	return nil
}

// Export writes the trail to w, as an export: all from seq from on or, where since is later than the beginning, from the
// first Entry of since or later. from 0 is where the trail begins. The Entries are checked on the way; what does not hold is
// a *fault, and w has no end then. It may run while the store is written to, and needs the memory of one group.
func (s *Store) Export(ctx context.Context, w io.Writer, from uint64, since time.Time) (ExportEnd, error) {
	if err := s.checkpoint(); err != nil {
		return ExportEnd{}, err
	}
	s.disk.Lock()
	h, epoch := s.durable(), s.anchor.epoch
	s.disk.Unlock()
	base, err := s.readBase()
	if err != nil {
		return ExportEnd{}, err
	}
	if from = max(from, base.Seq+1); from > h.seq+1 {
		return ExportEnd{}, fmt.Errorf("the trail ends at event %d", h.seq)
	}
	out := json.NewEncoder(w)
	end := ExportEnd{ExportBegin: ExportBegin{Format: exportFormat, Store: s.ID(), From: from}, Epoch: epoch, Seq: h.seq, Hash: h.hash}
	begun := false
	begin := func(from uint64, prev Digest) error {
		begun, end.From, end.Prev = true, from, prev
		return out.Encode(struct {
			Begin ExportBegin `json:"begin"`
		}{end.ExportBegin})
	}
	var last head
	err = s.view(func(txn *badger.Txn) error {
		return s.walk(ctx, txn, from, h.seq, func(e *Entry) error {
			if last = (head{e.Seq, e.Hash}); !begun {
				if e.Time.Before(since) {
					return nil
				}
				if err := begin(e.Seq, e.Prev); err != nil {
					return err
				}
			}
			return out.Encode(e)
		})
	})
	if err == nil && !begun {
		err = begin(h.seq+1, h.hash)
	}
	if err == nil && last.seq != 0 && last != h {
		err = &fault{h.seq, "it is not the one that the running store knows"}
	}
	if err != nil {
		return ExportEnd{}, fmt.Errorf("exporting the trail: %w", err)
	}
	end.Time = s.now().UTC()
	end.PublicKey = s.keys.sign.Public().(ed25519.PublicKey)
	end.Signature = ed25519.Sign(s.keys.sign, end.signed())
	return end, out.Encode(endLine{end})
}

type endLine struct {
	End ExportEnd `json:"end"`
}

// CheckExport reports whether e is the end of an export that this store made, of what it still has or had.
func (s *Store) CheckExport(e ExportEnd) error {
	if err := e.verifies(); err != nil {
		return fmt.Errorf("%w: the export: %w", ErrIntegrity, err)
	}
	if e.Store != s.ID() || !s.keys.sign.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(e.PublicKey)) {
		return fmt.Errorf("%w: the export is of another store, %s", ErrIntegrity, e.Store)
	}
	base, err := s.readBase()
	if err != nil || e.Seq < base.Seq || e.Seq == 0 {
		return err
	}
	hash, err := s.hashAt(e.Seq)
	if err == nil && hash != e.Hash {
		err = fmt.Errorf("%w: event %d of the export is not the one of the trail", ErrIntegrity, e.Seq)
	}
	return err
}

// reencode computes the hash of an Entry as the trail has it.
func reencode(buf []byte, e *Entry) []byte {
	body := encodeBody(nil, e)
	return appendEntry(buf[:0], e, body)
}
