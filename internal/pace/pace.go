// Package pace keeps a rate for each of many parties, in bounded memory. Its rule: a party that has spent is never
// forgotten before one that has not, so no crowd of strangers buys anybody a fresh rate.
package pace

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// MaxParties is how many parties are remembered at a time, some 150 bytes each. Of more, those are forgotten whose
// rates are the fullest.
const MaxParties = 10_000

// Paces gives each party a bucket of Burst that fills at Limit per second. A Limit of 0 or less: everything is let
// through. Safe for concurrent use.
type Paces struct {
	limit rate.Limit
	burst int

	mu sync.Mutex // guards by
	by map[string]*rate.Limiter
}

// New makes Paces of limit per second; a burst below 1 counts as 1.
func New(limit float64, burst int) *Paces {
	return &Paces{limit: rate.Limit(limit), burst: max(burst, 1), by: map[string]*rate.Limiter{}}
}

// Unlimited reports whether everything is let through.
func (p *Paces) Unlimited() bool { return p.limit <= 0 }

// Take takes one from party's bucket if that leaves at least spare in it, and returns 0; else it takes nothing and
// returns after how long it is worth asking again.
func (p *Paces) Take(party string, now time.Time, spare int) (wait time.Duration) {
	if p.Unlimited() {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.bucket(party, now)
	if wait := p.wait(b, now, spare); wait > 0 {
		return wait
	}
	b.AllowN(now, 1)
	return 0
}

// Wait is what Take would return, and takes nothing.
func (p *Paces) Wait(party string, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.by[party]
	if b == nil || p.Unlimited() {
		return 0
	}
	return p.wait(b, now, 0)
}

func (p *Paces) wait(b *rate.Limiter, now time.Time, spare int) time.Duration {
	missing := float64(min(spare, p.burst-1)) + 1 - b.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return max(time.Duration(missing/float64(p.limit)*float64(time.Second)), time.Millisecond)
}

// Part is a part of the burst, in whole tokens.
func (p *Paces) Part(of float64) int { return int(of * float64(p.burst)) }

// Left is how much of party's bucket is left, as a part of 1.
func (p *Paces) Left(party string, now time.Time) float64 {
	if p.Unlimited() {
		return 1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.by[party]
	if b == nil {
		return 1
	}
	return b.TokensAt(now) / float64(p.burst)
}

// Forget drops a party that can't come back under this name.
func (p *Paces) Forget(party string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.by, party)
}

func (p *Paces) bucket(party string, now time.Time) *rate.Limiter {
	b := p.by[party]
	if b == nil {
		if len(p.by) >= MaxParties {
			p.makeRoom(now)
		}
		b = rate.NewLimiter(p.limit, p.burst)
		p.by[party] = b
	}
	return b
}

// makeRoom forgets the fuller quarter: to those it gives the least.
func (p *Paces) makeRoom(now time.Time) {
	type full struct {
		party  string
		tokens float64
	}
	all := make([]full, 0, len(p.by))
	for party, b := range p.by {
		all = append(all, full{party, b.TokensAt(now)})
	}
	slices.SortFunc(all, func(a, b full) int { return cmp.Compare(b.tokens, a.tokens) })
	for _, f := range all[:len(all)/4] {
		delete(p.by, f.party)
	}
}
