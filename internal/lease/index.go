package lease

import (
	"maps"
	"slices"
	"time"
	"unique"

	"keylease/internal/identity"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

// index is the state that the trail tells, in memory: the authority for every decision. It changes only by apply,
// with an Entry that is being written or was read back, so that a rebuilt index can't differ from a live one.
// The Broker's mutex guards all of it.
type index struct {
	creds    map[string]*credential // by name
	byID     map[string]*credential
	names    []string // sorted; what list_credentials pages over. nil while a trail is read: sortNames makes it
	leases   map[string]*lease
	handles  map[[32]byte]*lease // by the keyed hash of the handle
	due      deadlines
	holders  map[identity.Holder]*holding // what each identity holds since its last cutoff
	cut      []*holding                   // what cutoffs ended, as long as a terminal Entry is missing
	ended    endedRing
	tokens   map[string]*token
	removed  map[string]bool           // names that were removed: a seed file does not bring them back
	destroy  map[store.ValueRef]string // versions whose key can go, and the credential's name
	policy   policyMark                // the policy that governs
	frozen   *Frozen                   // nil: keylease lends
	tokensTo uint64                    // tokens whose record is older than this Entry are disabled: see applyEpoch
	secrets  map[[32]byte]tokenText    // by the keyed hash of the token's text
	asked    map[string]*approval      // by id: the open ones and, for a while, how the others ended
	denials  map[string]denials        // by rate key
	answered []*approval               // those of asked that are over, the first first
	changed  int                       // grows with each change of a credential's record
	seq      uint64                    // of the newest Entry read back from the trail
	newest   time.Time                 // of any Entry read back from the trail
	books    books
}

type policyMark struct {
	Hash string `json:"hash"`
	File string `json:"file"`
}

type credential struct {
	rec     credentialRecord
	ref     store.RecordRef
	values  valueRefs
	leases  leaseSet
	inUse   []versionUse // of how many of leases each version is
	plan    *use.Plan    // what rec's upstream means; nil: it has none
	damaged string       // why its record can't be believed; "" when it can
	hash    string       // see terms; "": not asked for yet
}

// valueRefs are where the values of a credential are, a few as a rule. A map would take seven times the memory, and a
// collector goes through that of every credential.
type valueRefs []store.RecordRef

// of returns the one of a version; where there is none, one of nothing, which the store refuses.
func (v valueRefs) of(version int) store.RecordRef {
	if i := v.at(version); i >= 0 {
		return v[i]
	}
	return store.RecordRef{}
}

func (v valueRefs) at(version int) int {
	return slices.IndexFunc(v, func(ref store.RecordRef) bool { return ref.Version == version })
}

func (v *valueRefs) put(ref store.RecordRef) {
	if i := v.at(ref.Version); i >= 0 {
		(*v)[i] = ref
		return
	}
	*v = append(*v, ref)
}

func (v *valueRefs) drop(version int) {
	*v = slices.DeleteFunc(*v, func(ref store.RecordRef) bool { return ref.Version == version })
}

// is makes r the record of c. What its upstream can't mean was refused when it was stored.
func (c *credential) is(r credentialRecord) {
	c.rec, c.plan, c.hash = r, nil, ""
	if r.Upstream != nil {
		c.plan, _ = r.Upstream.Plan()
	}
}

// credentialRecord is what is sealed in the store about a credential; values are sealed apart, each by its own key.
type credentialRecord struct {
	ID        string                  `json:"id"`
	Name      string                  `json:"name"`
	Type      string                  `json:"type"`
	State     string                  `json:"state"` // active, revoked
	Metadata  map[string]string       `json:"metadata,omitempty"`
	Policy    policy.CredentialPolicy `json:"policy"`
	Versions  []versionRecord         `json:"versions"`
	CreatedAt time.Time               `json:"created_at"`
	UpdatedAt time.Time               `json:"updated_at"`
	Expose    *use.Expose             `json:"expose,omitempty"`   // how a command gets it; nil: nothing was said
	Upstream  *use.Upstream           `json:"upstream,omitempty"` // where the proxy uses it; nil: nowhere
	// What the seed file said when it was last applied, as keyed hashes: of the value, and of all the rest.
	SeededValue []byte `json:"seeded_value,omitempty"`
	SeededRest  []byte `json:"seeded_rest,omitempty"`
}

// share makes equal texts of many credentials one string, of those at least that are read before the collector comes by.
// Each of 100,000 had five of its own, which it goes through one by one.
func (r *credentialRecord) share() {
	r.Type, r.State = shared(r.Type), shared(r.State)
	for i := range r.Versions {
		r.Versions[i].State = shared(r.Versions[i].State)
	}
	for field, text := range r.Metadata {
		r.Metadata[shared(field)] = shared(text)
	}
}

func shared(s string) string { return unique.Make(s).Value() }

type versionRecord struct {
	Version   int       `json:"version"`
	State     string    `json:"state"`
	CreatedAt time.Time `json:"created_at"`
	ValueMAC  []byte    `json:"value_mac"` // keyed hash of the value, so that an earlier one is known again
}

const (
	stateActive    = "active"
	stateRotated   = "rotated"
	stateDestroyed = "destroyed"
	stateRevoked   = "revoked"
	stateExpired   = "expired"
	stateDisabled  = "disabled"
	stateDamaged   = "damaged"
)

func (c *credential) current() int { return c.rec.Versions[len(c.rec.Versions)-1].Version }

func (c *credential) view() policy.Credential {
	return policy.Credential{Name: c.rec.Name, Type: c.rec.Type, Metadata: c.rec.Metadata, Policy: c.rec.Policy}
}

func (r credentialRecord) clone() credentialRecord {
	r.Versions = slices.Clone(r.Versions)
	return r
}

// lease is a live lease. An ended one is only an endedLease.
type lease struct {
	id         string
	owner      identity.Principal
	session    string // "": not bound to one
	cred       *credential
	version    int
	delivery   policy.Delivery
	purpose    string
	uid        string    // of the local process that it was lent to; "": not known
	handle     *[32]byte // the keyed hash of its handle; nil: it is not for the proxy
	issued     time.Time
	expires    time.Time
	maxAt      time.Time
	keep       bool            // policy: stays when its holder leaves
	orphanEnd  time.Time       // zero: not orphaned
	approvedBy policy.Approval // who agreed to it; "": nobody was asked
	approvedTo time.Time       // how far that goes, renewals included
	durable    bool            // its lease.created is on disk: only then may its value leave
	held       *holding        // what its owner's name holds, this lease among it
	at         int             // place in the heap
	place      [setKinds]int   // in its sets
}

// deadline is when the lease ends if nobody does anything.
func (l *lease) deadline() time.Time {
	if !l.orphanEnd.IsZero() && l.orphanEnd.Before(l.expires) {
		return l.orphanEnd
	}
	return l.expires
}

// live asks the clock, not the sweeper.
func (l *lease) live(now time.Time) bool { return l.held.cut == nil && !l.overdue(now) }

// overdue reports whether the time of l is up. A lease without an expiry is corruption: it has none.
func (l *lease) overdue(now time.Time) bool {
	return l.expires.IsZero() || !now.Before(l.deadline())
}

func (l *lease) own() OwnLease {
	return OwnLease{LeaseID: l.id, ExpiresAt: l.deadline(), Delivery: l.delivery}
}

type token struct {
	rec      tokenRecord
	ref      store.RecordRef
	damaged  bool
	disabled bool      // the store was restored, or a loss accepted, since its record was written
	grants   int       // lease.created Entries that name it
	lastUsed time.Time // see TokenInfo
}

// tokenText is what one text of a token proves, and until when: zero is as long as the token.
type tokenText struct {
	*token
	until time.Time
}

// tokenRecord is what is sealed about a token: never its text.
type tokenRecord struct {
	ID        string        `json:"id"`
	Type      identity.Type `json:"type"`
	Identity  string        `json:"identity"`
	Hash      [32]byte      `json:"hash"`
	CreatedAt time.Time     `json:"created_at"`
	ExpiresAt time.Time     `json:"expires_at,omitzero"`
	Revoked   bool          `json:"revoked,omitempty"`
	// The text before the last rotation, where that one let it go on for a while.
	Previous      [32]byte  `json:"previous,omitzero"`
	PreviousUntil time.Time `json:"previous_until,omitzero"`
	// What the token may do less than its identity. nil credentials are all of them; an empty list would be none.
	Credentials []string      `json:"credentials"`
	MaxTTL      time.Duration `json:"max_ttl,omitempty"`
	Uses        int           `json:"uses,omitempty"` // leases that it may open; 0: no limit
}

func (t *token) principal() identity.Principal {
	return identity.Principal{Type: t.rec.Type, Name: t.rec.Identity, Proof: identity.Token, By: "token:" + t.rec.ID}
}

func newIndex() *index {
	return &index{
		creds: map[string]*credential{}, byID: map[string]*credential{}, leases: map[string]*lease{}, handles: map[[32]byte]*lease{},
		holders: map[identity.Holder]*holding{},
		ended:   newEndedRing(), tokens: map[string]*token{}, removed: map[string]bool{},
		destroy: map[store.ValueRef]string{}, secrets: map[[32]byte]tokenText{}, asked: map[string]*approval{}, denials: map[string]denials{},
	}
}

func (ix *index) addCredential(c *credential) {
	ix.creds[c.rec.Name], ix.byID[c.rec.ID] = c, c
	if at, found := slices.BinarySearch(ix.names, c.rec.Name); !found && ix.names != nil {
		ix.names = slices.Insert(ix.names, at, c.rec.Name)
	}
	delete(ix.removed, c.rec.Name)
}

// sortNames is for the end of reading a trail: to keep the order with each of a hundred thousand took seconds.
func (ix *index) sortNames() {
	ix.names = slices.AppendSeq(make([]string, 0, len(ix.creds)), maps.Keys(ix.creds))
	slices.Sort(ix.names)
}

func (ix *index) dropCredential(c *credential) {
	delete(ix.creds, c.rec.Name)
	delete(ix.byID, c.rec.ID)
	if at, found := slices.BinarySearch(ix.names, c.rec.Name); found {
		ix.names = slices.Delete(ix.names, at, at+1)
	}
	ix.removed[c.rec.Name] = true
}

// addLease adds l to what is held, which is the holding of its owner's name unless a snapshot says another.
func (ix *index) addLease(l *lease, held *holding) {
	ix.putLease(l, held)
	ix.due.add(l)
}

// putLease is addLease but for the deadline.
func (ix *index) putLease(l *lease, held *holding) {
	ix.leases[l.id] = l
	l.cred.leases.add(l, ofCredential)
	l.cred.use(l.version, 1)
	if l.handle != nil {
		ix.handles[*l.handle] = l
	}
	l.held = held
	held.add(l)
}

func (ix *index) endLease(l *lease, state State, at time.Time) {
	delete(ix.leases, l.id)
	if l.handle != nil {
		delete(ix.handles, *l.handle)
	}
	l.cred.leases.drop(l, ofCredential)
	l.cred.use(l.version, -1)
	ix.letGo(l)
	ix.due.drop(l)
	ix.ended.add(endedLease{ID: l.id, Owner: l.owner, State: state, Issued: l.issued, At: at})
	ix.retire(l.cred, l.version)
}

// retire notes a rotated version for destruction once no lease uses it.
func (ix *index) retire(c *credential, version int) {
	for _, v := range c.rec.Versions {
		if v.Version == version && v.State == stateRotated && !c.used(version) {
			ix.destroy[store.ValueRef{CredentialID: c.rec.ID, Version: version}] = c.rec.Name
		}
	}
}

func (c *credential) used(version int) bool {
	for _, u := range c.inUse {
		if u.version == version {
			return true
		}
	}
	return false
}

// versionUse is how many leases are of a version, which is some.
type versionUse struct{ version, n int }

func (c *credential) use(version, by int) {
	at := slices.IndexFunc(c.inUse, func(u versionUse) bool { return u.version == version })
	if at < 0 {
		c.inUse = append(c.inUse, versionUse{version, by})
		return
	}
	if c.inUse[at].n += by; c.inUse[at].n == 0 {
		c.inUse = slices.Delete(c.inUse, at, at+1)
	}
}
