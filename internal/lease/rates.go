package lease

import (
	"context"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/internal/pace"
	"keylease/policy"
	"keylease/store"
)

// rates limits how fast each principal may change leases. All declared names of one uid share one rate: a name that
// costs nothing must not buy a fresh one.
type rates struct {
	by         *pace.Paces
	limit      float64
	burst      int
	suppressed map[string]int // refused for their rate since the last summary, by principal
	since      time.Time
}

// maxFailures bounds how many kinds of failures are gathered before they are summed up early.
const maxFailures = 10_000

// spend takes one change from p's rate. What is refused is counted and told in a summary Entry, so that a flood can
// neither fill the trail nor vanish from it. Caller holds mu.
func (b *Broker) spend(p identity.Principal, now time.Time) error {
	limit, burst, _ := b.policy.current.Limits()
	r := &b.rates
	if r.by == nil || r.limit != limit || r.burst != burst {
		r.by, r.limit, r.burst = pace.New(limit, burst), limit, burst
	}
	key := p.RateKey()
	if r.by.Take(key, now, 0) == 0 {
		return nil
	}
	if r.suppressed == nil {
		r.suppressed, r.since = map[string]int{}, now
	}
	r.suppressed[key]++
	refusal := refuse(RateLimited, "too many calls in too short a time", "Wait for retry_after, and reuse or renew the leases you hold instead of leasing again.")
	refusal.RetryAfter = time.Second
	return refusal
}

// failures aggregates failed authentications per source and minute: the first of a minute is an Entry at once.
type failures struct {
	count   map[failure]int
	sources map[string]bool // those of this minute that are told apart
	since   time.Time
}

// maxSources is how many sources of one minute are told apart: each can have an Entry at once, and an address costs its
// sender nothing. The others are told of together.
const maxSources = 100

func (f *failures) told(source string) string {
	if !f.sources[source] && len(f.sources) >= maxSources {
		return "others"
	}
	f.sources[source] = true
	return source
}

type failure struct{ source, reason string }

// summaryEvery is how long suppressed events are gathered into one Entry.
const summaryEvery = time.Minute

// authFailed records that somebody at source could not prove who they are. It never fails the caller.
func (b *Broker) authFailed(_ context.Context, source, reason string) {
	b.mu.Lock()
	now := b.now()
	f := &b.failures
	if len(f.count) > maxFailures && b.ready() == nil {
		b.summaries(now, true)
	}
	if f.count == nil {
		f.count, f.sources, f.since = map[failure]int{}, map[string]bool{}, now
	}
	key := failure{f.told(source), reason}
	count, seen := f.count[key]
	f.count[key] = count + 1
	var w written
	var err error
	if !seen && b.ready() == nil {
		f.count[key] = 0 // told now; only what follows is summed up
		w, err = b.submit(store.Change{Entry: store.Entry{Event: store.EventAuthFailed, Time: now,
			Details: map[string]string{"source": key.source, "reason": reason}}}, nil)
	}
	b.mu.Unlock()
	if err == nil && w.pending != nil {
		_, _ = b.settle(w)
	}
}

// summaries writes down what was suppressed for a minute, or for as long as it was if atOnce. Caller holds mu.
func (b *Broker) summaries(now time.Time, atOnce bool) (all []written) {
	if f := &b.failures; f.count != nil && (atOnce || now.Sub(f.since) >= summaryEvery) {
		for key, n := range f.count {
			if n == 0 {
				continue
			}
			w, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventAuthFailed, Time: now, Details: map[string]string{
				"source": key.source, "reason": key.reason, "count": strconv.Itoa(n), "since": stamp(f.since)}}}, nil)
			if err == nil {
				all = append(all, w)
			}
		}
		f.count = nil
	}
	if r := &b.rates; r.suppressed != nil && (atOnce || now.Sub(r.since) >= summaryEvery) {
		for key, n := range r.suppressed {
			w, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventTrailSuppressed, Time: now,
				Identity: store.EntryIdentity{By: key},
				Details:  map[string]string{"event": "rate_limited", "count": strconv.Itoa(n), "since": stamp(r.since)}}}, nil)
			if err == nil {
				all = append(all, w)
			}
		}
		r.suppressed = nil
	}
	return all
}

// denied records a refused verb and returns the refusal. What was refused for its rate is only counted: see spend.
func (b *Broker) denied(caller identity.Caller, credential, leaseID, verb, purpose string, way policy.Delivery, why error) error {
	r := AsRefusal(why)
	if r == nil {
		return b.fault(why)
	}
	switch r.Code {
	case RateLimited, Unauthenticated, Unavailable, Internal:
		return r
	}
	e := entry(store.EventLeaseDenied, caller)
	e.Purpose = CleanText(purpose, MaxPurpose)
	e.Details = map[string]string{"code": string(r.Code), "verb": verb}
	if way != "" {
		e.Details["delivery"] = CleanText(string(way), 20)
	}
	notePeer(&e, caller)
	// What was asked for is the caller's own text: kept as asked, cleaned, and never looked up again.
	e.Credential, e.LeaseID = CleanText(credential, 128), CleanText(leaseID, 64)
	b.mu.Lock()
	w, err := b.submit(store.Change{Entry: e}, nil)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := b.settle(w); err != nil {
		return err
	}
	return r
}
