package lease

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

const (
	longUse      = 800 * time.Millisecond // a use that lasts longer is written down as begun: each is on disk within a second
	maxUnwritten = time.Second            // how old a use may get without being on disk before nothing more is let through
	maxQueue     = 4096                   // uses that wait to be written
	retryWrite   = 250 * time.Millisecond
	gatherUses   = 50 * time.Millisecond  // how long what is to be written waits for more of it: a sync for each would slow down the next
	cutTime      = 100 * time.Millisecond // how long whoever ends a lease waits for its uses to stop
)

// uses are the leases in use now, and what has yet to be written about uses. Its mutex is taken inside the Broker's or
// alone, and is never held while anything waits.
type uses struct {
	mu       sync.Mutex
	of       map[string]map[*Use]struct{} // by lease
	cut      map[*Use]struct{}            // told to stop, and have not yet
	commands map[string]bool              // leases that were opened for a command
	limits   map[string]*rate.Limiter     // of proxied requests, by lease
	values   map[string]*heldValue        // of leases by proxy that are used again and again
	resting  *time.Timer                  // looks for those that no longer are; nil: there are none
	queue    []queued                     // oldest first
	writing  bool
}

type queued struct {
	since time.Time
	entry store.Entry
}

func newUses() *uses {
	return &uses{of: map[string]map[*Use]struct{}{}, cut: map[*Use]struct{}{}, commands: map[string]bool{}, limits: map[string]*rate.Limiter{}, values: map[string]*heldValue{}}
}

func (s *uses) add(u *Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := u.Lease.LeaseID
	if s.of[id] == nil {
		s.of[id] = map[*Use]struct{}{}
	}
	s.of[id][u] = struct{}{}
}

func (s *uses) remove(u *Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := u.Lease.LeaseID
	delete(s.cut, u)
	delete(s.of[id], u)
	if len(s.of[id]) == 0 {
		delete(s.of, id)
	}
}

// opened notes that a lease was opened for a command.
func (s *uses) opened(id string, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		s.commands[id] = true
	}
}

// idle reports whether a lease was opened for commands of which none runs any more.
func (s *uses) idle(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands[id] && len(s.of[id]) == 0
}

func (s *uses) wasOpened(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands[id]
}

// holder returns the session of a command that runs on the lease; "": none does.
func (s *uses) holder(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range s.of[id] {
		if u.session != "" && u.ctx.Err() == nil {
			return u.session
		}
	}
	return ""
}

// end cuts off every use of a lease that has ended.
func (s *uses) end(id, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.limits, id)
	delete(s.commands, id)
	s.wipe(id)
	s.stop(s.of[id], why)
}

// endWhere cuts off the uses of every lease of which over is true.
func (s *uses) endWhere(over func(id string) bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.values {
		if over(id) {
			s.wipe(id)
		}
	}
	for id, all := range s.of {
		if over(id) {
			s.stop(all, why)
		}
	}
}

func (s *uses) stop(all map[*Use]struct{}, why string) {
	for u := range all {
		u.cancel(cutOff(why))
		s.cut[u] = struct{}{}
	}
}

// gone waits until everything that was cut off before has stopped, but no longer than cutTime.
func (s *uses) gone() {
	s.mu.Lock()
	told := slices.Collect(maps.Keys(s.cut))
	s.mu.Unlock()
	if len(told) == 0 {
		return
	}
	deadline := time.NewTimer(cutTime)
	defer deadline.Stop()
	for _, u := range told {
		select {
		case <-u.done:
		case <-deadline.C: // nobody else need wait for these
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, u := range told {
				delete(s.cut, u)
			}
			return
		}
	}
}

// spend takes one proxied request out of the rate of a lease.
func (s *uses) spend(id string, p *policy.Policy, plan *use.Plan, now time.Time) error {
	perSecond, burst := p.UseLimits()
	if r, b := plan.Rate(); r > 0 && (perSecond <= 0 || r < perSecond) {
		perSecond, burst = r, b
	}
	if perSecond <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limits[id]
	if l == nil || l.Limit() != rate.Limit(perSecond) || l.Burst() != burst {
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		s.limits[id] = l
	}
	if l.AllowN(now, 1) {
		return nil
	}
	r := refuse(RateLimited, fmt.Sprintf("more than %g requests a second came under this lease", perSecond), "Wait for retry_after and go on more slowly.")
	r.RetryAfter = max(time.Duration(float64(time.Second)/perSecond), time.Second)
	return r
}

// written refuses where uses can't be recorded fast enough: what can't be told does not happen.
func (s *uses) written(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 && (now.Sub(s.queue[0].since) > maxUnwritten || len(s.queue) >= maxQueue) {
		return unavailable()
	}
	return nil
}

// recordUse writes an Entry about a use without waiting for it. One that can't be written is tried again for as long
// as the daemon lives, and holds up all further uses meanwhile: see uses.written.
func (b *Broker) recordUse(e store.Entry) {
	s := b.uses
	s.mu.Lock()
	s.queue = append(s.queue, queued{b.now(), e})
	busy := s.writing
	s.writing = true
	s.mu.Unlock()
	if !busy {
		time.AfterFunc(gatherUses, b.writeUses)
	}
}

// writeUses writes until the queue is empty.
func (b *Broker) writeUses() {
	s := b.uses
	for {
		s.mu.Lock()
		batch := s.queue
		if len(batch) == 0 {
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		left := b.writeBatch(batch)
		s.mu.Lock()
		s.queue = append(left, s.queue[len(batch):]...)
		s.mu.Unlock()
		if len(left) > 0 {
			if b.over() {
				return
			}
			time.Sleep(retryWrite)
		}
		time.Sleep(gatherUses)
	}
}

// writeBatch writes what it can in one group and returns the rest.
func (b *Broker) writeBatch(batch []queued) (left []queued) {
	all := make([]written, 0, len(batch))
	b.mu.Lock()
	for _, q := range batch {
		q.entry.Time = b.now()
		w, err := written{}, b.ready()
		if err == nil {
			w, err = b.submit(store.Change{Entry: q.entry}, nil)
		}
		if err != nil {
			break
		}
		all = append(all, w)
	}
	b.mu.Unlock()
	left = append(left, batch[len(all):]...)
	for i, w := range all {
		if _, err := b.settle(w); err != nil {
			left = append(left, batch[i])
		}
	}
	return left
}

// lastUses waits, before the store closes, for what is queued to be written: half a second at most.
func (b *Broker) lastUses() {
	for range 100 {
		b.uses.mu.Lock()
		idle := !b.uses.writing
		b.uses.mu.Unlock()
		if idle {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// over reports whether nothing can be recorded any more: the store closes.
func (b *Broker) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}
