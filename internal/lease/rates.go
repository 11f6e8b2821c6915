package lease

import (
	"context"
	"strconv"
	"time"

	"keylease/internal/credtype"
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
	suppressed map[suppressed]int // refused since the last summary
	since      time.Time
}

const (
	// maxFailures bounds how many kinds of failures are gathered before they are summed up early.
	maxFailures = 10_000
	// maxNamed is how many whose name is known are told apart per source, reason and minute. More are summed up
	// without their names: an issuer may give anybody as many subjects as he likes.
	maxNamed = 10
	// maxClaimed is how many characters of a name are kept.
	maxClaimed = 255
)

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
	b.suppress(suppressed{by: key, event: "rate_limited"}, now)
	refusal := refuse(RateLimited, "too many calls in too short a time", "Wait for retry_after, and reuse or renew the leases you hold instead of leasing again.")
	refusal.RetryAfter = time.Second
	return refusal
}

// AuthFailure is somebody who could not prove who they are, or what they may. Source and Reason are always known;
// Reason is one of few. The others say whose proof it was, each where that much was verified and "" else.
type AuthFailure struct {
	Source, Reason  string
	TokenID         string // of the record
	Issuer, Subject string // of a token whose signature holds
	SAN             string // the names in a certificate that verifies
}

// kind is f without the names.
func (f AuthFailure) kind() AuthFailure { return AuthFailure{Source: f.Source, Reason: f.Reason} }

func (f AuthFailure) details() store.Details {
	d := store.DetailsOf("source", f.Source, "reason", f.Reason)
	for field, v := range map[string]string{"token_id": f.TokenID, "issuer": f.Issuer, "subject": f.Subject, "san": f.SAN} {
		if v != "" {
			d.Set(field, v)
		}
	}
	return d
}

// failures aggregates failed authentications per source, reason, name and minute: the first of a minute is an Entry at
// once.
type failures struct {
	count   map[AuthFailure]int
	named   map[AuthFailure]int // kind → how many names of it are in count
	sources map[string]bool     // those of this minute that are told apart
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

// summaryEvery is how long suppressed events are gathered into one Entry.
const summaryEvery = time.Minute

// AuthFailed records a failure. It never fails the caller. Once the anonymous have written what they may today, failures are only
// counted, by their reason.
func (b *Broker) AuthFailed(_ context.Context, key AuthFailure) {
	for _, name := range []*string{&key.Issuer, &key.Subject, &key.SAN} {
		*name = CleanText(*name, maxClaimed)
	}
	b.mu.Lock()
	now := b.now()
	f := &b.failures
	if len(f.count) > maxFailures && b.ready() == nil {
		b.summaries(now, true)
	}
	if f.count == nil {
		f.count, f.named = map[AuthFailure]int{}, map[AuthFailure]int{}
		f.sources, f.since = map[string]bool{}, now
	}
	over := b.ix.books.spent(anonymous, now) >= anonymousBytes
	if over {
		key = AuthFailure{Source: "others", Reason: key.Reason}
	} else {
		key.Source = f.told(key.Source)
	}
	if _, known := f.count[key]; !known && key != key.kind() {
		if f.named[key.kind()] == maxNamed {
			key = key.kind()
		} else {
			f.named[key.kind()]++
		}
	}
	count, seen := f.count[key]
	f.count[key] = count + 1
	var w written
	var err error
	if !seen && !over && b.ready() == nil {
		f.count[key] = 0 // told now; only what follows is summed up
		w, err = b.submit(store.Change{Entry: store.Entry{Event: store.EventAuthFailed, Time: now, Details: key.details()}}, nil)
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
			d := key.details()
			d.Set("count", strconv.Itoa(n))
			d.Set("since", stamp(f.since))
			w, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventAuthFailed, Time: now, Details: d}}, nil)
			if err == nil {
				all = append(all, w)
			}
		}
		f.count, f.named = nil, nil
	}
	if r := &b.rates; r.suppressed != nil && (atOnce || now.Sub(r.since) >= summaryEvery) {
		for what, n := range r.suppressed {
			d := store.DetailsOf("event", what.event, "count", strconv.Itoa(n), "since", stamp(r.since))
			if what.reason != "" {
				d.Set("reason", what.reason)
			}
			w, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventTrailSuppressed, Time: now,
				Identity: store.EntryIdentity{By: what.by}, Details: d}}, nil)
			if err == nil {
				all = append(all, w)
			}
		}
		r.suppressed = nil
	}
	return all
}

// denied records a refused verb and returns the refusal. What was refused for its rate, or by a caller whose budget is
// spent, is only counted: see spend and affords.
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
	e.Details = store.DetailsOf("code", string(r.Code), "verb", verb)
	if way != "" {
		e.Details.Set("delivery", CleanText(string(way), 20))
	}
	notePeer(&e, caller)
	e.Credential, e.LeaseID = askedName(credential), askedID(leaseID)
	b.mu.Lock()
	if key, now := caller.RateKey(), b.now(); b.overBudget(key, now) {
		b.suppress(suppressed{key, string(e.Event), reasonBudget}, now)
		b.mu.Unlock()
		return r
	}
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

// askedName and askedID are what the trail keeps of a name or an id that somebody asked for. Text that can't be the name
// of anything here is not kept: it may be a key that was pasted where the name goes.
func askedName(s string) string {
	if s != "" && credtype.CheckName(s) != nil {
		return "[not a name]"
	}
	return s
}

func askedID(s string) string {
	if s != "" && !isID(s, "ls_") {
		return "[not an id]"
	}
	return s
}
