package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Verify recomputes the trail from its first event, or the first that was not pruned, to the one that is last when it
// is called, and holds it against the anchor and the signed head. It needs the memory of one group. What it finds is in the Report; an error means that it could not look. pinned is
// the fingerprint that the operator noted when the store was made: without it the trail is found consistent, not
// authenticated. It may run while the store is written to.
func (s *Store) Verify(ctx context.Context, pinned string) (Report, error) {
	if err := s.checkpoint(); err != nil { // so that the newest head is signed
		return Report{}, err
	}
	s.disk.Lock() // between two groups: the three agree, and the anchor is not read half written
	anchored, anchorErr := s.anchor.look(s.keys)
	signed, signedErr := s.readSigned()
	h := s.durable()
	s.disk.Unlock()
	if errors.Is(signedErr, ErrUnavailable) {
		return Report{}, signedErr
	}
	r := Report{Fingerprint: s.Fingerprint(), HeadSeq: h.seq, Head: h.hash}
	base, baseErr := s.readBase()
	if baseErr == nil && base.Seq > 0 {
		r.Base = &base
	}
	known := []knownHead{{anchored.head, "the anchor"}, {signed.head, "the signed head"}, {h, "the running store"}}
	err := s.view(func(txn *badger.Txn) error {
		return s.walkWith(ctx, txn, &walker{from: 1, to: h.seq, skim: true, fn: func(e *Entry) error {
			for _, k := range known {
				if k.seq == e.Seq && k.hash != e.Hash {
					return &fault{e.Seq, "it is not the one that " + k.what + " knows"}
				}
			}
			r.Entries++
			return nil
		}})
	})
	var bad *fault
	switch {
	case errors.As(err, &bad):
		r.FirstBad, r.Problem = bad.seq, bad.problem
	case err != nil:
		return Report{}, err
	case anchorErr != nil:
		r.Problem = anchorErr.Error()
	case signedErr != nil:
		r.Problem = signedErr.Error()
	default:
		r.Problem, r.FirstBad = missing(h, known)
	}
	if r.Problem == "" && pinned != "" && pinned != r.Fingerprint {
		r.Problem = fmt.Sprintf("this store signs with %s, not with the pinned %s", r.Fingerprint, pinned)
	}
	r.Authenticated = r.Problem == "" && pinned != "" && signed.seq > 0
	return r, nil
}

type knownHead struct {
	head
	what string
}

// missing says which known head the trail, which ends at h, does not reach.
func missing(h head, known []knownHead) (problem string, firstBad uint64) {
	for _, k := range known {
		if k.seq > h.seq {
			return fmt.Sprintf("%s knows event %d: %d events are missing", k.what, k.seq, k.seq-h.seq), h.seq + 1
		}
	}
	return "", 0
}
