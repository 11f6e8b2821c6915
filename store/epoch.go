package store

import (
	"errors"
	"fmt"
	"strconv"
)

// An epoch is the time in which the trail only grew. It ends when an operator accepts that events are lost, and when a
// backup is restored: what was acknowledged after that point is no longer in the trail, and a folder that still has it
// must not pass for this store any more. So the anchor and the signed head count epochs, and both must say the same.
//
// A new one begins in this order; a crash after each step leaves
//
//	1 Badger, one synced transaction: the Entry that says why (it ends leases, approvals and tokens),
//	  and a head signed for epoch n+1, which is that Entry
//	                       the signed head is one epoch ahead of the anchor: the next open moves the anchor there
//	2 the anchor: epoch n+1 at that Entry, synced
//	                       both agree
//
// Before step 1 nothing happened: what was refused is refused again. A signed head that is behind the anchor is of a
// folder from before; one that is further ahead is of an anchor from before. Neither is left by a crash.

// checkEpoch holds the epoch of the signed head against the anchor's. turned: step 1 was the last that was done, so the
// anchor's head is of the epoch before.
func checkEpoch(anchor uint64, signed signedHead) (turned bool, err error) {
	switch {
	case signed.epoch == anchor, signed.seq == 0 && anchor == 1: // nothing was signed yet
		return false, nil
	case signed.epoch == anchor+1 && signed.seq > 0:
		return true, nil
	case signed.epoch < anchor:
		return false, fmt.Errorf("%w: the folder is of epoch %d and the anchor outside it of epoch %d: it is a copy from before a loss was accepted or a backup restored",
			ErrIntegrity, signed.epoch, anchor)
	}
	return false, fmt.Errorf("%w: the anchor outside the folder is of epoch %d and the folder of epoch %d: put the newer anchor back",
		ErrIntegrity, anchor, signed.epoch)
}

// openAnew opens the store in o.Dir at its present end, whatever the anchor knows and even if there is none, and
// begins a new epoch there with the Entry e, whose details get the epoch. It is for what was looked at before and is
// taken as it is: a loss that is accepted, a backup that was restored. The folder and its Badger must be sound.
func openAnew(o Options, e Entry) (*Store, error) {
	s, err := openChecked(o, true, (*Store).takeAsItIs)
	if err != nil {
		return nil, err
	}
	return s, s.beginEpoch(e)
}

// takeAsItIs reads the end of the trail and believes it.
func (s *Store) takeAsItIs() error {
	h, err := s.lastOnDisk()
	if err != nil {
		return fmt.Errorf("reading the end of the trail: %w", err)
	}
	s.mu.Lock()
	s.head = h
	s.mu.Unlock()
	return nil
}

// beginEpoch starts the store with e as the first Entry of the next epoch. On an error the store is closed.
func (s *Store) beginEpoch(e Entry) error {
	epoch := s.anchor.epoch
	if signed, err := s.readSigned(); err == nil { // where the anchor is lost or older
		epoch = max(epoch, signed.epoch)
	}
	epoch++
	e.Details.Set("epoch", strconv.FormatUint(epoch, 10))
	s.running.Go(s.commitLoop)
	_, err := s.submit(Change{Entry: e}, epoch).Wait()
	if err == nil {
		err = s.Failed() // the anchor could not be moved
	}
	s.running.Go(s.checkpointLoop)
	s.running.Go(s.watchLoop)
	if err != nil {
		return errors.Join(fmt.Errorf("beginning epoch %d: %w", epoch, err), s.Close())
	}
	return nil
}
