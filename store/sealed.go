package store

import "sync"

const (
	// maxHeld and maxHeldValue bound what held values take: 4 MiB at most, and less than 1 KiB for one of a usual size.
	maxHeld      = 1024
	maxHeldValue = 4 << 10
)

// sealedValues are values that were read lately, as they lie on the disk: sealed, each with its wrapped data key. So
// nothing is in memory that is not in the files, and whoever wants one unwraps and opens it each time; what is saved is
// the way through Badger, which took longer than that. What is held has to be what the trail speaks of, like anything
// that was read.
type sealedValues struct {
	mu    sync.Mutex
	at    map[ValueRef]*sealedValue
	drops uint64 // how often it was emptied: what was read before is not put in after
}

// sealedValue does not change once it is held.
type sealedValue struct {
	root             *rootKeys // under which wrapped is; another one's data keys are in other places
	ref              RecordRef
	wrapped, sealed  []byte
	keyAAD, valueAAD []byte
}

// get returns what is held of ref, as sealed under root; nil: nothing. drops is for put.
func (c *sealedValues) get(ref RecordRef, root *rootKeys) (v *sealedValue, drops uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v = c.at[ValueRef{ref.ID, ref.Version}]; v != nil && (v.root != root || v.ref != ref) {
		v = nil
	}
	return v, c.drops
}

// put holds v, unless it was read before the last drop.
func (c *sealedValues) put(v *sealedValue, drops uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if drops != c.drops || len(v.sealed) > maxHeldValue {
		return
	}
	if c.at == nil || len(c.at) >= maxHeld {
		c.at = map[ValueRef]*sealedValue{}
	}
	c.at[ValueRef{v.ref.ID, v.ref.Version}] = v
}

// drop forgets all of them: a key is gone, or the files are others.
func (c *sealedValues) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = nil
	c.drops++
}
