package lease

import (
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// books are what the trail tells about itself: who wrote how much of it today, and how far it was exported. They are
// part of the index, so a restart resets nothing.
//
// What a day (UTC) can add to the trail, with a budget of B bytes (policy: limits.trailBytes, 256 MiB unless it says
// otherwise), N principals that call, and an operator who does nothing:
//
//	N × B                    what they do; a lease is charged for its end when it is granted, so that is in it
//	N × 64 KiB               the one Entry with which a budget is reached
//	N × 2 × 1440 × 400 B     the summaries, one a minute of each of two kinds: 1.1 MiB
//	32 MiB                   failures to prove who one is, all sources together (anonymousBytes)
//	10000 × 4 KiB            the summaries of the minute in which that is reached
//	40 × 1440 × 400 B        and after it one a minute of each reason: 22 MiB
//
// so N × 257 MiB + 94 MiB. With a burst of the default leaseRate alone, 50 changes a second, a principal reaches its
// budget after three hours; an agent that leases and releases each minute writes 1.5 MiB a day.
type books struct {
	Exported ExportMark       `json:"exported,omitzero"`
	Day      int64            `json:"day,omitempty"`   // days since 1970, UTC, that Spent is of
	Spent    map[string]int64 `json:"spent,omitempty"` // bytes, by rate key
}

// ExportMark is how far confirmed exports hold the trail without a gap.
type ExportMark struct {
	Seq  uint64       `json:"seq"`
	Hash store.Digest `json:"hash"`
	Time time.Time    `json:"time"` // of the confirmation
	By   string       `json:"by"`   // who confirmed
	File string       `json:"file,omitempty"`
}

const (
	// endBytes is what the end of a lease, or the answer to a question, takes at most: charged in advance, so that what
	// has to be recorded is within the budget, whenever it comes.
	endBytes = 600
	// anonymousBytes is the daily budget of failed authentications, all sources together.
	anonymousBytes = 32 << 20
	// anonymous is where that is booked. No rate key looks like it.
	anonymous = "anonymous"

	secondsOfDay = 24 * 60 * 60
)

func dayOf(t time.Time) int64 { return t.Unix() / secondsOfDay }

// note books e. It is called for every Entry, in the order of the trail.
func (k *books) note(e *store.Entry) {
	cost := 0
	switch e.Event {
	case store.EventTrailExported:
		k.noteExport(e)
		return
	case store.EventLeaseCreated, store.EventApprovalAsked:
		cost = e.Size() + endBytes
	case store.EventLeaseRenewed, store.EventLeaseUsed, store.EventLeaseOrphaned, store.EventLeaseAdopted, store.EventLeasesAdopted,
		store.EventLeaseDenied, store.EventAuthFailed:
		cost = e.Size()
	default: // an end, which is paid, or the operator's
		return
	}
	if day := dayOf(e.Time); day > k.Day || k.Spent == nil {
		k.Day, k.Spent = day, map[string]int64{}
	}
	k.Spent[spender(e)] += int64(cost)
}

// spender is the rate key of whoever an Entry is about.
func spender(e *store.Entry) string {
	switch i := &e.Identity; {
	case e.Event == store.EventAuthFailed:
		return anonymous
	case i.Proof == declaredProof:
		return i.By
	default:
		p, _ := principalOf(e)
		return p.RateKey()
	}
}

var declaredProof = identity.Declared.String()

func (k *books) spent(key string, now time.Time) int64 {
	if dayOf(now) > k.Day {
		return 0
	}
	return k.Spent[key]
}

// overBudget reports whether key has written what it may today. Caller holds mu.
func (b *Broker) overBudget(key string, now time.Time) bool {
	limit := b.policy.current.TrailBytes()
	return limit > 0 && b.ix.books.spent(key, now) >= limit
}

// affords refuses what would have to be recorded beyond p's budget: it is never granted untold. Giving back and ending
// are not asked. Caller holds mu.
func (b *Broker) affords(p identity.Principal, now time.Time) error {
	key := p.RateKey()
	if !b.overBudget(key, now) {
		return nil
	}
	b.suppress(suppressed{key, "rate_limited", reasonBudget}, now)
	r := refuse(RateLimited, "the audit trail holds as much from this caller as it may in one day (UTC)",
		"Wait for retry_after, or ask the operator, who can raise limits.trailBytes in the policy file. Releasing goes on: release what you do not need.")
	r.RetryAfter = time.Unix((dayOf(now)+1)*secondsOfDay, 0).Sub(now)
	return r
}

// reasonBudget is why something was refused, or not recorded one by one.
const reasonBudget = "daily budget of trail bytes"

// suppressed is a kind of thing that is counted instead of recorded.
type suppressed struct{ by, event, reason string }

// maxSuppressed is how many kinds are told apart within a minute.
const maxSuppressed = 1000

// suppress counts what was refused without an Entry of its own. Caller holds mu.
func (b *Broker) suppress(what suppressed, now time.Time) {
	r := &b.rates
	if r.suppressed == nil {
		r.suppressed, r.since = map[suppressed]int{}, now
	}
	if _, known := r.suppressed[what]; !known && len(r.suppressed) >= maxSuppressed {
		what.by = "others"
	}
	r.suppressed[what]++
}

// noteExport extends what is exported, if the file leaves no gap behind what was exported before.
func (k *books) noteExport(e *store.Entry) {
	from, to := detailNum(e, "from"), detailNum(e, "to")
	if from == 0 || from > k.Exported.Seq+1 || to < k.Exported.Seq {
		return
	}
	k.Exported = ExportMark{Seq: to, Time: e.Time, By: e.Identity.Name, File: e.Details.Get("file")}
	_ = k.Exported.Hash.UnmarshalText([]byte(e.Details.Get("head")))
}

// detailNum reads a number of an Entry; one that can't be read is 0.
func detailNum(e *store.Entry, field string) uint64 {
	n, _ := strconv.ParseUint(e.Details.Get(field), 10, 64)
	return n
}
