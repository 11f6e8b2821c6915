package lease

import (
	"fmt"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/internal/ttl"
	"keylease/policy"
	"keylease/store"
)

const (
	// ApprovalFor is how long a question waits for its answer, and a yes for whoever asked.
	ApprovalFor = 5 * time.Minute
	// MaxPending is how many questions of one rate key wait at a time: people who are asked too much say yes.
	MaxPending = 3
	// maxDenials in a row, and whoever asks through the same rate key asks nobody anything for backOff.
	maxDenials = 2
	backOff    = 15 * time.Minute
	// keepAnswered is how long a question that is over is remembered, so that whoever asked hears how it ended, and
	// maxAnswered how many are: a client that says yes by itself can ask many times a second.
	keepAnswered = time.Hour
	maxAnswered  = 1024
)

// ApprovalState is where a question is. Only Approved opens a lease, and only one.
type ApprovalState string

const (
	Pending  ApprovalState = "pending"
	Approved ApprovalState = "approved"
	Denied   ApprovalState = "denied"
	Lapsed   ApprovalState = "expired" // nobody answered, nobody came for the answer, or it became moot
	Spent    ApprovalState = "used"
)

// approval is a question and what became of it. Its fields are exported for the snapshot alone.
type approval struct {
	Question
	ID      string          `json:"id"`
	Shown   string          `json:"shown"` // the question's hash as it was asked
	Capped  bool            `json:"capped"`
	State   ApprovalState   `json:"state"`
	By      policy.Approval `json:"by,omitempty"` // who answered: operator, or user where the client reported it
	Reason  string          `json:"reason,omitempty"`
	Asked   time.Time       `json:"asked"`
	Expires time.Time       `json:"expires"` // the question, and once there is a yes, that
	Over    time.Time       `json:"over,omitzero"`
}

// open reports whether the question waits for its answer, or the yes for whoever asked. It asks the clock, not the
// sweeper.
func (a *approval) open(now time.Time) bool {
	return (a.State == Pending || a.State == Approved) && now.Before(a.Expires)
}

// denials are the times in a row that people said no to one rate key.
type denials struct {
	InARow   int       `json:"in_a_row"`
	Last     time.Time `json:"last"`
	Operator bool      `json:"operator,omitempty"` // one of them was an operator's: only an operator's yes takes it back
}

// Waiting is a lease that a person has to agree to first.
type Waiting struct {
	ID        string
	ExpiresAt time.Time
	Approval  policy.Approval // user or operator
	Question  Question
}

// ApprovalInfo is a question as an admin sees it.
type ApprovalInfo struct {
	ID         string          `json:"approval_id"`
	Status     ApprovalState   `json:"status"`
	Approval   policy.Approval `json:"approval"` // who is asked: user or operator. An operator may answer either
	AnsweredBy policy.Approval `json:"answered_by,omitempty"`
	Reason     string          `json:"reason,omitempty"`
	Identity   HolderInfo      `json:"identity"`
	Client     string          `json:"client"` // as it claims
	Credential string          `json:"credential"`
	Version    int             `json:"version"`
	Delivery   policy.Delivery `json:"delivery"`
	TTL        string          `json:"ttl"`
	Purpose    string          `json:"purpose"` // what the agent says
	AskedAt    time.Time       `json:"asked_at"`
	ExpiresAt  time.Time       `json:"expires_at"`
	Question   string          `json:"question"` // all of it in words, several lines
}

func (a *approval) info() ApprovalInfo {
	return ApprovalInfo{ID: a.ID, Status: a.State, Approval: a.Approval, AnsweredBy: a.By, Reason: a.Reason,
		Identity:   HolderInfo{Type: a.Identity.Type, Name: a.Identity.Name, Proof: a.Identity.Proof, By: a.Identity.By},
		Client:     strings.TrimSpace(a.ClientName + " " + a.ClientVersion),
		Credential: a.Credential, Version: a.Version, Delivery: a.Delivery, TTL: ttl.Format(a.TTL), Purpose: a.Purpose,
		AskedAt: a.Asked, ExpiresAt: a.Expires, Question: a.Question.String()}
}

// admitted is what a request came to: a lease, or the question that a person has to answer first.
type admitted struct {
	open   []policy.Delivery // how its holder could have got it: see Grant.Open
	lease  *lease
	capped bool
	asked  *approval
	fresh  bool          // nobody was asked this before
	handle secret.Secret // of a lease by proxy
	written
}

// agreed returns the yes that a lease needs, or the question that asks for it; neither where nobody has to agree.
// Caller holds mu.
func (b *Broker) agreed(caller identity.Caller, r *Request, c *credential, d policy.Decision, way policy.Delivery, now time.Time) (yes *approval, ask admitted, err error) {
	if r.of != nil {
		caller.ClientName, caller.ClientVersion = r.of.ClientName, r.of.ClientVersion // as it was shown then
	} else if !d.Approval.AtLeast(policy.User) {
		return nil, admitted{}, nil
	}
	q := b.questionFor(caller, c, d, way, r.Purpose)
	shown := q.Hash()
	if r.of != nil {
		if r.of.Shown != shown || r.of.Shown != r.of.Hash() {
			b.giveUp(r.of, "what was asked for is not what would be lent now", now)
			return nil, admitted{}, r.of.refusal()
		}
		return r.of, admitted{}, nil
	}
	for _, a := range b.ix.asked {
		if a.Shown != shown || !a.open(now) {
			continue
		}
		if a.State == Approved {
			return a, admitted{}, nil
		}
		return nil, admitted{asked: a, written: b.newest}, nil // it is before a person already; and may not be on disk yet
	}
	ask, err = b.ask(caller, q, d, now)
	return nil, ask, err
}

// ask puts q to a person. Caller holds mu.
func (b *Broker) ask(caller identity.Caller, q Question, d policy.Decision, now time.Time) (admitted, error) {
	key := q.Identity.RateKey()
	if no := b.ix.denials[key]; no.InARow >= maxDenials && now.Sub(no.Last) < backOff {
		r := refuse(ApprovalDenied, fmt.Sprintf("people said no %d times in a row, so keylease asks nobody for you now", no.InARow),
			"Stop asking, tell the user what you wanted and why, and go on without it. After retry_after seconds you may ask again; do not look for this key elsewhere.")
		r.RetryAfter = backOff - now.Sub(no.Last)
		return admitted{}, r
	}
	if n, frees := b.pending(key, now); n >= MaxPending {
		b.suppress(suppressed{by: key, event: "rate_limited"}, now)
		r := refuse(RateLimited, fmt.Sprintf("%d of your questions wait for a person already, as many as may", n),
			"Tell the user that those are waiting. Call lease_credential with the approval_id of one of them, or wait for retry_after.")
		r.RetryAfter = max(frees.Sub(now), time.Second)
		return admitted{}, r
	}
	e := entry(store.EventApprovalAsked, caller)
	e.Identity.ClientName, e.Identity.ClientVersion = q.ClientName, q.ClientVersion
	e.Time, e.Credential, e.CredentialID, e.Version, e.Purpose = now, q.Credential, q.CredentialID, q.Version, q.Purpose
	e.Details = store.DetailsOf("approval_id", newID("ap_"), "approval", string(q.Approval), "delivery", string(q.Delivery),
		"ttl", ttl.Format(q.TTL), "ttl_capped", formatBool(d.Capped), "rule", d.Rule, "policy_hash", q.PolicyHash,
		"terms", q.Terms, "question", q.Hash(), "expires_at", stamp(now.Add(ApprovalFor)), "transport", caller.Transport)
	notePeer(&e, caller)
	w, err := b.submit(store.Change{Entry: e}, nil)
	return admitted{asked: b.ix.asked[e.Details.Get("approval_id")], fresh: true, written: w}, err
}

// pending counts the questions of a rate key that a person can still answer, and says when the first of them is over.
// Caller holds mu.
func (b *Broker) pending(key string, now time.Time) (n int, first time.Time) {
	for _, a := range b.ix.asked {
		if a.State != Pending || !a.open(now) || a.Identity.RateKey() != key || b.moot(a, now) != "" {
			continue
		}
		if n++; first.IsZero() || a.Expires.Before(first) {
			first = a.Expires
		}
	}
	return n, first
}

// tell answers whoever asked for what a person must agree to, once the question is on disk.
func (b *Broker) tell(in admitted) (Grant, error) {
	if in.written.pending != nil {
		if _, err := b.settle(in.written); err != nil {
			return Grant{}, err
		}
	}
	b.mu.Lock()
	a := in.asked
	g := Grant{Credential: a.Credential, Version: a.Version, Delivery: a.Delivery, TTL: a.TTL, Capped: a.Capped,
		Waiting: &Waiting{ID: a.ID, ExpiresAt: a.Expires, Approval: a.Approval, Question: a.Question}}
	info := a.info()
	b.mu.Unlock()
	if in.fresh {
		b.poke()
		if b.cfg.Asked != nil {
			b.cfg.Asked(info)
		}
	}
	return g, nil
}

// resume makes r the request that waited for an approval, as it was asked. It belongs to whoever asked: to others it is
// unknown. Caller holds mu.
func (b *Broker) resume(caller identity.Caller, r *Request, now time.Time) error {
	a := b.ix.asked[r.ApprovalID]
	if a == nil || a.Identity != caller.Principal {
		return notAvailable()
	}
	if r.Credential != "" && r.Credential != a.Credential || r.Delivery != "" && r.Delivery != a.Delivery ||
		r.Purpose != "" && CleanText(r.Purpose, MaxPurpose) != a.Purpose || r.TTL != 0 && r.TTL != a.TTL && !a.Capped {
		return refuse(InvalidArgument, "with approval_id the other arguments must be those that were asked with",
			"Leave them out, or leave approval_id out to ask something else.")
	}
	*r = Request{ApprovalID: a.ID, Credential: a.Credential, TTL: a.TTL, Purpose: a.Purpose, Delivery: a.Delivery, of: a}
	if b.lapse(a, now); a.State != Pending && a.State != Approved || !a.open(now) {
		return a.refusal()
	}
	return nil
}

// refusal says to whoever asked why a question that is over gives nothing.
func (a *approval) refusal() *Refusal {
	const hint = "Tell the user, and do not ask again unless they want you to; do not look for this key elsewhere."
	why := ""
	if a.Reason != "" && a.By != policy.User {
		why = ": " + a.Reason
	}
	switch a.State {
	case Denied:
		return refuse(ApprovalDenied, "a person said no to this"+why, hint)
	case Spent:
		return refuse(ApprovalDenied, "this approval has been used: it opens one lease", hintLookAtList)
	}
	return refuse(ApprovalDenied, "this approval is over"+why, "Call lease_credential with the credential to ask anew, if the work still needs it; tell the user that you do.")
}

// moot says why no answer to a can be of use any more; "" while one can. Caller holds mu.
func (b *Broker) moot(a *approval, now time.Time) string {
	c := b.ix.byID[a.CredentialID]
	switch {
	case b.ix.frozen != nil:
		return "lending was frozen"
	case c == nil || c.state() != stateActive:
		return "the credential is not lent any more"
	case c.current() != a.Version:
		return "the credential was rotated"
	case c.terms() != a.Terms:
		return "the credential was edited"
	case b.policy.current.Hash() != a.PolicyHash:
		return "the policy changed"
	case b.standing(a.Identity, now) != nil:
		return "whoever asked may not lease any more"
	}
	return ""
}

// lapse writes down that a's time is up or that it is moot, if so. Nobody waits for the disk: whatever is decided next
// stands behind it in the trail. Caller holds mu.
func (b *Broker) lapse(a *approval, now time.Time) written {
	if a.State != Pending && a.State != Approved {
		return written{}
	}
	why := b.moot(a, now)
	switch {
	case a.open(now) && why == "":
		return written{}
	case why != "":
	case a.State == Pending:
		why = "nobody answered in time"
	default:
		why = "it was approved, and nobody came for it in time"
	}
	return b.giveUp(a, why, now)
}

// giveUp writes down that no answer to a is of use any more. Caller holds mu.
func (b *Broker) giveUp(a *approval, why string, now time.Time) written {
	e := a.entry(store.EventApprovalExpired, identity.Caller{Principal: a.Identity}, now)
	e.Details.Set("reason", why)
	w, _ := b.submit(store.Change{Entry: e}, nil) // a fault was logged; what is over by the clock gives nothing anyway
	return w
}

func (a *approval) entry(event store.Event, by identity.Caller, now time.Time) store.Entry {
	e := entry(event, by)
	e.Time, e.Credential, e.CredentialID, e.Version = now, a.Credential, a.CredentialID, a.Version
	e.Details = store.DetailsOf("approval_id", a.ID)
	return e
}

// lapseSome writes down which questions are over, and says when the next one will be. Caller holds mu.
func (b *Broker) lapseSome(now time.Time) (all []written, next time.Time) {
	for _, a := range b.ix.asked {
		if w := b.lapse(a, now); w.pending != nil {
			all = append(all, w)
		}
		if a.open(now) && (next.IsZero() || a.Expires.Before(next)) {
			next = a.Expires
		}
	}
	return all, next
}

// waitingApprovals counts the questions that wait for a person and the yeses that wait for whoever asked.
func (ix *index) waitingApprovals(now time.Time) (n int) {
	for _, a := range ix.asked {
		if a.open(now) {
			n++
		}
	}
	return n
}
