// Package lease is the heart: it decides who gets the use of a credential, for how long, and when that is over. Its
// rule: nothing changes untold. Every change is an Entry of the store's trail, submitted under the same lock that
// changed the index and waited for before anybody is told; what could not be written did not happen.
package lease

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/boottime"
	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/store"
)

// DefaultGrace is how long leases outlive their session: time for a client to come back.
const DefaultGrace = time.Minute

// rebuildPause is how long the Broker waits between two attempts to read the trail back while the disk fails: reading
// it costs about a microsecond an Entry, and callers wait for it.
const rebuildPause = time.Second

// Config is what a Broker works with. Store and Now are required.
type Config struct {
	Store      *store.Store
	PolicyFile func(prevStamp string) PolicyRead // nil: no policy file
	DropPolicy bool                              // start without the policy that governed before; recorded
	Log        zerolog.Logger
	Now        func() time.Time // the wall clock
	// Up is how long the machine has been up, suspend included, in this start of it, which Boot names; see boottime.
	// nil: as Now counts on.
	Up   func() time.Duration
	Boot boottime.ID
	// AcceptClock believes the wall clock though it stands behind what was seen: see acceptClock.
	AcceptClock bool
	Grace       time.Duration // 0: DefaultGrace
	KeySource   string        // where the root key came from, for the record
	Version     string

	KeepTrail time.Duration // how long events are kept at least; those that confirmed exports hold may go then. 0: for ever

	Asked func(ApprovalInfo) // told of each new question, once it is on disk; must not block. nil: nobody is

	// NewKey makes a root key and keeps it, on disk, beside the one in force. nil: that one does not come from a file.
	NewKey func() (NewKey, error)

	DenyDeclared bool // callers whose name nothing proves are refused every verb
}

// Broker lends. All its methods may be called at once.
type Broker struct {
	cfg   Config
	store *store.Store
	clock *clock
	// unseal is the store's Value. A test has something happen meanwhile.
	unseal func(credentialID string, version int, ref store.RecordRef) (secret.Secret, error)
	// noteOwed is the store's Owe. A test has it take long.
	noteOwed func(yes bool) error

	// mu guards everything below and is what makes the order of the trail the order of the decisions: whoever
	// changes the index submits the Entry before letting go. It is not held while the disk works, except by the
	// rare verbs that change credentials or tokens.
	mu           sync.Mutex
	ix           *index
	policy       policyState
	sessions     map[string]identity.Principal // live sessions
	lapsed       map[string]bool               // sessions that were forgotten for being quiet, while leases are bound to them
	uses         *uses                         // has a mutex of its own
	rates        rates
	failures     failures
	broken       error          // the trail can't be written; nothing changes until rebuild succeeds
	epoch        int            // how often the index was rebuilt: a failure of an earlier epoch was dealt with
	closed       bool           // the snapshot is being written: nothing may come after it
	rebuilt      time.Time      // when the index was last rebuilt, or that was tried
	owed         []store.Change // what ended and could not be recorded yet; see owed.go
	owing        bool           // the anchor says so
	late         *note          // to the anchor, that nobody waits for any more; nil: there is none
	newest       written        // the change submitted last: once it is durable, all are
	lastCall     time.Time
	destroySince time.Time    // when keys to destroy began to wait for a quiet moment
	observed     store.Moment // when the time was last written down
	skewTold     bool         // that the wall clock is far behind

	sweepAt time.Time // when Run looks at the deadlines again; a sweep under way ends before

	wake     chan struct{} // tells Run that the next deadline may have changed
	newEntry notifier      // tells Follow that the trail grew
	answered notifier      // tells Await that a question was answered, or is over
}

// Open loads the state from the trail, orphans what was bound to sessions of the previous run, and checks that the
// policy that governed is still there. Errors name what to do.
func Open(ctx context.Context, c Config) (*Broker, error) {
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Up == nil {
		c.Up = upOf(c.Now)
	}
	b := &Broker{cfg: c, store: c.Store, unseal: c.Store.Value, noteOwed: c.Store.Owe, sessions: map[string]identity.Principal{}, lapsed: map[string]bool{}, uses: newUses(), wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return nil, err
	}
	lost := b.openClock()
	b.lastCall = b.now()
	if err := b.openPolicy(); err != nil {
		return nil, err
	}
	if err := b.settleClock(lost); err != nil {
		return nil, err
	}
	if err := b.freezeWhatWasOwed(); err != nil {
		return nil, err
	}
	if err := b.orphanAll(); err != nil {
		return nil, err
	}
	if b.store.Rotated() {
		if err := b.recordRotation(store.Entry{Event: store.EventKeyRotated}, "the process ended before this was recorded"); err != nil {
			return nil, err
		}
		if err := b.store.FinishRotation(); err != nil {
			b.cfg.Log.Error().Err(err).Msg("what the root key before this one opens is still in the files; the next start tries again")
		}
	}
	return b, ctx.Err()
}

func (b *Broker) now() time.Time { return b.clock.now() }

// load rebuilds the index from the store. Caller holds mu.
func (b *Broker) load() error {
	ix, err := b.read()
	if err != nil {
		return err
	}
	for _, err := range ix.loadRecords(b.store) {
		b.cfg.Log.Error().Err(err).Msg("a record is damaged and refused; all others are served")
	}
	b.ix = ix
	return nil
}

// read is what the trail tells, without the records.
func (b *Broker) read() (*index, error) {
	ix, err := readIndex(b.store, func() error { return nil })
	if err != nil {
		return nil, fmt.Errorf("rebuilding the leases from the trail: %w", err)
	}
	return ix, nil
}

// readIndex makes the index that the store tells, all but the records. step is called before each Entry that is applied,
// and an error of it ends the reading.
func readIndex(s *store.Store, step func() error) (ix *index, err error) {
	err = s.Load(
		func(snapshot []byte, _ uint64) error {
			if ix = newIndex(); len(snapshot) == 0 { // none; or the store lost what one told, which was accepted
				return nil
			}
			return ix.restore(snapshot)
		},
		func(e *store.Entry) error {
			if err := step(); err != nil {
				return err
			}
			return ix.replay(e)
		})
	return ix, err
}

// replay applies an Entry that is on disk.
func (ix *index) replay(e *store.Entry) error {
	if err := ix.apply(e, nil); err != nil {
		return err
	}
	ix.seq = e.Seq
	if e.Time.After(ix.newest) { // and see applyClockSetBack
		ix.newest = e.Time
	}
	if e.Event == store.EventLeaseCreated {
		ix.leases[e.LeaseID].durable = true
	}
	return nil
}

// Close refuses all further changes, waits for those in flight, and writes a snapshot so that the next start is short.
// It does not close the store.
func (b *Broker) Close() error {
	b.lastUses()
	b.uses.wipeAll()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return fmt.Errorf("no snapshot: %w", b.broken)
	}
	b.closed = true
	b.answered.broadcast()
	if err := b.barrier(); err != nil {
		return fmt.Errorf("no snapshot: %w", err)
	}
	b.ix.seq, _ = b.store.Head()
	b.ix.newest = b.now()
	if err := b.store.Observe(b.moment()); err != nil {
		return fmt.Errorf("no snapshot: %w", err)
	}
	data, err := b.ix.snapshot()
	if err != nil {
		return fmt.Errorf("encoding the snapshot: %w", err)
	}
	return b.store.Snapshot(data)
}

// Started and Stopped put the daemon's own life into the trail.
func (b *Broker) Started(_ context.Context, details store.Details) error {
	return b.note(store.EventServerStarted, details)
}

// Stopped records an orderly end.
func (b *Broker) Stopped(_ context.Context, reason string) error {
	b.mu.Lock()
	if b.ready() == nil {
		b.summaries(b.now(), true)
	}
	b.mu.Unlock()
	return b.note(store.EventServerStopped, store.DetailsOf("reason", reason))
}

func (b *Broker) note(event store.Event, details store.Details) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return err
	}
	_, err := b.change(store.Change{Entry: store.Entry{Event: event, Details: details}}, nil)
	return err
}

// Size is how many leases and credentials are held in memory.
func (b *Broker) Size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ix.leases) + len(b.ix.creds)
}

// Activity is what decides whether an idle daemon may end, and what /readyz tells.
type Activity struct {
	LiveLeases  int
	Waiting     int // questions that wait for a person, and answers that wait for whoever asked
	Credentials int
	Quiet       time.Duration // since the last call
	Healthy     bool
	Problem     string        // for operators
	Store       string        // unless healthy: NearlyFull, or a store.State
	Since       time.Time     // when that began
	Frozen      *Frozen       // nil: keylease lends
	Skew        time.Duration // how far the wall clock is behind the one that leases end by
}

// Activity reports how busy and how well the Broker is.
func (b *Broker) Activity() Activity {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, live := b.now(), 0
	for _, l := range b.ix.leases {
		if l.live(now) {
			live++
		}
	}
	a := Activity{LiveLeases: live, Waiting: b.ix.waitingApprovals(now), Credentials: len(b.ix.creds), Healthy: true, Frozen: b.ix.frozen,
		Quiet: now.Sub(b.lastCall), Skew: b.clock.behind()}
	switch t := b.store.Trouble(); {
	case t != nil:
		a.Healthy, a.Store, a.Since = false, string(t.State), t.Since
		a.Problem = fmt.Sprintf("the store cannot record changes (%s since %s): %v", t.State, t.Since.Format(time.DateTime), t.Err)
	case b.broken != nil:
		a.Healthy, a.Store, a.Since, a.Problem = false, string(store.Failing), b.rebuilt, "the store cannot record changes: "+b.broken.Error()
	case b.store.Full():
		a.Healthy, a.Store, a.Since = false, NearlyFull, b.store.FullSince()
		a.Problem = fmt.Sprintf("the disk is nearly full since %s: nothing new is lent; releasing and ending go on", a.Since.Format(time.DateTime))
	}
	if len(b.owed) > 0 {
		a.Problem += fmt.Sprintf("; %d changes that took effect wait to be recorded", len(b.owed))
	}
	return a
}
