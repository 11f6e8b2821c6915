package lease

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"keylease/policy"
	"keylease/store"
)

// apply does to the index what e tells. Records of credentials and tokens are not in the trail: rec is their new
// content where the caller has it (a change being made), nil when replaying, where loadRecords reads the last one.
func (ix *index) apply(e *store.Entry, rec any) error {
	ix.noteUse(e)
	ix.books.note(e)
	switch e.Event {
	case store.EventCredentialCreated, store.EventCredentialUpdated, store.EventCredentialRotated,
		store.EventCredentialRevoked, store.EventVersionDestroyed:
		return ix.applyCredential(e, rec)
	case store.EventCredentialDeleted:
		c := ix.byID[e.CredentialID]
		if c == nil {
			return fmt.Errorf("entry %d deletes a credential that is not there", e.Seq)
		}
		for _, ref := range c.values {
			ix.destroy[store.ValueRef{CredentialID: c.rec.ID, Version: ref.Version}] = c.rec.Name
		}
		ix.dropCredential(c)
	case store.EventTokenCreated, store.EventTokenRotated, store.EventTokenRevoked:
		ix.applyToken(e, rec)
	case store.EventLeasesEnded:
		ix.applyLeasesEnded(e)
	case store.EventLeasesOrphaned:
		ix.applyLeasesOrphaned(e)
	case store.EventLeasesAdopted:
		return ix.applyLeasesAdopted(e)
	case store.EventServerFrozen:
		ix.frozen = &Frozen{Since: e.Time, Reason: e.Details.Get("reason")}
	case store.EventServerThawed:
		ix.frozen = nil
	case store.EventClockSetBack:
		ix.applyClockSetBack(e)
	case store.EventStoreRestored, store.EventLossAccepted:
		ix.applyEpoch(e)
	case store.EventPolicyLoaded:
		ix.policy = policyMark{Hash: e.Details.Get("hash"), File: e.Details.Get("file")}
	case store.EventLeaseCreated, store.EventLeaseRenewed, store.EventLeaseOrphaned, store.EventLeaseAdopted,
		store.EventLeaseReleased, store.EventLeaseExpired, store.EventLeaseRevoked:
		return ix.applyLease(e)
	case store.EventApprovalAsked, store.EventApprovalGranted, store.EventApprovalDenied, store.EventApprovalExpired:
		return ix.applyApproval(e)
	}
	return nil
}

func (ix *index) applyCredential(e *store.Entry, rec any) error {
	c := ix.byID[e.CredentialID]
	if e.Event == store.EventVersionDestroyed {
		delete(ix.destroy, store.ValueRef{CredentialID: e.CredentialID, Version: e.Version})
		if c == nil {
			return nil // of a credential that was removed
		}
	}
	if c == nil {
		c = &credential{}
		c.rec.ID, c.rec.Name = e.CredentialID, e.Credential
		ix.addCredential(c)
	}
	ix.changed++
	if r, ok := rec.(credentialRecord); ok {
		c.is(r)
		for _, v := range r.Versions {
			ix.retire(c, v.Version)
		}
	}
	ix.noteRefs(c, e)
	if e.Event == store.EventVersionDestroyed {
		c.values.drop(e.Version)
	}
	return nil
}

// noteRefs keeps where the newest record and each value of c are, and what they must hash to. Before its group is
// written an Entry has no refs: the committer's answer brings them.
func (ix *index) noteRefs(c *credential, e *store.Entry) {
	for _, ref := range e.Records {
		switch ref.Kind {
		case store.KindCredential:
			c.ref = ref
		case store.KindValue:
			c.values.put(ref)
		}
	}
}

func (ix *index) applyToken(e *store.Entry, rec any) {
	id := e.Details.Get("token_id")
	t := ix.tokens[id]
	if t == nil {
		t = &token{}
		t.rec.ID = id
		ix.tokens[id] = t
	}
	if r, ok := rec.(tokenRecord); ok {
		delete(ix.secrets, t.rec.Hash)
		delete(ix.secrets, t.rec.Previous)
		t.rec, t.disabled = r, false
		ix.addTexts(t)
	}
	for _, ref := range e.Records {
		t.ref = ref
	}
}

// addTexts makes the texts of t known, the one that a rotation left for a while too.
func (ix *index) addTexts(t *token) {
	ix.secrets[t.rec.Hash] = tokenText{token: t}
	if !t.rec.PreviousUntil.IsZero() {
		ix.secrets[t.rec.Previous] = tokenText{t, t.rec.PreviousUntil}
	}
}

// noteUse counts what a token's holder did. What the daemon writes in the holder's name is no use.
func (ix *index) noteUse(e *store.Entry) {
	switch e.Event {
	case store.EventLeaseCreated, store.EventLeaseRenewed, store.EventLeaseAdopted, store.EventLeasesAdopted, store.EventLeaseReleased,
		store.EventLeaseDenied, store.EventApprovalAsked:
	default:
		return
	}
	t := ix.tokenOf(e.Identity.By)
	if t == nil {
		return
	}
	t.use(e.Time)
	if e.Event == store.EventLeaseCreated {
		t.grants++
	}
}

func (t *token) use(now time.Time) {
	if now.After(t.lastUsed) {
		t.lastUsed = now
	}
}

func (ix *index) applyLease(e *store.Entry) error {
	if e.Event == store.EventLeaseCreated {
		return ix.applyCreated(e)
	}
	l := ix.leases[e.LeaseID]
	if l == nil {
		return fmt.Errorf("entry %d (%s) is about lease %s, which is not live", e.Seq, e.Event, e.LeaseID)
	}
	switch e.Event {
	case store.EventLeaseRenewed:
		l.expires = detailTime(e, "expires_at")
		l.maxAt = detailTime(e, "max_expires_at")
		if !l.orphanEnd.IsZero() { // its holder is here after all
			l.session, l.orphanEnd = e.Identity.Session, time.Time{}
		}
	case store.EventLeaseOrphaned:
		l.session, l.orphanEnd = "", detailTime(e, "ends_at")
	case store.EventLeaseAdopted:
		l.session, l.orphanEnd = e.Identity.Session, time.Time{}
	case store.EventLeaseReleased:
		ix.endLease(l, Released, e.Time)
		return nil
	case store.EventLeaseExpired:
		ix.endLease(l, Expired, e.Time)
		return nil
	case store.EventLeaseRevoked:
		at := e.Time
		if c := l.held.cut; c != nil {
			at = c.At
		}
		ix.endLease(l, Revoked, at)
		return nil
	}
	ix.due.moved(l)
	return nil
}

// applyLeasesOrphaned orphans all that is bound to a session.
func (ix *index) applyLeasesOrphaned(e *store.Entry) {
	ends := detailTime(e, "ends_at")
	var left []*lease
	for _, l := range ix.leases {
		if l.session != "" && l.live(e.Time) {
			l.session, l.orphanEnd = "", ends
			left = append(left, l)
		}
	}
	ix.due.moved(left...)
}

// applyLeasesAdopted binds all that its owner's sessions left behind to the session of e.
func (ix *index) applyLeasesAdopted(e *store.Entry) error {
	owner, err := principalOf(e)
	if err != nil {
		return err
	}
	var taken []*lease
	for _, l := range ix.held(owner.Holder()) {
		if l.adoptable(owner, e.Time) {
			l.session, l.orphanEnd = e.Identity.Session, time.Time{}
			taken = append(taken, l)
		}
	}
	ix.due.moved(taken...)
	return nil
}

func (ix *index) applyCreated(e *store.Entry) error {
	c := ix.byID[e.CredentialID]
	if c == nil {
		return fmt.Errorf("entry %d leases a credential that is not there", e.Seq)
	}
	owner, err := principalOf(e)
	if err != nil {
		return err
	}
	keep, _ := strconv.ParseBool(e.Details.Get("keep_on_disconnect"))
	l := &lease{
		id: e.LeaseID, cred: c, version: e.Version, purpose: e.Purpose, issued: e.Time, keep: keep,
		owner: owner, delivery: policy.Delivery(e.Details.Get("delivery")), session: e.Identity.Session,
		expires: detailTime(e, "expires_at"), maxAt: detailTime(e, "max_expires_at"), uid: e.Details.Get("uid"),
	}
	if mac := e.Details.Get("handle"); mac != "" {
		l.handle = new([32]byte)
		if n, err := hex.Decode(l.handle[:], []byte(mac)); err != nil || n != 32 {
			return fmt.Errorf("entry %d: its handle can't be read", e.Seq)
		}
	}
	if keep {
		l.session = ""
	}
	if err := ix.applySpent(e, l); err != nil {
		return err
	}
	ix.addLease(l, ix.holdingOf(l.owner.Holder()))
	return nil
}

// detailTime reads a time of an Entry; one that can't be read is zero, which every use takes for "ended".
func detailTime(e *store.Entry, field string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, e.Details.Get(field))
	if err != nil {
		return time.Time{}
	}
	return t
}

// loadRecords unseals the newest record of each credential and token after a replay. One that is not what the trail
// says was written is marked damaged and refused; the others are served.
func (ix *index) loadRecords(s *store.Store) (damaged []error) {
	creds, tokens := slices.Collect(maps.Values(ix.creds)), slices.Collect(maps.Values(ix.tokens))
	faults := inParallel(len(creds), func(i int) error {
		defer creds[i].rec.share()
		return loadRecord(s, creds[i].ref, creds[i].rec.ID, &creds[i].rec)
	})
	for i, c := range creds {
		if err := faults[i]; err != nil {
			c.damaged = err.Error()
			damaged = append(damaged, fmt.Errorf("credential %s: %w", c.rec.Name, err))
			continue
		}
		c.is(c.rec)
		for _, v := range c.rec.Versions {
			ix.retire(c, v.Version)
		}
	}
	faults = inParallel(len(tokens), func(i int) error { return loadRecord(s, tokens[i].ref, tokens[i].rec.ID, &tokens[i].rec) })
	for i, t := range tokens {
		t.disabled = t.ref.Seq < ix.tokensTo
		if err := faults[i]; err != nil {
			t.damaged = true
			damaged = append(damaged, fmt.Errorf("token %s: %w", t.rec.ID, err))
			continue
		}
		ix.addTexts(t)
	}
	ix.sortNames()
	return damaged
}

// inParallel does n things with all processors: a record takes about ten microseconds to read, check and unseal.
func inParallel(n int, do func(i int) error) []error {
	errs := make([]error, n)
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				errs[i] = do(i)
			}
		})
	}
	all.Wait()
	return errs
}

func loadRecord(s *store.Store, ref store.RecordRef, id string, into any) error {
	plain, err := s.Record(ref.Kind, id, ref)
	if err != nil {
		return err
	}
	return json.Unmarshal(plain, into)
}
