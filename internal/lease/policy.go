package lease

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/policy"
	"keylease/store"
)

// PolicyRead is one look at the policy file.
type PolicyRead struct {
	Name  string // for messages
	Data  []byte // nil when Stamp is the one that was given: nothing changed
	Stamp string // changes whenever the file does
	Err   error  // fs.ErrNotExist: there is no file
}

type policyState struct {
	current *policy.Policy // nil: this store never had one
	name    string
	stamp   string
	problem string // why the file on disk is not what governs
	looked  time.Time
}

// lookEvery is how often anybody who asks may have the policy file looked at: what is found there is recorded.
const lookEvery = time.Second

// PolicyStatus tells an operator which policy governs.
type PolicyStatus struct {
	Present bool   `json:"present"`
	Hash    string `json:"hash"`
	File    string `json:"file"`
	Problem string `json:"problem,omitempty"`
}

// PolicyStatus reports the policy in force and why the file on disk may not be it.
func (b *Broker) PolicyStatus() PolicyStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policyStatus()
}

// LookAtPolicy is PolicyStatus after a look at the file, which it takes at most once per lookEvery. A file that changed
// governs, or is rejected, with an Entry; one that did not writes nothing.
func (b *Broker) LookAtPolicy() PolicyStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if since := b.now().Sub(b.policy.looked); (since < 0 || since >= lookEvery) && b.ready() == nil {
		_ = b.refreshPolicy() // a fault was logged where it arose
	}
	return b.policyStatus()
}

func (b *Broker) policyStatus() PolicyStatus {
	s := PolicyStatus{Present: b.policy.current != nil, File: b.policy.name, Problem: b.policy.problem}
	if s.Present {
		s.Hash = b.policy.current.Hash()
	}
	return s
}

// openPolicy decides what governs at a start: the file, or nothing where there never was one. A store that had a
// policy does not start without it unless told to.
func (b *Broker) openPolicy() error {
	if b.cfg.DropPolicy {
		b.cfg.PolicyFile = nil
		if b.ix.policy.Hash == "" {
			return nil
		}
		_, err := b.change(store.Change{Entry: store.Entry{Event: store.EventPolicyLoaded,
			Details: store.DetailsOf("hash", "", "reason", "dropped by --no-policy")}}, nil)
		return err
	}
	if b.cfg.PolicyFile == nil {
		return b.requireNoPolicy(fs.ErrNotExist, b.ix.policy.File)
	}
	read := b.cfg.PolicyFile("")
	b.policy.name = read.Name
	if read.Err != nil {
		if !errors.Is(read.Err, fs.ErrNotExist) {
			return fmt.Errorf("reading the policy: %w", read.Err)
		}
		return b.requireNoPolicy(read.Err, read.Name)
	}
	p, err := policy.Parse(read.Name, read.Data)
	if err != nil {
		return err
	}
	b.policy.stamp = read.Stamp
	return b.govern(p)
}

func (b *Broker) requireNoPolicy(err error, name string) error {
	if b.ix.policy.Hash == "" {
		return nil
	}
	return fmt.Errorf("the policy that governed this store is gone (%s): %w: put it back, or start once with --no-policy to go on without one", name, err)
}

// refreshPolicy looks whether the file changed and lets a sound new one govern from its Entry on. A malformed,
// unreadable or vanished file changes nothing but what PolicyStatus says. Caller holds mu.
func (b *Broker) refreshPolicy() error {
	if b.cfg.PolicyFile == nil {
		return nil
	}
	b.policy.looked = b.now()
	read := b.cfg.PolicyFile(b.policy.stamp)
	switch {
	case read.Err != nil && errors.Is(read.Err, fs.ErrNotExist) && b.policy.current == nil:
		b.policy.stamp, b.policy.problem = "", ""
		return nil // there is none, and never was one that governed
	case read.Err != nil:
		return b.rejectPolicy(read, fmt.Errorf("the policy file can't be read: %w", read.Err))
	case read.Data == nil:
		return nil
	}
	p, err := policy.Parse(read.Name, read.Data)
	if err != nil {
		return b.rejectPolicy(read, err)
	}
	b.policy.stamp, b.policy.problem, b.policy.name = read.Stamp, "", read.Name
	if b.policy.current != nil && b.policy.current.Hash() == p.Hash() {
		return nil
	}
	return b.govern(p)
}

// govern writes the policy.loaded Entry. What is decided later stands behind it in the trail, so nothing needs to
// wait for the disk here: if this can't be written, neither can that. Caller holds mu.
func (b *Broker) govern(p *policy.Policy) error {
	b.policy.current = p
	if b.ix.policy.Hash == p.Hash() {
		return nil // the one that governed when the daemon stopped
	}
	_, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventPolicyLoaded,
		Details: store.DetailsOf("hash", p.Hash(), "file", b.policy.name)}}, nil)
	return err
}

func (b *Broker) rejectPolicy(read PolicyRead, why error) error {
	stamp := read.Stamp
	if read.Err != nil {
		stamp = "unreadable: " + read.Err.Error()
	}
	if stamp == b.policy.stamp {
		return nil
	}
	b.policy.stamp, b.policy.problem = stamp, why.Error()
	b.cfg.Log.Error().Str("file", read.Name).Str("why", why.Error()).Msg("the policy file is not usable; the last one goes on governing")
	sum := sha256.Sum256(read.Data)
	_, err := b.submit(store.Change{Entry: store.Entry{Event: store.EventPolicyRejected,
		Details: store.DetailsOf("hash", hex.EncodeToString(sum[:]), "file", read.Name, "reason", clip(why.Error(), 500))}}, nil)
	return err
}

// ReloadPolicy looks at the file now rather than at the next decision.
func (b *Broker) ReloadPolicy(context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ready() == nil {
		_ = b.refreshPolicy() // a fault was logged where it arose
	}
}

// Explain says what p would be answered, and why. What a token takes away counts where p.By names its record.
func (b *Broker) Explain(_ context.Context, p identity.Principal, name string) (policy.Decision, []policy.Step, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.ix.creds[name]
	if c == nil {
		return policy.Decision{}, nil, notFound("credential", name)
	}
	if err := b.refreshPolicy(); err != nil {
		return policy.Decision{}, nil, err
	}
	r := b.question(p, c)
	d, steps := b.policy.current.Decide(r), b.policy.current.Explain(r)
	if why := b.unlent(p); why != "" && d.Allow {
		d = policy.Decision{Rule: d.Rule, Reason: "it would be refused: " + d.Reason + ", but " + why}
	}
	if d.Allow { // as to the best placed caller; one that is elsewhere is told why it can't have a delivery
		here := identity.Caller{Principal: p, Transport: "local"}
		if d.Deliveries = deliverable(d, c, here); len(d.Deliveries) == 0 {
			d = policy.Decision{Rule: d.Rule, Reason: "it would be refused: " + d.Reason + ", by proxy alone, and the credential has no upstream"}
		}
	}
	return d, steps, nil
}

// unlent is why p leases nothing whatever the policy says; "" where that decides. Caller holds mu.
func (b *Broker) unlent(p identity.Principal) string {
	t := b.ix.tokenOf(p.By)
	switch {
	case b.ix.frozen != nil:
		return "lending is frozen"
	case b.proven(p) != nil:
		return "the configuration says identities: {declared: deny}"
	case t == nil:
		return ""
	case t.problem(b.now()) != "":
		return "it is a " + t.problem(b.now())
	case t.spent():
		return fmt.Sprintf("the token has no leases left: it was made for %d", t.rec.Uses)
	}
	return ""
}

// TokenPrincipal returns whom a token stands for.
func (b *Broker) TokenPrincipal(id string) (identity.Principal, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.ix.tokens[id]
	if t == nil || t.damaged {
		return identity.Principal{}, notFound("token", id)
	}
	return t.principal(), nil
}

// rotationDue reports whether the admin's rotateEvery has passed since the current version was stored.
func (c *credential) rotationDue(now time.Time) bool {
	every, err := ttl.Parse(c.rec.Metadata["rotateEvery"])
	if err != nil || len(c.rec.Versions) == 0 {
		return false
	}
	return !now.Before(c.rec.Versions[len(c.rec.Versions)-1].CreatedAt.Add(every))
}

func formatBool(v bool) string { return strconv.FormatBool(v) }

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
