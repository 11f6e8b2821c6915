package lease

import (
	"fmt"
	"sync"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// clock is what leases end by. It never goes back and never stands still, so that a lease lasts no longer than was
// granted, whatever is done to the wall clock: now = max(wall, base + how long the machine has been up since), where
// base is how far the clock had come at the start. It follows the wall clock forward, and where that is set back it
// counts on by the machine's own clock, which counts suspend too.
type clock struct {
	wall func() time.Time
	up   func() time.Duration

	mu   sync.Mutex // guards what follows
	at   time.Time  // the wall clock when up was last asked, with its monotonic reading
	upAt time.Duration
	last time.Duration // how long the machine was up at the last look
	is   time.Time     // what that look returned
	skew time.Duration // how far the wall clock was behind it
}

// upFor is how long the answer of up is counted on by Go's own clock, which costs a fifth and stands still in suspend:
// that is noticed so much later.
const upFor = 10 * time.Millisecond

func newClock(wall func() time.Time, up func() time.Duration, floor time.Time) *clock {
	c := &clock{wall: wall, up: up, is: floor}
	c.at, c.upAt = wall(), up()
	c.last = c.upAt
	c.now()
	return c
}

func (c *clock) now() time.Time {
	now, _ := c.look()
	return now
}

// look returns the time, and how long the machine has been up.
func (c *clock) look() (now time.Time, up time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wall() // before up: what comes between must not make us fast
	if since := w.Sub(c.at); w != w.Round(0) && since >= 0 && since < upFor {
		up = c.upAt + since
	} else {
		up = c.up()
		c.at, c.upAt = w, up
	}
	c.is = c.is.Add(max(up-c.last, 0))
	c.last = max(c.last, up)
	if w.After(c.is) {
		c.is = w.Round(0)
	}
	c.skew = c.is.Sub(w.Round(0))
	return c.is.UTC(), c.last
}

// behind is how far the wall clock is behind.
func (c *clock) behind() time.Duration {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew
}

const (
	// observeLeases and observeIdle are how often it is written down how far the clock has come, with live leases or
	// questions and without. A kill loses nothing of it: on the same start of the machine it is counted on from any
	// earlier Moment. After a power cut it says whether the wall clock can be believed.
	observeLeases = time.Second
	observeIdle   = time.Minute

	// Clocks are corrected by less than noSkew all the time. From muchSkew on it is logged.
	noSkew   = time.Second
	muchSkew = 10 * time.Second
)

// openClock finds out what time it is, from the wall clock and from what is known of the last process here. It reports
// whether nobody can know how long that has been gone: the machine was started since, and its wall clock stands
// behind what it was then. Caller holds mu.
func (b *Broker) openClock() (lost bool) {
	floor, seen := b.store.HighWater(), b.store.Seen()
	if b.ix.newest.After(floor) {
		floor = b.ix.newest
	}
	up := b.cfg.Up()
	if seen.Boot.Known() && seen.Boot == b.cfg.Boot && up >= seen.Up {
		if by := seen.Time.Add(up - seen.Up); by.After(floor) {
			floor = by
		}
	} else {
		lost = !seen.Time.IsZero() && b.cfg.Now().Before(floor)
	}
	b.clock = newClock(b.cfg.Now, b.cfg.Up, floor)
	return lost
}

// observe writes down how far the clock has come, if it is time to, and returns when it will be again. Caller holds mu.
func (b *Broker) observe() time.Duration {
	every := observeIdle
	if len(b.ix.leases)+len(b.ix.asked) > 0 {
		every = observeLeases
	}
	m, was := b.moment(), b.observed
	jumped := m.Time.Sub(was.Time)-(m.Up-was.Up) >= noSkew // so that a kill does not take it back
	if left := every - m.Time.Sub(was.Time); left > 0 && !jumped {
		return left
	}
	b.observed = m
	if err := b.store.Observe(m); err != nil {
		b.cfg.Log.Error().Err(err).Msg("how far the clock has come can't be written down")
	}
	b.tellSkew()
	return every
}

func (b *Broker) moment() store.Moment {
	now, up := b.clock.look()
	return store.Moment{Time: now, Boot: b.cfg.Boot, Up: up}
}

// tellSkew logs that the wall clock is far behind, and that it no longer is. Caller holds mu.
func (b *Broker) tellSkew() {
	switch skew := b.clock.behind(); {
	case skew >= muchSkew && !b.skewTold:
		b.cfg.Log.Warn().Stringer("behind", skew.Round(time.Second)).Msg("the system's clock is behind keylease's, by which leases end: it was set back, or was ahead before. It ends when the system's clock catches up; if it was ahead by mistake, stop the daemon and start it once with 'keylease serve --accept-clock'")
		b.skewTold = true
	case skew < noSkew && b.skewTold:
		b.cfg.Log.Info().Msg("the system's clock has caught up with keylease's")
		b.skewTold = false
	}
}

// endAll ends every lease and every question with reason, and waits until that is on disk. Caller holds mu.
func (b *Broker) endAll(reason string) error {
	now := b.now()
	if err := b.expireDue(now); err != nil {
		return err
	}
	for _, l := range b.ix.leases {
		if _, _, err := b.end(l, store.EventLeaseRevoked, identity.Caller{}, now, reason); err != nil {
			return err
		}
	}
	for _, a := range b.ix.asked {
		if a.open(now) {
			b.giveUp(a, reason, now)
		}
	}
	return b.barrier()
}

// acceptClock believes the wall clock though it stands behind: an operator says that it is right. Nothing that was lent
// by the clock before goes on by the new one, so nothing lasts longer than was granted: leases, questions, tokens that
// were made later than it now is, and what a rotation let go on of a token's earlier text. Caller holds mu.
func (b *Broker) acceptClock() error {
	wrong, right := b.now(), b.cfg.Now().Round(0).UTC()
	if !right.Before(wrong) {
		b.cfg.Log.Info().Msg("the system's clock is not behind keylease's: there is nothing to accept")
		return nil
	}
	const reason = "the operator set keylease's clock back"
	if err := b.endAll(reason); err != nil {
		return err
	}
	for id, t := range b.ix.tokens {
		rec, event := t.rec, store.EventTokenRevoked
		switch {
		case t.damaged || rec.Revoked:
			continue
		case rec.CreatedAt.After(right):
			rec.Revoked = true
		case rec.PreviousUntil.After(right): // nobody knows by which clock it was rotated
			rec.Previous, rec.PreviousUntil, event = [32]byte{}, time.Time{}, store.EventTokenRotated
		default:
			continue
		}
		if err := b.writeToken(identity.Caller{}, event, rec); err != nil {
			return fmt.Errorf("ending what token %s proved by the clock before: %w", id, err)
		}
	}
	// From here on: a crash before the Entry leaves all ended and the clock as it was, and is begun anew.
	if err := b.store.SetBack(store.Moment{Time: right, Boot: b.cfg.Boot, Up: b.cfg.Up()}); err != nil {
		return err
	}
	b.clock = newClock(b.cfg.Now, b.cfg.Up, right)
	e := store.Entry{Event: store.EventClockSetBack, Details: store.DetailsOf("from", stamp(wrong), "reason", reason)}
	_, err := b.change(store.Change{Entry: e}, nil)
	b.cfg.Log.Warn().Time("from", wrong).Time("to", right).Msg("the clock was set back; all leases were ended")
	return err
}

// applyClockSetBack forgets what was remembered for a time that is now far ahead.
func (ix *index) applyClockSetBack(e *store.Entry) {
	ix.newest = e.Time
	ix.ended = newEndedRing()
	clear(ix.denials)
	if day := dayOf(e.Time); ix.books.Day > day { // else today's budgets would last until that day is over
		ix.books.Day, ix.books.Spent = day, nil
	}
	for _, t := range ix.tokens {
		if t.lastUsed.After(e.Time) {
			t.lastUsed = e.Time
		}
	}
}

// upOf makes a clock that counts on out of one that tells the time, for who has no other.
func upOf(now func() time.Time) func() time.Duration {
	began := now()
	return func() time.Duration { return now().Sub(began) }
}

// settleClock is for a start, when the policy is known. Caller holds mu.
func (b *Broker) settleClock(lost bool) error {
	switch {
	case b.cfg.AcceptClock:
		if err := b.acceptClock(); err != nil {
			return fmt.Errorf("setting the clock back: %w", err)
		}
	case lost && len(b.ix.leases)+b.ix.waitingApprovals(b.now()) > 0:
		b.cfg.Log.Warn().Msg("the machine was restarted, and its clock stands behind what it was before: nobody can tell for how long it was off, so all leases are ended")
		if err := b.endAll("the machine was off for nobody knows how long: its clock was behind"); err != nil {
			return fmt.Errorf("ending the leases: %w", err)
		}
	}
	b.observed = b.moment()
	return b.store.Observe(b.observed)
}
