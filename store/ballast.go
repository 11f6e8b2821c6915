package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Ballast is how much of the disk a file of nothing takes in the data folder (Options.Ballast), to be let go when others
// have filled it. It is what Badger may need before anything else: two logs written out as tables, and a new log. So
// when the reserve is reached, releases, expiries and the trail go on for as long again, and a store whose disk
// is full opens.
const Ballast = reserve

const (
	// slack keeps states from flapping: lending begins again, and the ballast is made again, only when this much more
	// is free than what had it stop.
	slack = memTable

	ballastFile = "ballast"
)

// ballastIn is how much of the disk the ballast takes now.
func ballastIn(dir string) int64 {
	info, err := os.Lstat(filepath.Join(dir, ballastFile))
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// letBallastGo removes it. It reports whether there was any.
func letBallastGo(dir string) bool {
	return os.Remove(filepath.Join(dir, ballastFile)) == nil
}

// makeBallast makes it where there is room again: after it at least comfort and slack are left, or letting it go once
// would have it made at once again.
func (s *Store) makeBallast() {
	size := s.ballast.Load()
	if size == 0 || ballastIn(s.dir) >= size {
		return
	}
	if free, err := s.free(s.dir); err != nil || free < comfort+slack+uint64(size) {
		return
	}
	err := allocate(filepath.Join(s.dir, ballastFile), size)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		s.log.Warn().Err(err).Msg("the ballast can't be made")
	}
	if err != nil { // as it is, it would be in the way
		s.ballast.Store(0)
	}
}

// roomToOpen makes sure that Badger can open what is in dir: where the disk is full the process would die of SIGBUS.
func roomToOpen(o Options) error {
	free, err := o.Free(o.Dir)
	if err != nil || free >= comfort {
		return nil // a folder that is not there yet is made soon
	}
	if letBallastGo(o.Dir) {
		o.Log.Warn().Msg("the disk is nearly full: the ballast was let go so that the store opens")
		if free, err = o.Free(o.Dir); err != nil {
			return nil
		}
	}
	if _, err := os.Stat(storeDir(o.Dir)); free >= reserve || errors.Is(err, fs.ErrNotExist) && free > memTable {
		return nil
	}
	return fmt.Errorf("%w: %s has %d MiB free, and opening the store needs %d MiB: make room there first",
		ErrFull, o.Dir, free>>20, reserve>>20)
}

// Full reports whether the disk has so little room left that nothing new should be begun: giving leases back, ending
// and recording them goes on until the reserve is reached, and then as far as the ballast goes. It costs a microsecond
// or two. What it says may be lookAgain old.
func (s *Store) Full() bool { return s.seeSpace().full }

// FullSince is since when Full says so; zero when it does not.
func (s *Store) FullSince() time.Time { return s.seeSpace().since }

func (s *Store) seeSpace() *spaceSeen {
	now := time.Now()
	before := s.space.Load()
	if before != nil && now.Sub(before.at) < lookAgain {
		return before
	}
	seen := &spaceSeen{at: now}
	need := uint64(comfort)
	if before != nil && before.full {
		need += slack
	}
	free, err := s.free(s.dir)
	if size := s.ballast.Load(); err == nil && free < need+uint64(size) {
		need += uint64(max(size-ballastIn(s.dir), 0)) // what it let go is not room for new leases
	}
	if seen.full = err == nil && free < need; seen.full {
		seen.since = now
		if before != nil && before.full {
			seen.since = before.since
		}
	}
	s.space.Store(seen)
	return seen
}

// lookAgain is how long what was seen of the disk's space is believed: at 50 MB/s it loses half a megabyte meanwhile.
const lookAgain = 10 * time.Millisecond

type spaceSeen struct {
	at    time.Time
	full  bool
	since time.Time
}

// room refuses to write where it could kill the process: Badger's log is a sparse mapped file, and the first byte on a
// page that the disk has no room for is a SIGBUS. The ballast goes first.
func (s *Store) room() error {
	free, err := s.free(s.dir)
	if err != nil || free >= reserve {
		return nil
	}
	if letBallastGo(s.dir) {
		s.log.Warn().Msg("the disk is full: the ballast was let go, so that leases can be ended and recorded")
		if free, err = s.free(s.dir); err != nil || free >= reserve {
			return nil
		}
	}
	return fmt.Errorf("%w: %s has %d MiB free, %d MiB needed", ErrFull, s.dir, free>>20, reserve>>20)
}
