// Package store is what keylease remembers: one Badger database that holds the trail — which is the state of the
// leases —, the sealed records of credentials and tokens, and the sealed values. Its rule: nothing is in it in plain,
// nothing is believed that does not authenticate, and a change is durable before anybody is told of it.
//
// On disk, and who gains what by changing it:
//
//	Dir/keycheck       store id, salt, proof of the root key. Trusted after its MAC; a change is ErrWrongKey.
//	Dir/store/         Badger. Trusted for nothing: each value is sealed to its place, the trail is chained, and
//	                   what was cut off shows against the anchor.
//	Dir/store.part/    a copy of store/ that is being made or removed                      safety.go
//	Dir/store.safe/    the whole copy, until the check has passed: what Badger did to store/ before is undone from it
//	Dir/store.trial-N  a copy that process N has another process open first                trial.go
//	Dir/lost-TIME/     all of it as it was when a loss was accepted; never read again      loss.go
//	Dir/ballast        room for when the disk is full; no contents                         ballast.go
//	Dir/probe          there for a moment, to see whether the disk writes again            trouble.go
//	AnchorDir/anchor.ID  the newest head, outside the folder, and what one process tells the next. Who can put both
//	                   it and Dir back to an older state goes back in time unseen; nothing less does.     anchor.go
//
// The copies are trusted for no more than store/ is: what comes of them is checked alike.
//
// Beside a file that is being made lies a hidden one with its name for a while, and beside Dir .NAME.restore-*, where
// a backup is read (restore.go). A crash may leave them.
//
// Keys in Badger (hash = the first 16 bytes of a keyed hash):
//
//	T · first seq u64            one group of the trail            group.go
//	b                            where the trail begins            base.go
//	h                            the newest signed head            head.go
//	m, n                         the newest snapshot's manifest, and the one's before it     snapshot.go
//	s · generation [8] · n u32   their chunks                      snapshot.go
//	r · hash(kind, id)           a credential or token record      record.go
//	v · hash(id) · version u32   the value of a credential         record.go
//	d · generation u32 · hash(id) · version u32   the data key that seals it, wrapped under that generation's root key   keys.go
//	k                            a root key is being replaced      rotate.go
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/rs/zerolog"
)

// Options say which store to open. All but KeySource and Create are required.
type Options struct {
	Dir       string // the data folder; 0700 and ours
	AnchorDir string // where the anchor lies: beside the root key, never in Dir
	RootKey   []byte // 32 bytes; not kept
	KeySource string // recorded when the store is created
	Create    bool   // make the store if there is none
	Log       zerolog.Logger
	Now       func() time.Time

	// Trial opens a copy of the database in a process of its own: it calls TryOut there with dir and returns what that
	// wrote. Badger panics on some damage where nobody can recover, and the death of a process is an answer; with
	// ErrDied it says that the process died. nil: no trial.
	Trial func(ctx context.Context, dir string) ([]byte, error)

	// Fault is for tests: it stands in front of the one synced transaction by which anything gets into the database,
	// and what it returns is taken for the outcome. It may fail before write, after it (the disk has it, and nobody
	// is told), or hold it. It is called by one goroutine at a time, and no other write begins meanwhile. nil: none.
	Fault func(write func() error) error
	Free  func(dir string) (uint64, error) // for tests: how many bytes are free where dir lies. nil: the system says

	Ballast int64 // bytes of the disk to hold and let go when it is full, normally Ballast; 0: none
}

// Store is an open store. All its methods may be called at once.
type Store struct {
	keys *keyring
	db   *badger.DB
	log  zerolog.Logger
	now  func() time.Time
	dir  string

	free    func(dir string) (uint64, error)
	ballast atomic.Int64              // how large it should be; 0: none
	space   atomic.Pointer[spaceSeen] // see Full

	// open is held for reading by whoever reads from Badger, for writing while it is opened anew; torn: it has to be,
	// and is not to be used until then.
	open      sync.RWMutex
	torn      atomic.Bool
	openAgain func() (*badger.DB, safetyCopy, error)

	// mu guards the queue and what is known to be durable.
	mu     sync.Mutex
	wake   *sync.Cond // the committer has something to do
	idle   *sync.Cond // the committer has nothing left
	queue  []*Pending
	busy   bool  // a group is being written: current, since begun
	failed error // a group could not be written: nothing else is until Recover
	closed bool
	head   head

	values sealedValues

	snapping sync.Mutex    // held by whoever stores a snapshot
	snapped  atomic.Uint64 // see SnapshotSeq

	current    []*Pending
	begun      time.Time
	sealing    bool      // the committer is at current: nobody else touches it
	abandoned  bool      // current was answered already: see giveUp
	since      time.Time // when failed was set
	lost       []Change  // see Lost
	recovering *recovery // under way, or nobody has asked how it went

	// disk is held by whoever writes to Badger or the anchor: the committer, the checkpoint, Snapshot, Destroy and
	// Recover. It guards the fields below, and nobody else changes head. Taken before mu.
	disk   sync.Mutex
	wal    wal
	write  func([]write) error // one synced transaction; tests put a failing disk in front of it
	anchor *anchor
	sealer sealer
	signed uint64 // seq of the newest signed head
	plain  []byte // the committer's buffers
	entry  []byte
	writes []write
	group  []*Pending

	rotation sync.Mutex  // held by whoever replaces the root key; taken before disk
	rotated  atomic.Bool // see Rotated

	lagging  atomic.Int32 // looks in a row that found merging behind: see watchLevels
	pruning  sync.Mutex   // held by Prune
	dropping sync.RWMutex // for writing while groups are dropped, for reading while an iterator is put on them

	stop      chan struct{}
	running   sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// head is the end of the trail: its last Entry.
type head struct {
	seq  uint64
	hash Digest
}

// Open opens the store in o.Dir, or makes one if there is none and o.Create is set. A wrong key, a second process
// and a store that was tampered with are told apart by errors.Is: ErrWrongKey, ErrLocked, ErrIntegrity, ErrNoStore,
// ErrFolder. From here on the process creates files for its owner only (umask 077).
//
// Making a store goes in this order; a crash after each step leaves
//
//	1 folder            nothing: ErrNoStore, or begun anew
//	2 keycheck          no anchor and no store/: Open with Create goes on at 3
//	3 anchor at seq 0   no store/ and an anchor that misses nothing: goes on at 4
//	4 store/ (Badger)   a whole, empty store
//
// so a store/ without keycheck or anchor was never left by a crash.
func Open(o Options) (*Store, error) {
	s, err := openChecked(o, false, (*Store).readHead)
	if err != nil {
		return nil, err
	}
	s.running.Go(s.commitLoop)
	s.running.Go(s.checkpointLoop)
	s.running.Go(s.watchLoop)
	return s, nil
}

// openChecked opens the files and holds them against what is known of them. anew: see openAnchor.
func openChecked(o Options, anew bool, check func(*Store) error) (*Store, error) {
	if o.Now == nil {
		return nil, errors.New("store: Options.Now is required")
	}
	if o.Free == nil {
		o.Free = freeBytes
	}
	privateFiles()
	keys, err := openKeycheck(o)
	if err != nil {
		return nil, err
	}
	if err := roomToOpen(o); err != nil {
		return nil, err
	}
	a, err := openAnchor(o, keys, anew)
	if err != nil {
		return nil, err
	}
	db, safety, err := openBadger(o, a)
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	if err := lockFile(a.file); err != nil { // two copies of one folder would write to one anchor
		return nil, errors.Join(fmt.Errorf("%w: the anchor of this store, %s, is that of a daemon on another data folder", err, a.file.Name()), db.Close(), asItWas(safety, o.Log), a.close())
	}
	s := &Store{keys: keys, db: db, log: o.Log, now: o.Now, dir: o.Dir, anchor: a, wal: wal{dir: storeDir(o.Dir)}, stop: make(chan struct{}),
		free: o.Free, openAgain: func() (*badger.DB, safetyCopy, error) { return openBadger(o, a) }}
	s.wake, s.idle = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.ballast.Store(o.Ballast)
	s.write = s.transact
	if o.Fault != nil {
		s.write = func(w []write) error { return o.Fault(func() error { return s.transact(w) }) }
	}
	if err = check(s); errors.Is(err, errMissing) {
		err = withSuspects(err, safety.safe)
	}
	if lost := unnamed(safety.safe); err == nil && !anew && len(lost) > 0 { // Badger has removed them; the copy has not
		if err = s.begins(); err != nil {
			err = fmt.Errorf("%w (%s: %s)", err, safety.dir, strings.Join(lost, "; "))
		}
	}
	if err == nil {
		err = s.resumeRotation()
	}
	if err == nil && !anew { // an anchor that can't be believed stays one until the epoch begins
		err = a.mark(keys, markOpen, true)
	}
	if err == nil {
		err = safety.drop()
	}
	if err != nil {
		return nil, errors.Join(err, db.Close(), asItWas(safety, o.Log), a.close())
	}
	return s, nil
}

// begins reads the first group of the trail: a table that was lost may have held it.
func (s *Store) begins() error {
	enough := errors.New("enough")
	if err := s.Entries(context.Background(), 0, func(*Entry) error { return enough }); !errors.Is(err, enough) {
		return err
	}
	return nil
}

// readHead reads the end of the trail from the disk and holds it against the anchor and the signed head.
func (s *Store) readHead() error {
	h, err := s.lastOnDisk()
	if err != nil {
		return fmt.Errorf("reading the end of the trail: %w", err)
	}
	if err := s.anchor.reload(s.keys); err != nil {
		return err
	}
	signed, err := s.readSigned()
	if err != nil {
		return err
	}
	turned, err := checkEpoch(s.anchor.epoch, signed)
	if err != nil {
		return err
	}
	if !turned { // or the anchor is of the epoch before, which this trail need not reach
		err = s.checkAgainst(h, s.anchor.head, "the anchor outside the data folder")
	}
	if err != nil {
		return err
	}
	if err := s.checkAgainst(h, signed.head, "the signed head"); err != nil {
		return err
	}
	s.signed = signed.seq
	s.mu.Lock()
	s.head = h
	s.mu.Unlock()
	if turned {
		return s.anchor.turn(s.keys, signed.epoch, h, time.Time{})
	}
	return s.anchor.put(s.keys, h, time.Time{})
}

// checkAgainst refuses a trail that ends at h but lacks, or contradicts, an earlier head that is known.
func (s *Store) checkAgainst(h, known head, what string) error {
	if known.seq == 0 {
		return nil
	}
	if known.seq > h.seq {
		return missingEvents(h.seq, known.seq, what)
	}
	hash := h.hash
	if known.seq < h.seq {
		var err error
		if hash, err = s.hashAt(known.seq); err != nil {
			return err
		}
	}
	if hash != known.hash {
		return &fault{known.seq, "it is not the one that " + what + " knows"}
	}
	return nil
}

// ID is the store's random id, in hex.
func (s *Store) ID() string { return fmt.Sprintf("%x", s.keys.store) }

// Fingerprint names the Ed25519 key that signs this store's heads. Who pins it can tell this trail from any other.
func (s *Store) Fingerprint() string { return s.keys.fingerprint() }

// Head returns the last event that is durable; 0 and zero while the trail is empty.
func (s *Store) Head() (seq uint64, hash [32]byte) {
	h := s.durable()
	return h.seq, h.hash
}

func (s *Store) durable() head {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

// Close writes what was submitted, signs the head and closes the files. Later calls return what the first did.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.wake.Broadcast()
		s.mu.Unlock()
		close(s.stop)
		if s.closeErr = s.stopped(); s.closeErr != nil {
			return // the disk holds what would have to be closed
		}
		s.closeErr = errors.Join(s.anchor.noteNow(s.keys), s.checkpoint())
		s.wal.close()
		s.closeErr = errors.Join(s.closeErr, s.closeDB())
		if s.closeErr == nil && !s.anchor.owes() { // or the next start would not ask
			s.closeErr = s.anchor.mark(s.keys, markOpen, false)
		}
		s.closeErr = errors.Join(s.closeErr, s.anchor.close())
	})
	return s.closeErr
}

// stopped waits for the committer and the others, but no longer than closeTime.
func (s *Store) stopped() error {
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		s.disk.Lock() // a recovery
		defer s.disk.Unlock()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(closeTime):
		return fmt.Errorf("%w: the store was not closed; nothing that was acknowledged is lost", errStuck)
	}
}

// closeTime is how long Badger may take to write out its tables. Where its folder is gone or its disk is full it tries
// again each second for ever, but everything acknowledged is synced already: what it would write is read back from
// its log at the next open.
const closeTime = 5 * time.Second

func (s *Store) closeDB() error {
	closed := make(chan error, 1)
	go func() { closed <- s.db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeTime):
		return fmt.Errorf("the database did not close within %s: is its folder gone, or its disk full? Nothing that was acknowledged is lost", closeTime)
	}
}
