package store

import (
	"fmt"
	"time"
)

// Disk is what the store takes of the disk, and whether Badger keeps up with merging its tables.
type Disk struct {
	Bytes   int64  `json:"bytes"`             // tables, and logs as Badger saw them within the last minute
	Tables  int    `json:"tables"`            // in all levels
	Waiting int    `json:"waiting"`           // of them in level 0: they wait to be merged into the others
	Stale   int64  `json:"stale_bytes"`       // in tables, of what was replaced: merging gives it back
	Problem string `json:"problem,omitempty"` // merging lags: why, and what to do. "": it does not
}

const (
	// watchEvery is how often it is looked whether merging keeps up.
	watchEvery = time.Minute
	// laggard is how many looks in a row find that it does not before it is said: a burst is no lag.
	laggard = 3
)

// Disk reads it from memory: no file is touched. It is zero while the database is being opened anew.
func (s *Store) Disk() Disk {
	if s.torn.Load() || !s.open.TryRLock() {
		return Disk{}
	}
	defer s.open.RUnlock()
	_, logs := s.db.Size() // its tables are those of a minute ago
	d := Disk{Bytes: logs}
	for _, l := range s.db.Levels() {
		d.Bytes += l.Size
		d.Tables += l.NumTables
		d.Stale += l.StaleDatSize
		if l.Level == 0 {
			d.Waiting = l.NumTables
		}
	}
	if s.lagging.Load() >= laggard {
		d.Problem = fmt.Sprintf("merging tables lags behind: %d wait, and at %d writing stops until one is merged; look for a slow disk, or other programs that use it", d.Waiting, stallAt)
	}
	return d
}

// watchLevels counts the looks that found merging behind, and says so once.
func (s *Store) watchLevels() {
	waiting := s.Disk().Waiting
	if waiting <= stallAt/2 {
		if s.lagging.Swap(0) >= laggard {
			s.log.Info().Msg("merging tables has caught up")
		}
		return
	}
	if s.lagging.Add(1) == laggard {
		s.log.Warn().Msg(s.Disk().Problem)
	}
}
