package lease

import (
	"bytes"
	"context"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/boottime"
	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// world is a Broker on a real store, with a clock turned by hand and a policy file in memory.
type world struct {
	*Broker
	t       testing.TB
	dir     string
	rootKey []byte // nil: 32 zeros
	store   *store.Store
	disk    faultyDisk
	who     identity.Caller

	mu     sync.Mutex
	now    time.Time     // the wall clock
	up     time.Duration // the machine's own
	boot   boottime.ID
	policy string // "": there is no file
	stamp  int
}

var operator = identity.Caller{Principal: identity.Principal{Type: identity.Human, Name: "root", By: "uid:0"}}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC), boot: boottime.ID{1}}
	w.open()
	t.Cleanup(func() { w.lastUses(); _ = w.store.Close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	if err := w.tryOpen(false); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryOpen(dropPolicy bool) error { return w.tryOpenAs(Config{DropPolicy: dropPolicy}) }

// tryOpenAs opens it with what c says beside the usual.
func (w *world) tryOpenAs(c Config) error {
	s, err := store.Open(store.Options{Dir: filepath.Join(w.dir, "data"), AnchorDir: filepath.Join(w.dir, "config"),
		RootKey: w.root(), KeySource: "test", Create: true, Log: zerolog.Nop(), Now: w.clock, Fault: w.disk.write})
	if err != nil {
		return err
	}
	w.store = s
	c.Store, c.PolicyFile, c.Log, c.Now, c.Up, c.Boot = s, w.readPolicy, zerolog.Nop(), w.clock, w.uptime, w.boot
	b, err := Open(context.Background(), c)
	if err != nil {
		_ = s.Close()
		return err
	}
	w.Broker = b
	return nil
}

// restart ends the daemon as kill -9 does, without a snapshot, unless clean.
func (w *world) restart(clean bool) {
	w.t.Helper()
	w.stop(clean)
	w.open()
}

func (w *world) stop(clean bool) {
	w.t.Helper()
	if clean {
		if err := w.Broker.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	w.lastUses()
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) uptime() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}

// pass lets time go by; below zero, the wall clock is set back.
func (w *world) pass(d time.Duration) { w.turnClocks(d, max(d, 0)) }

// turnClocks turns the wall clock and the machine's own.
func (w *world) turnClocks(wall, up time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now, w.up = w.now.Add(wall), w.up+up
}

// reboot is the machine's: its own clock begins anew.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boot[0]++
	w.up = 0
}

func (w *world) setPolicy(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy = text
	w.stamp++
}

func (w *world) readPolicy(prev string) PolicyRead {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := PolicyRead{Name: "policy.yaml", Stamp: strconv.Itoa(w.stamp)}
	switch {
	case w.policy == "":
		r.Err = fs.ErrNotExist
	case prev != r.Stamp:
		r.Data = []byte(w.policy)
	}
	return r
}

func (w *world) put(name, value string, p policy.CredentialPolicy) {
	w.t.Helper()
	_, err := w.Put(context.Background(), operator, NewCredential{Name: name, Type: "api-key",
		Value: secret.New([]byte(value)), Policy: p})
	if err != nil {
		w.t.Fatal(err)
	}
}

// agent is a declared local caller with a live session.
func (w *world) agent(name string) identity.Caller {
	c := identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: name, By: "uid:1000"},
		Session: newID("s_"), Transport: "local", UID: "1000"}
	w.Attach(context.Background(), c)
	return c
}

func (w *world) lease(c identity.Caller, name string) Grant {
	w.t.Helper()
	g, err := w.Lease(context.Background(), c, Request{Credential: name, Purpose: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

func (w *world) value(c identity.Caller, id string) string {
	w.t.Helper()
	v, err := w.Reveal(context.Background(), c, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(v.Bytes())
}

// root is the root key, for the store to keep.
func (w *world) root() []byte {
	if w.rootKey != nil {
		return bytes.Clone(w.rootKey)
	}
	return make([]byte, 32)
}

func (w *world) live() int { return len(w.Leases(Filter{})) }

// told returns how many Entries of the trail are of an event.
func (w *world) told(event store.Event) int {
	w.t.Helper()
	n := 0
	err := w.Entries(context.Background(), EntryFilter{Event: string(event)}, func(*store.Entry) error { n++; return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func wantCode(t *testing.T, err error, code Code) *Refusal {
	t.Helper()
	r := AsRefusal(err)
	if r == nil || r.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	if r.Hint == "" && code != NotFound {
		t.Errorf("%s comes without a hint", code)
	}
	return r
}
