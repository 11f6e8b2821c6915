package server

import (
	"sync"
	"time"

	"keylease/internal/mask"
)

// maskerRest is how long a Masker is kept that nothing uses.
const maskerRest = 30 * time.Second

// maskers keeps one Masker to a lease, as making one takes longer than a request adds.
type maskers struct {
	mu  sync.Mutex // guards what follows, and all of every kept
	all map[string]*kept
}

type kept struct {
	*mask.Masker
	users int
	rest  *time.Timer
}

func newMaskers() *maskers { return &maskers{all: map[string]*kept{}} }

// get returns the Masker for the value of a lease, which never changes. done must be called when it is no longer in
// use; ended says that the lease is over.
func (m *maskers) get(leaseID string, value []byte) (masker *mask.Masker, done func(ended bool)) {
	m.mu.Lock()
	k := m.all[leaseID]
	if k == nil {
		m.mu.Unlock()
		k = &kept{Masker: mask.New(value)} // takes its time for a PEM
		m.mu.Lock()
		if other := m.all[leaseID]; other != nil {
			k.Wipe()
			k = other
		} else {
			m.all[leaseID] = k
		}
	}
	k.users++
	if k.rest != nil {
		k.rest.Stop()
	}
	m.mu.Unlock()
	return k.Masker, func(ended bool) { m.put(leaseID, k, ended) }
}

func (m *maskers) put(leaseID string, k *kept, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k.users--; k.users > 0 {
		return
	}
	switch {
	case ended:
		m.drop(leaseID, k)
	case k.rest == nil:
		k.rest = time.AfterFunc(maskerRest, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if k.users == 0 {
				m.drop(leaseID, k)
			}
		})
	default:
		k.rest.Reset(maskerRest)
	}
}

// drop wants mu held.
func (m *maskers) drop(leaseID string, k *kept) {
	if m.all[leaseID] == k {
		delete(m.all, leaseID)
	}
	if k.rest != nil {
		k.rest.Stop()
	}
	k.Wipe()
}

// wipe forgets all, when nothing is under way any more.
func (m *maskers) wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, k := range m.all {
		if k.users == 0 {
			m.drop(id, k)
		}
	}
}
