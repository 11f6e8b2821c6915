package server

import (
	"keylease/internal/lease"
)

// Approvals are the questions that wait for a person and those answered lately.
type Approvals struct {
	Approvals  []lease.ApprovalInfo `json:"approvals"`
	Passphrase bool                 `json:"passphrase_needed"` // approve wants it
}

type approveRequest struct {
	Passphrase []byte `json:"passphrase,omitempty"`
}

type denyRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Tries of the passphrase: a burst for typing errors, then one in ten seconds, over all who try.
const (
	passphraseRate  = 0.1
	passphraseBurst = 5
)

func (a admin) approvals(call) (any, error) {
	return Approvals{a.Broker.Approvals(), a.Passphrase.Set()}, nil
}

func (a admin) approve(c call) (any, error) {
	var q approveRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	defer clear(q.Passphrase)
	if err := a.checkPassphrase(c, q.Passphrase); err != nil {
		return nil, err
	}
	return a.Broker.Approve(c.Context(), c.admin, c.PathValue("id"))
}

func (a admin) checkPassphrase(c call, given []byte) error {
	if !a.Passphrase.Set() {
		return nil
	}
	if wait := a.tries.Take("passphrase", a.Now(), 0); wait > 0 {
		return &lease.Refusal{Code: lease.RateLimited, RetryAfter: wait, Message: "the passphrase was tried too often in too short a time",
			Hint: "Wait a little and run the command again."}
	}
	a.trying.Lock() // one at a time: each takes the memory that the hash says
	right := a.Passphrase.Matches(given)
	a.trying.Unlock()
	if right {
		return nil
	}
	a.Log.Warn().Int("pid", c.admin.PID).Str("by", c.admin.By).Msg("an approval was refused: wrong passphrase")
	a.Broker.AuthFailed(c.Context(), lease.AuthFailure{Source: "local " + c.admin.By, Reason: "wrong passphrase"})
	return &lease.Refusal{Code: CodeDenied, Message: "this is not the passphrase of admin.passphrase, so nothing was approved",
		Hint: "Run keylease approve again at a terminal, and type the passphrase when it asks."}
}

// deny wants no passphrase: saying no is never to be hard.
func (a admin) deny(c call) (any, error) {
	var q denyRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	return a.Broker.Deny(c.Context(), c.admin, c.PathValue("id"), q.Reason)
}
