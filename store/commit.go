package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// gather is how long the committer waits after a group of more than one for the callers it has just answered: they
	// come back at once, and a fuller group is worth more than the wait (+57 % at 8 callers).
	gather = 50 * time.Microsecond
	// maxGather is how long it waits at most while more of them come within each gather. Without, half of 64 callers
	// waited while the others' group was written, in turns for ever (51,000 changes/s; 61,000 with it).
	maxGather = 10 * gather
)

// Pending is a change on its way to the disk.
type Pending struct {
	change Change
	body   *[]byte // the encoding of its Entry as far as it is known, from bodies
	size   int
	epoch  uint64 // not 0: this change begins that epoch; see epoch.go
	done   sync.WaitGroup
	err    error
}

// Wait returns the Entry as it stands in the trail once it is durable. An error that is ErrUnavailable means that
// nothing later is written either until Recover. Any other error is about this change alone: it was never queued.
func (p *Pending) Wait() (Entry, error) {
	p.done.Wait()
	if p.err != nil {
		return Entry{}, p.err
	}
	return p.change.Entry, nil
}

func (p *Pending) finish(err error) {
	p.err = err
	if p.body != nil && cap(*p.body) <= maxEntry {
		bodies.Put(p.body)
	}
	p.body = nil
	p.done.Done()
}

// bodies are buffers for the encodings of Entries, used again and again.
var bodies = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// Submit queues a change. It never waits for the disk; the order of Submit is the order of the trail. What c refers to
// must stay as it is until Wait returns.
func (s *Store) Submit(c Change) *Pending { return s.submit(c, 0) }

func (s *Store) submit(c Change, epoch uint64) *Pending {
	p := &Pending{change: c, epoch: epoch}
	p.done.Add(1)
	if err := p.prepare(s.now); err != nil {
		p.finish(fmt.Errorf("recording %s: %w", c.Entry.Event, err))
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		s.lose(p, s.failed)
	case s.closed:
		p.finish(fmt.Errorf("%w: it is closed", ErrUnavailable))
	default:
		s.queue = append(s.queue, p)
		s.wake.Signal()
	}
	return p
}

// prepare does what needs neither order nor disk.
func (p *Pending) prepare(now func() time.Time) error {
	e := &p.change.Entry
	if err := checkDetails(e); err != nil {
		return err
	}
	if e.Version < 0 || e.Version > 1<<31-1 {
		return fmt.Errorf("version %d is not one", e.Version)
	}
	if e.Time.IsZero() {
		e.Time = now()
	}
	e.Time = time.Unix(0, e.Time.UnixNano()).UTC() // what reading it back gives
	e.Records = nil
	rand.Read(e.Salt[:])
	p.body = bodies.Get().(*[]byte)
	*p.body = encodeBody((*p.body)[:0], e)
	p.size = len(*p.body) + headLen
	for _, r := range p.change.Records {
		p.size += len(r.Plain) + 256
	}
	for _, v := range p.change.Values {
		p.size += v.Value.Len() + 512
	}
	if len(*p.body) > maxEntry || p.size > maxChange {
		return fmt.Errorf("it is too large: %d bytes", p.size)
	}
	return nil
}

// commitLoop is the one writer of the trail.
func (s *Store) commitLoop() {
	last := 0
	for {
		group := s.take(last)
		if group == nil {
			return
		}
		err := s.commit(group)
		if last = len(group) + s.settle(group, err); len(group) == 1 {
			last = 1
		}
		clear(group)
	}
}

// take waits for changes and cuts a group off the queue; nil when the store was closed and nothing is left. Where those
// who may be on their way are more than one it gathers them first.
func (s *Store) take(coming int) []*Pending {
	if coming > 1 {
		s.gather(min(coming, maxGroup))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 {
		if s.closed {
			return nil
		}
		s.wake.Wait()
	}
	n, size := 0, 0
	for n < len(s.queue) && n < maxGroup {
		if size += s.queue[n].size; n > 0 && size > maxGroupBytes {
			break
		}
		n++
	}
	s.group = append(s.group[:0], s.queue[:n]...)
	left := copy(s.queue, s.queue[n:])
	clear(s.queue[left:])
	if s.queue = s.queue[:left]; left == 0 && cap(s.queue) > 4*maxGroup {
		s.queue = nil // after a flood
	}
	s.busy, s.current, s.begun = true, s.group, time.Now()
	return s.group
}

// gather waits until so many changes are queued, or no more come.
func (s *Store) gather(coming int) {
	begun := time.Now()
	for seen, grew := 0, begun; ; runtime.Gosched() {
		s.mu.Lock()
		n, closed := len(s.queue), s.closed
		s.mu.Unlock()
		now := time.Now()
		if n > seen {
			seen, grew = n, now
		}
		if n >= coming || closed || now.Sub(grew) > gather || now.Sub(begun) > maxGather {
			return
		}
	}
}

// settle answers a group, and returns how many were queued behind it then. An error stops everything: what was queued
// was decided on a state that the disk does not have.
func (s *Store) settle(group []*Pending, err error) (queued int) {
	s.mu.Lock()
	given := s.abandoned
	s.busy, s.current, s.abandoned = false, nil, false
	if err != nil && !given {
		s.fails(err)
		for _, p := range append(group, s.queue...) {
			s.lose(p, s.failed)
		}
		s.queue = nil
	}
	if queued = len(s.queue); queued == 0 {
		s.idle.Broadcast()
	}
	s.mu.Unlock()
	if err != nil || given {
		return queued
	}
	for _, p := range group {
		p.finish(nil)
	}
	return queued
}

// commit seals a group and writes it, its records and its values in one synced transaction. If we crash before the
// sync, nothing of it happened and nobody was told; after it, all of it did.
func (s *Store) commit(group []*Pending) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if s.torn.Load() {
		return errTorn
	}
	if err := s.room(); err != nil {
		return err
	}
	prev := s.durable()
	writes, at, err := s.sealGroup(group, prev)
	if err != nil {
		return err
	}
	epoch := group[0].epoch
	if epoch != 0 {
		writes = append(writes, s.headWrite(epoch, at))
	}
	err = s.write(writes)
	clear(writes)
	s.writes = writes
	if err != nil {
		if errors.Is(err, syscall.EIO) {
			s.torn.Store(true)
		}
		return fmt.Errorf("writing events %d to %d: %w", prev.seq+1, at.seq, err)
	}
	if s.gaveUp() {
		return errStuck // it is on the disk, but its callers were told that nobody knows: Recover finds it
	}
	s.mu.Lock()
	s.head = at
	s.mu.Unlock()
	if epoch != 0 {
		s.signed = at.seq
		err = s.anchor.turn(s.keys, epoch, at, group[0].change.Entry.Time)
	} else {
		err = s.anchor.put(s.keys, at, group[len(group)-1].change.Entry.Time)
	}
	if err != nil {
		s.stopWriting(err) // this group is on disk and is answered; nothing goes on without an anchor
	}
	return nil
}

// sealGroup numbers, chains and seals a group that follows prev. Until it returns nobody else answers the group; where
// that was done already it is errStuck, and the group is no longer ours to look at.
func (s *Store) sealGroup(group []*Pending, prev head) (writes []write, at head, err error) {
	if !s.seals(true) {
		return nil, at, errStuck
	}
	defer s.seals(false)
	at = prev
	plain, entry := s.plain[:0], s.entry
	writes = append(s.writes[:0], write{})
	for _, p := range group {
		e := &p.change.Entry
		e.Seq, e.Prev = at.seq+1, at.hash
		if writes, err = s.sealChange(writes, &p.change); err != nil {
			return nil, at, err
		}
		entry = appendEntry(entry[:0], e, *p.body)
		e.Hash = sha256.Sum256(entry)
		plain = append(binary.AppendUvarint(plain, uint64(len(entry))), entry...)
		at = head{e.Seq, e.Hash}
	}
	s.plain, s.entry = plain, entry
	sealed, err := s.sealer.seal(s.keys, prev.seq+1, prev.hash, len(group), plain)
	writes[0] = write{groupKey(prev.seq + 1), sealed}
	return writes, at, err
}

// seals notes that the committer works on the group itself, or does no more; false where the group was given up.
func (s *Store) seals(yes bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealing = yes && !s.abandoned
	return !s.abandoned
}

// stopWriting makes all that is submitted from now on fail.
func (s *Store) stopWriting(err error) {
	s.log.Error().Err(err).Msg("the store stops recording")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.fails(err)
	}
}

// gaveUp reports whether the group that is being written was answered already.
func (s *Store) gaveUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}

// Failed returns why nothing can be recorded now; nil when all is well.
func (s *Store) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}
