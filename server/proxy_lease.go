package server

import (
	"sync"
	"time"

	"keylease/internal/mask"
)

// leaseRest is how long what a lease's requests share is kept while there are none.
const leaseRest = 30 * time.Second

// passages keeps one passage to a lease, as making one takes longer than a request adds.
type passages struct {
	upstreams *upstreams

	mu  sync.Mutex // guards what follows, and users and rest of every passage
	all map[string]*passage
}

// passage is what the requests of one lease share with each other, and with those of no other lease.
type passage struct {
	mask  *mask.Masker
	ways  ways
	users int
	rest  *time.Timer
}

func newPassages(u *upstreams) *passages { return &passages{upstreams: u, all: map[string]*passage{}} }

// get returns the passage of a lease, whose value never changes. done must be called when it is no longer in use; ended
// says that the lease is over.
func (m *passages) get(leaseID string, value []byte) (p *passage, done func(ended bool)) {
	m.mu.Lock()
	p = m.all[leaseID]
	if p == nil {
		m.mu.Unlock()
		p = &passage{mask: mask.New(value), ways: ways{upstreams: m.upstreams}} // takes its time for a PEM
		m.mu.Lock()
		if other := m.all[leaseID]; other != nil {
			p.mask.Wipe()
			p = other
		} else {
			m.all[leaseID] = p
		}
	}
	p.users++
	if p.rest != nil {
		p.rest.Stop()
	}
	m.mu.Unlock()
	return p, func(ended bool) { m.put(leaseID, p, ended) }
}

func (m *passages) put(leaseID string, p *passage, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	switch {
	case ended:
		m.drop(leaseID, p)
	case p.rest == nil:
		p.rest = time.AfterFunc(leaseRest, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if p.users == 0 {
				m.drop(leaseID, p)
			}
		})
	default:
		p.rest.Reset(leaseRest)
	}
}

// drop wants mu held.
func (m *passages) drop(leaseID string, p *passage) {
	if m.all[leaseID] == p {
		delete(m.all, leaseID)
	}
	if p.rest != nil {
		p.rest.Stop()
	}
	p.mask.Wipe()
	p.ways.close()
}

// close forgets all, when nothing is under way any more.
func (m *passages) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, p := range m.all {
		if p.users == 0 {
			m.drop(id, p)
		}
	}
}
