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
	"sync"
	"sync/atomic"
	"time"

	"keylease/internal/boottime"
	"keylease/internal/wholefile"
)

// anchor is the newest head, kept outside the data folder, so that a trail that lost its end — by a bad disk, which
// Badger does not notice, or by somebody — is found out. It is written after each group and so never ahead of the
// store; it is synced each second, so a power cut can leave it behind, which is harmless. Writing it takes no new room
// on its disk.
//
//	magic [8] · store id [16] · epoch u64 · seq u64 · head [32] · time i64 (ns since 1970) · marks u8
//	· seen: time i64, boot [16], up i64 · MAC [32] over all before
type anchor struct {
	file *os.File
	anchored
	found marks // when it was opened: what the process before left
	anew  bool  // it was opened to begin an epoch, whatever it says
	lost  error // then: why nothing can be known from it
	dirty atomic.Bool

	mu      sync.Mutex // guards the file and what follows: whoever owes does not wait for the disk of the data
	owing   bool
	written anchored // what the file says; zero: nobody knows

	clock sync.Mutex // guards what follows, and nobody has it while a disk works: time and seen, as the next writing has them
	high  time.Time
	last  Moment

	noting chan struct{} // see note
	later  atomic.Bool
}

// anchored is what an anchor says.
type anchored struct {
	epoch uint64 // from 1; counts the losses that an operator accepted, and the backups that were restored
	head
	time  time.Time // high-water: no daemon on this store acted by a later clock, except in the second before a power cut
	marks marks
	seen  Moment // the last that was observed
}

// Moment is a time by the clock that leases end by, and what the machine's own clock said then: a later process on
// the same start of the machine knows by it how long it was down, whatever was done to the wall clock.
type Moment struct {
	Time time.Time
	Boot boottime.ID   // which start of the machine; zero: unknown
	Up   time.Duration // since then, suspend included
}

// marks are what one process tells the next.
type marks uint8

const (
	markOpen  marks = 1 << iota // a daemon has the store open, or did not close it
	markOwing                   // something took effect and is not on disk: see Store.Owe
)

const (
	anchorMagic = "KLANCHR3"
	anchorSize  = 8 + 16 + 8 + 8 + 32 + 8 + 1 + 8 + 16 + 8 + 32
)

func anchorPath(dir string, storeID []byte) string {
	return filepath.Join(dir, fmt.Sprintf("anchor.%x", storeID[:4]))
}

// openAnchor opens the anchor of a store whose keys are proven, and makes it where the making of the store was cut
// short before (see Open). anew: whatever it says, or if it is gone, a new epoch is about to begin; until then the file
// is left as no anchor that a later start could believe.
func openAnchor(o Options, keys *keyring, anew bool) (*anchor, error) {
	left, _ := os.ReadDir(storeDir(o.Dir)) // before the anchor: whoever makes a store makes this last
	begun := len(left) > 0
	if err := trustAnchorFolder(o.AnchorDir, o.Create); err != nil {
		return nil, err
	}
	path := anchorPath(o.AnchorDir, keys.store[:])
	f, err := openPlain(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		missing := fmt.Errorf("%w: its anchor %s is missing, so nobody can tell whether events were cut off: put the file back", ErrIntegrity, path)
		switch {
		case begun && anew:
			f, err := openPlain(path, os.O_RDWR|os.O_CREATE)
			if err != nil {
				return nil, fmt.Errorf("making the anchor: %w", err)
			}
			return &anchor{file: f, anew: true, lost: missing, noting: make(chan struct{}, 1)}, wholefile.SyncFolder(o.AnchorDir)
		case begun:
			return nil, missing
		case !o.Create:
			return nil, fmt.Errorf("%w: %s was not made to the end", ErrNoStore, o.Dir)
		}
		if err := writeOnce(path, encodeAnchor(keys, anchored{epoch: 1})); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err = openPlain(path, os.O_RDWR)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the anchor: %w", err)
	}
	a := &anchor{file: f, anew: anew, noting: make(chan struct{}, 1)}
	err = a.reload(keys)
	a.found, a.owing = a.marks, a.marks&markOwing != 0
	switch {
	case err != nil && anew && errors.Is(err, ErrIntegrity):
		a.lost = err
		return a, nil
	case anew && err == nil:
		return a, nil
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

func encodeAnchor(keys *keyring, a anchored) []byte {
	b := make([]byte, 0, anchorSize)
	b = append(b, anchorMagic...)
	b = append(b, keys.store[:]...)
	b = binary.BigEndian.AppendUint64(b, a.epoch)
	b = binary.BigEndian.AppendUint64(b, a.seq)
	b = append(b, a.hash[:]...)
	b = binary.BigEndian.AppendUint64(b, nanos(a.time))
	b = append(b, byte(a.marks))
	b = binary.BigEndian.AppendUint64(b, nanos(a.seen.Time))
	b = append(b, a.seen.Boot[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(a.seen.Up))
	mac := keys.anchor.sum(b)
	return append(b, mac[:]...)
}

// nanos and fromNanos keep the zero time zero.
func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func fromNanos(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

// read returns what the file says.
func (a *anchor) read(keys *keyring) (anchored, error) {
	var b [anchorSize + 1]byte
	n, err := a.file.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return anchored{}, fmt.Errorf("reading the anchor: %w", err)
	}
	var is anchored
	if n == anchorSize {
		is.epoch = binary.BigEndian.Uint64(b[24:])
		is.seq = binary.BigEndian.Uint64(b[32:])
		copy(is.hash[:], b[40:])
		is.time = fromNanos(binary.BigEndian.Uint64(b[72:]))
		is.marks = marks(b[80])
		is.seen.Time = fromNanos(binary.BigEndian.Uint64(b[81:]))
		copy(is.seen.Boot[:], b[89:])
		is.seen.Up = time.Duration(binary.BigEndian.Uint64(b[105:]))
	}
	if n != anchorSize || is.epoch == 0 || !hmac.Equal(b[:anchorSize], encodeAnchor(keys, is)) {
		return anchored{}, fmt.Errorf("%w: the anchor %s was changed, or is another store's: put the right one back", ErrIntegrity, a.file.Name())
	}
	return is, nil
}

// reload reads the file. What was observed meanwhile stays.
func (a *anchor) reload(keys *keyring) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	is, err := a.read(keys)
	a.anchored, a.written = is, is
	if err == nil {
		a.raise(is.time)
		a.clock.Lock()
		defer a.clock.Unlock()
		if a.last == (Moment{}) {
			a.last = is.seen
		}
	}
	return err
}

// look reads the file, and never a half written one.
func (a *anchor) look(keys *keyring) (anchored, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.read(keys)
}

// raise lets the high-water be at least at.
func (a *anchor) raise(at time.Time) {
	a.clock.Lock()
	defer a.clock.Unlock()
	if at.After(a.high) {
		a.high = at
	}
}

// put writes h, which must be on disk already, and the time of its Entry.
func (a *anchor) put(keys *keyring, h head, at time.Time) error {
	is := a.anchored
	is.head = h
	a.raise(at)
	return a.write(keys, is)
}

// turn begins an epoch at h, which must be on disk already with a head that is signed for it; on disk when it returns.
func (a *anchor) turn(keys *keyring, epoch uint64, h head, at time.Time) error {
	is := a.anchored
	is.epoch, is.head = epoch, h
	is.marks |= markOpen
	a.raise(at)
	return errors.Join(a.write(keys, is), a.sync())
}

// write changes what the anchor says. Caller holds the store's disk.
func (a *anchor) write(keys *keyring, is anchored) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.writeFile(keys, is); err != nil {
		return err
	}
	a.anchored = is
	return nil
}

// writeFile writes is, with what is owed and the newest time, unless the file says so. Caller holds mu.
func (a *anchor) writeFile(keys *keyring, is anchored) error {
	is.marks = is.marks.with(markOwing, a.owing)
	a.clock.Lock()
	is.time, is.seen = a.high, a.last
	a.clock.Unlock()
	if is == a.written {
		return nil
	}
	a.written = anchored{}
	if _, err := a.file.WriteAt(encodeAnchor(keys, is), 0); err != nil {
		return fmt.Errorf("writing the anchor: %w", err)
	}
	a.written = is
	a.dirty.Store(true)
	return nil
}

// mark sets or clears marks, on disk when it returns.
func (a *anchor) mark(keys *keyring, m marks, on bool) error {
	is := a.anchored
	is.marks = is.marks.with(m, on)
	return errors.Join(a.write(keys, is), a.sync())
}

func (m marks) with(one marks, on bool) marks {
	if on {
		return m | one
	}
	return m &^ one
}

// owe says so at once, on disk when it returns. It leaves anchored to who holds the store's disk.
func (a *anchor) owe(keys *keyring, yes bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.owing = yes
	if err := a.writeFile(keys, a.anchored); err != nil {
		return err
	}
	return a.file.Sync()
}

// note writes down what time it is. Its disk may be one that does not answer, and who calls has others waiting: it
// returns after noteTime, and what it could not write is written when the disk answers.
func (a *anchor) note(keys *keyring) error {
	a.later.Store(true)
	select {
	case a.noting <- struct{}{}:
	default:
		return nil // the one before is still at it
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-a.noting }()
		var err error
		for a.later.Swap(false) {
			err = a.noteNow(keys)
		}
		done <- err
	}()
	late := time.NewTimer(noteTime)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return nil
	}
}

const noteTime = 100 * time.Millisecond

func (a *anchor) noteNow(keys *keyring) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.writeFile(keys, a.anchored)
}

func (a *anchor) owes() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owing
}

func (a *anchor) sync() error {
	if !a.dirty.Swap(false) {
		return nil
	}
	err := a.file.Sync()
	if err != nil {
		a.dirty.Store(true) // or the next would say yes without having tried
	}
	return err
}

func (a *anchor) close() error { return errors.Join(a.sync(), a.file.Close()) }

// Unclean reports whether the process that had the store open before this one did not close it.
func (s *Store) Unclean() bool { return s.anchor.found&markOpen != 0 }

// Owed reports whether the process before this one ended unclean while something that it had done was not on disk:
// see Owe.
func (s *Store) Owed() bool { return s.Unclean() && s.anchor.found&markOwing != 0 }

// Owe notes outside the data folder, on disk when it returns, that something took effect which can't be recorded now;
// false: that it is recorded, or forgotten.
func (s *Store) Owe(yes bool) error {
	return s.anchor.owe(s.keys, yes)
}

// HighWater is the latest time that any daemon on this store is known to have acted by.
func (s *Store) HighWater() time.Time {
	s.anchor.clock.Lock()
	defer s.anchor.clock.Unlock()
	return s.anchor.high
}

// Seen is the last Moment that was observed; zero where none was.
func (s *Store) Seen() Moment {
	s.anchor.clock.Lock()
	defer s.anchor.clock.Unlock()
	return s.anchor.last
}

// Observe notes what time it is, and raises HighWater to it. A process that is killed leaves it; it is on disk within
// a second. It waits for no disk longer than noteTime: one that does not answer has it when it does.
func (s *Store) Observe(now Moment) error {
	now = now.plain()
	s.anchor.raise(now.Time)
	s.anchor.clock.Lock()
	s.anchor.last = now
	s.anchor.clock.Unlock()
	return s.anchor.note(s.keys)
}

// SetBack lowers HighWater to now: an operator says that the clock was wrong. It is on disk when it returns.
func (s *Store) SetBack(now Moment) error {
	now = now.plain()
	s.anchor.clock.Lock()
	s.anchor.high, s.anchor.last = now.Time, now
	s.anchor.clock.Unlock()
	return errors.Join(s.anchor.noteNow(s.keys), s.anchor.sync())
}

// plain is m as reading it back gives it.
func (m Moment) plain() Moment {
	m.Time = fromNanos(nanos(m.Time))
	return m
}
