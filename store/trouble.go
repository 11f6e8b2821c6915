package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// State is what keeps the store from recording.
type State string

const (
	Full     State = "full"
	ReadOnly State = "read-only"
	Failing  State = "failing"       // errors of the disk, of Badger's work on it, or of the anchor's
	Stuck    State = "not answering" // a write has been under way for stuckTime
)

// Trouble says why nothing can be recorded, and since when.
type Trouble struct {
	State State
	Since time.Time // by the system's clock
	Err   error
}

const (
	// stuckTime is how long a group may be on its way to the disk before its callers are told that nobody knows. A busy
	// disk syncs in tenths of a second, one that comes back from an error in seconds.
	stuckTime = 5 * time.Second
	// recoverWait is how long Recover waits for a recovery that is under way.
	recoverWait = 250 * time.Millisecond
)

// Trouble returns why nothing can be recorded now; nil when all is well.
func (s *Store) Trouble() *Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		return nil
	}
	return &Trouble{stateOf(s.failed), s.since, s.failed}
}

var errStuck = errors.New("the disk does not answer")

// stateOf goes by Badger's words too: it does not wrap the errors of the system.
func stateOf(err error) State {
	said := func(e error) bool { return errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) }
	switch {
	case errors.Is(err, errStuck):
		return Stuck
	case errors.Is(err, ErrFull) || said(syscall.ENOSPC) || said(syscall.EDQUOT):
		return Full
	case said(syscall.EROFS):
		return ReadOnly
	}
	return Failing
}

// fails makes all that is submitted from now on fail. Caller holds mu.
func (s *Store) fails(err error) {
	if s.failed == nil {
		s.since = time.Now()
	}
	s.failed = fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Lost returns the Owed changes that could not be written since it was last asked, in order, and forgets them. One of
// a group that failed may be in the trail nevertheless: Load after Recover tells.
func (s *Store) Lost() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.lost
	s.lost = nil
	return lost
}

// lose answers p with err. Caller holds mu.
func (s *Store) lose(p *Pending, err error) {
	if p.change.Owed {
		s.lost = append(s.lost, p.change)
	}
	p.finish(err)
}

// watchLoop gives up on a group that the disk does not take, so that nobody waits for it for ever.
func (s *Store) watchLoop() {
	tick := time.NewTicker(stuckTime / 5)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.giveUp(time.Now())
		}
	}
}

func (s *Store) giveUp(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.busy || s.sealing || s.abandoned || now.Sub(s.begun) < stuckTime {
		return
	}
	s.abandoned = true // the committer finds it when the disk lets go of it
	s.fails(fmt.Errorf("%w: a write has been under way for %s", errStuck, stuckTime))
	for _, p := range append(s.current, s.queue...) {
		s.lose(p, s.failed)
	}
	s.queue = nil
	s.log.Error().Err(s.failed).Msg("the store stops recording")
}

// recovery is one attempt to write again. It may take as long as the disk does.
type recovery struct {
	done chan struct{}
	err  error
}

// Recover makes the store take changes again after one could not be written: it waits for what is in flight, makes
// sure that what can be read is on the disk, and reads the end of the trail from there. A group whose writing failed
// may turn out to be in it; the caller then rebuilds from Load what it holds in memory. It returns within recoverWait:
// where the disk takes longer it is ErrUnavailable, and a later call learns how it went.
func (s *Store) Recover() error {
	s.mu.Lock()
	r := s.recovering
	if r == nil {
		r = &recovery{done: make(chan struct{})}
		s.recovering = r
		go func() {
			r.err = s.recover()
			close(r.done)
		}()
	}
	s.mu.Unlock()
	late := time.NewTimer(recoverWait)
	defer late.Stop()
	select {
	case <-r.done:
	case <-late.C:
		return fmt.Errorf("%w: %w", ErrUnavailable, errStuck)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recovering = nil
	if r.err != nil && s.failed != nil {
		s.fails(r.err)
	}
	return r.err
}

func (s *Store) recover() error {
	s.mu.Lock()
	for s.busy || len(s.queue) > 0 {
		s.idle.Wait()
	}
	s.mu.Unlock()
	s.disk.Lock()
	defer s.disk.Unlock()
	if s.isClosed() {
		return fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	if err := s.room(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if s.torn.Load() {
		if err := s.reopen(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	} else if err := s.db.Sync(); err != nil {
		s.torn.Store(true)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	} else if err := s.readHead(); err != nil {
		return err
	}
	s.mu.Lock()
	s.failed = nil
	s.mu.Unlock()
	return nil
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// reopen closes Badger and opens it anew, in place, after it could not write. It must not go on:
//
//   - After an error of fsync the pages count as clean: the next sync says yes to what never reached the disk. Closing
//     writes all that Badger knows into new tables, and syncs those.
//   - Where Badger could not begin a new log it has none, and its next write ends the process (its own assertion).
//
// Ending the daemon so that it is started anew would do as well, but nobody restarts one in a terminal, and what ended
// in memory would be lost to the trail. Closing waits for Badger's tables to be written, so it is begun only when the
// disk takes a file of our own. Caller holds disk.
func (s *Store) reopen() error {
	if err := s.probe(); err != nil {
		return err
	}
	safety, err := s.closeAndOpen()
	if err != nil {
		return err
	}
	s.torn.Store(false)
	err = s.readHead()
	if err == nil {
		err = safety.drop()
	}
	if err != nil { // a copy that stays is put back by the next attempt, so nothing may be written before
		s.torn.Store(true)
		return err
	}
	s.log.Warn().Msg("the database was opened anew, since it could not write")
	return nil
}

func (s *Store) closeAndOpen() (safetyCopy, error) {
	s.open.Lock()
	defer s.open.Unlock()
	s.wal.close()
	if !s.db.IsClosed() {
		if err := s.db.Close(); err != nil {
			s.log.Warn().Err(err).Msg("closing the database that could not write")
		}
	}
	db, safety, err := s.openAgain()
	if err == nil {
		s.db = db
		s.values.drop()
	}
	return safety, err
}

// probe writes a file beside the database and syncs it.
func (s *Store) probe() error {
	path := filepath.Join(s.dir, "probe")
	_ = os.Remove(path) // of one that was killed
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(path))
}
