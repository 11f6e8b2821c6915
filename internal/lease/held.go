package lease

import (
	"bytes"
	"time"

	"keylease/internal/secret"
	"keylease/policy"
)

// restValue is how long a value is held that no request wants. The proxy's masker, which knows it too, is kept as long.
const restValue = 30 * time.Second

// heldValue is the value of a live lease by proxy between two of its requests: reading and unsealing it took longer than
// all else that keylease decides about one. It is wiped with the lease, and when no request came for a while.
type heldValue struct {
	value secret.Secret
	used  bool // since resting looked
}

// held returns a copy of the value that is held of u's lease.
func (s *uses) held(u *Use) (secret.Secret, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.values[u.Lease.LeaseID]
	if v == nil {
		return secret.Secret{}, false
	}
	v.used = true
	return secret.New(bytes.Clone(v.value.Bytes())), true
}

// hold keeps a copy of u's value for the next request, unless the lease has ended meanwhile.
func (s *uses) hold(u *Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := u.Lease.LeaseID
	if u.Lease.Delivery != policy.Proxy || s.values[id] != nil || u.ctx.Err() != nil {
		return
	}
	s.values[id] = &heldValue{secret.New(bytes.Clone(u.Value.Bytes())), true}
	if s.resting == nil {
		s.resting = time.AfterFunc(restValue, s.rest)
	}
}

// rest wipes what no request wanted since it last looked.
func (s *uses) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, v := range s.values {
		if !v.used {
			s.wipe(id)
		}
		v.used = false
	}
	if s.resting = nil; len(s.values) > 0 {
		s.resting = time.AfterFunc(restValue, s.rest)
	}
}

// wipe forgets the value of a lease. Caller holds mu.
func (s *uses) wipe(id string) {
	if v := s.values[id]; v != nil {
		v.value.Wipe()
		delete(s.values, id)
	}
}

// wipeAll forgets all of them, when the Broker closes.
func (s *uses) wipeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.values {
		s.wipe(id)
	}
	if s.resting != nil {
		s.resting.Stop()
	}
}
