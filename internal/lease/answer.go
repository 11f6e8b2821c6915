package lease

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/policy"
	"keylease/store"
)

// Await returns when caller's question is answered or over, or ctx ends, whichever is first. It changes nothing and
// tells nothing: Lease with the approval's id does.
func (b *Broker) Await(ctx context.Context, caller identity.Caller, id string) {
	for {
		changed := b.answered.wait()
		b.mu.Lock()
		now := b.now()
		waits := b.waits(caller, id, now)
		b.lastCall = now
		b.mu.Unlock()
		if !waits {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(time.Second): // changes that write nothing
		}
	}
}

// waits reports whether caller's question still waits for an answer that can be of use. Caller holds mu.
func (b *Broker) waits(caller identity.Caller, id string, now time.Time) bool {
	a := b.ix.asked[id]
	return a != nil && a.Identity == caller.Principal && a.State == Pending && a.open(now) && b.moot(a, now) == "" && !b.closed
}

// ClientAnswered records what the caller's own client reports that its user said. Only a question that policy puts to
// the user can be answered so, by whoever asked it, once.
func (b *Broker) ClientAnswered(_ context.Context, caller identity.Caller, id string, yes bool) error {
	b.mu.Lock()
	w, err := b.clientAnswered(caller, id, yes)
	b.mu.Unlock()
	if err == nil && w.pending != nil {
		_, err = b.settle(w)
	}
	b.answered.broadcast()
	return err
}

func (b *Broker) clientAnswered(caller identity.Caller, id string, yes bool) (written, error) {
	now := b.now()
	b.lastCall = now
	if err := b.ready(); err != nil {
		return written{}, err
	}
	if err := b.refreshPolicy(); err != nil {
		return written{}, err
	}
	a := b.ix.asked[id]
	if a == nil || a.Identity != caller.Principal || a.Approval != policy.User {
		return written{}, notAvailable()
	}
	b.lapse(a, now)
	switch {
	case a.State == Approved && yes: // an operator was quicker
		return b.newest, nil
	case a.State != Pending && a.State != Approved:
		return written{}, a.refusal()
	}
	return b.answer(a, caller, policy.User, yes, "", now)
}

// answer writes a person's answer down. Caller holds mu.
func (b *Broker) answer(a *approval, by identity.Caller, as policy.Approval, yes bool, reason string, now time.Time) (written, error) {
	event := store.EventApprovalDenied
	if yes {
		event = store.EventApprovalGranted
	}
	e := a.entry(event, by, now)
	e.Details.Set("by", string(policy.Operator))
	if as == policy.User {
		e.Details.Set("by", "client") // which says that its user said so
	}
	e.Details.Set("question", a.Shown)
	if yes {
		e.Details.Set("expires_at", stamp(now.Add(ApprovalFor)))
	}
	if reason != "" {
		e.Details.Set("reason", reason)
	}
	return b.submit(store.Change{Entry: e}, nil)
}

// Approvals lists the questions that are open, and those answered in the last hour, oldest first.
func (b *Broker) Approvals() []ApprovalInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ready() == nil && b.refreshPolicy() == nil {
		b.lapseSome(b.now())
	}
	infos := []ApprovalInfo{}
	for _, a := range slices.SortedFunc(maps.Values(b.ix.asked), func(x, y *approval) int { return x.Asked.Compare(y.Asked) }) {
		infos = append(infos, a.info())
	}
	return infos
}

// Approve says yes to one question, for an admin: whoever asked has ApprovalFor to come for it. Approving what is
// approved changes nothing. One that is over is ApprovalDenied, one that never was NotFound.
func (b *Broker) Approve(_ context.Context, admin identity.Caller, id string) (ApprovalInfo, error) {
	return b.decide(admin, id, true, "")
}

// Deny says no to one question, for an admin; also to one that was approved, as long as nobody came for it. reason is
// shown to whoever asked.
func (b *Broker) Deny(_ context.Context, admin identity.Caller, id, reason string) (ApprovalInfo, error) {
	return b.decide(admin, id, false, CleanText(reason, MaxReason))
}

func (b *Broker) decide(admin identity.Caller, id string, yes bool, reason string) (ApprovalInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return ApprovalInfo{}, err
	}
	if err := b.refreshPolicy(); err != nil {
		return ApprovalInfo{}, err
	}
	a, now := b.ix.asked[id], b.now()
	if a == nil {
		return ApprovalInfo{}, notFound("approval", id)
	}
	b.lapse(a, now)
	switch {
	case a.State == Approved && yes, a.State == Denied && !yes:
		return a.info(), b.barrier()
	case a.State != Pending && a.State != Approved:
		why := string(a.State)
		if a.Reason != "" {
			why += ": " + a.Reason
		}
		return a.info(), refuse(ApprovalDenied, fmt.Sprintf("this question is over (%s)", why), "The agent has to ask again.")
	}
	w, err := b.answer(a, admin, policy.Operator, yes, reason, now)
	if err == nil {
		_, err = b.settleLocked(w)
	}
	b.answered.broadcast()
	return a.info(), err
}

// applyApproval does to the index what an approval's Entry tells.
func (ix *index) applyApproval(e *store.Entry) error {
	if e.Event == store.EventApprovalAsked {
		return ix.applyAsked(e)
	}
	a := ix.asked[e.Details.Get("approval_id")]
	if a == nil {
		return fmt.Errorf("entry %d (%s) is about approval %s, which was not asked", e.Seq, e.Event, e.Details.Get("approval_id"))
	}
	a.Reason = e.Details.Get("reason")
	if by := e.Details.Get("by"); by == "client" {
		a.By = policy.User
	} else if by != "" {
		a.By = policy.Operator
	}
	key := a.Identity.RateKey()
	switch e.Event {
	case store.EventApprovalGranted:
		a.State, a.Expires = Approved, detailTime(e, "expires_at")
		if a.By == policy.Operator || !ix.denials[key].Operator { // a client's word takes back no more than clients said
			delete(ix.denials, key)
		}
	case store.EventApprovalDenied:
		ix.close(a, Denied, e.Time)
		no := ix.denials[key]
		ix.denials[key] = denials{no.InARow + 1, e.Time, no.Operator || a.By == policy.Operator}
	case store.EventApprovalExpired:
		ix.close(a, Lapsed, e.Time)
	}
	return nil
}

// close ends a question, which is remembered for a while.
func (ix *index) close(a *approval, as ApprovalState, at time.Time) {
	if a.Over.IsZero() {
		ix.answered = append(ix.answered, a)
	}
	a.State, a.Over = as, at
	ix.forgetAnswered(at)
}

// forgetAnswered forgets the questions that were over long ago, or of which there are too many since.
func (ix *index) forgetAnswered(now time.Time) {
	for len(ix.answered) > maxAnswered || len(ix.answered) > 0 && now.Sub(ix.answered[0].Over) > keepAnswered {
		delete(ix.asked, ix.answered[0].ID)
		ix.answered = ix.answered[1:]
	}
}

func (ix *index) applyAsked(e *store.Entry) error {
	proof, err := identity.ParseProof(e.Identity.Proof)
	if err != nil {
		return fmt.Errorf("entry %d: %w", e.Seq, err)
	}
	long, err := ttl.Parse(e.Details.Get("ttl"))
	if err != nil {
		return fmt.Errorf("entry %d: %w", e.Seq, err)
	}
	ix.forgetAnswered(e.Time)
	maps.DeleteFunc(ix.denials, func(_ string, d denials) bool { return e.Time.Sub(d.Last) > keepAnswered })
	ix.asked[e.Details.Get("approval_id")] = &approval{ID: e.Details.Get("approval_id"), State: Pending, Shown: e.Details.Get("question"),
		Capped: e.Details.Get("ttl_capped") == "true", Asked: e.Time, Expires: detailTime(e, "expires_at"),
		Question: Question{Identity: identity.Principal{Type: identity.Type(e.Identity.Type), Name: e.Identity.Name, Proof: proof, By: e.Identity.By},
			ClientName: e.Identity.ClientName, ClientVersion: e.Identity.ClientVersion,
			Credential: e.Credential, CredentialID: e.CredentialID, Version: e.Version,
			Delivery: policy.Delivery(e.Details.Get("delivery")), TTL: long, Approval: policy.Approval(e.Details.Get("approval")),
			PolicyHash: e.Details.Get("policy_hash"), Terms: e.Details.Get("terms"), Purpose: e.Purpose}}
	return nil
}

// applySpent uses up the approval that a lease.created Entry names, and gives the lease its bounds.
func (ix *index) applySpent(e *store.Entry, l *lease) error {
	id := e.Details.Get("approval_id")
	if id == "" {
		return nil
	}
	a := ix.asked[id]
	if a == nil || a.State != Approved {
		return fmt.Errorf("entry %d spends approval %s, which nobody gave", e.Seq, id)
	}
	ix.close(a, Spent, e.Time)
	l.approvedBy, l.approvedTo = a.By, e.Time.Add(a.TTL)
	return nil
}
