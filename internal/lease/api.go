package lease

import (
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/internal/use"
	"keylease/policy"
)

// Request asks for a new lease.
type Request struct {
	Credential string
	TTL        time.Duration // 0: the default of credential, rule or policy
	Purpose    string        // at most MaxPurpose characters
	Delivery   policy.Delivery
	ApprovalID string    // resume what was asked then; the other fields are zero, or as they were
	of         *approval // what is resumed
}

// RenewRequest asks to extend a lease. Credential and Delivery, where given, must be the lease's own.
type RenewRequest struct {
	LeaseID    string
	TTL        time.Duration // 0: the default; then the lease is never shortened
	Credential string
	Delivery   policy.Delivery
}

// Grant is what a caller was given. It never holds the value: see Broker.Reveal. Where Waiting is set it is nothing yet:
// a person has to agree first, and of the rest only what the question is about is set.
type Grant struct {
	Waiting      *Waiting
	LeaseID      string
	Credential   string
	Type         string
	Version      int
	Delivery     policy.Delivery
	IssuedAt     time.Time
	ExpiresAt    time.Time
	MaxExpiresAt time.Time
	TTL          time.Duration     // from now on, as granted
	Capped       bool              // more was asked for
	SessionBound bool              // ends a grace after its session does
	Metadata     map[string]string // the credential's own: to be read only
	Plan         *use.Plan         // what the proxy does with it; nil: the credential has no upstream
	Env          string            // the variable in which a command finds it; "" unless Delivery is Exec
	Handle       secret.Secret     // of a lease by proxy, when it is granted and never again
	Open         []policy.Delivery // when it is granted: the ways in which its holder could have got it, least exposing first
}

// Ended is how a lease stopped being one.
type Ended struct {
	LeaseID string
	Status  State
	EndedAt time.Time
	HeldFor time.Duration
}

// State is where a lease is in its life. Active is the only one in which it gives anything.
type State string

const (
	Active   State = "active"
	Released State = "released"
	Expired  State = "expired"
	Revoked  State = "revoked"
)

// OwnLease is what a caller may know of a lease of its own.
type OwnLease struct {
	LeaseID   string          `json:"lease_id"`
	ExpiresAt time.Time       `json:"expires_at"`
	Delivery  policy.Delivery `json:"delivery"`
}

// ListRequest narrows a list of credentials. Zero fields do not narrow.
type ListRequest struct {
	Match    string // glob on the name; the only pattern that a caller may give
	Type     string
	Metadata map[string]string // all must be equal
	Limit    int               // 1..MaxPage; 0: DefaultPage
	Cursor   string
}

// Listing is one page of what a caller may lease.
type Listing struct {
	Credentials []Offer
	NextCursor  string
}

// Offer is a credential as one caller may lease it.
type Offer struct {
	Name        string
	Type        string
	State       string
	Metadata    map[string]string
	Deliveries  []policy.Delivery // open to this caller, least exposing first
	Usual       policy.Delivery   // the one of them that is given where none is asked for; "": there are none
	DefaultTTL  time.Duration
	MaxTTL      time.Duration
	MaxLeases   int // 0: no limit
	LeasesInUse int
	Approval    policy.Approval
	RotationDue bool
	YourLeases  []OwnLease
}

// NewCredential is a credential to be stored. Its Value is wiped by the caller.
type NewCredential struct {
	Name     string
	Type     string
	Value    secret.Secret
	Metadata map[string]string
	Policy   policy.CredentialPolicy
	Expose   *use.Expose   // nil: a program gets it under its name in capitals
	Upstream *use.Upstream // nil: it can't be used through the proxy
}

// VersionInfo is a version without its value.
type VersionInfo struct {
	Version   int       `json:"version"`
	State     string    `json:"state"` // active, rotated, destroyed
	CreatedAt time.Time `json:"created_at"`
}

// CredentialInfo is a credential as an admin sees it: never a value, a length or a fingerprint.
type CredentialInfo struct {
	Name        string                  `json:"name"`
	Type        string                  `json:"type"`
	State       string                  `json:"state"` // active, revoked, damaged
	Version     int                     `json:"version"`
	Metadata    map[string]string       `json:"metadata"`
	Policy      policy.CredentialPolicy `json:"policy"`
	Expose      *use.Expose             `json:"expose,omitempty"`
	Upstream    *use.Upstream           `json:"upstream,omitempty"`
	Versions    []VersionInfo           `json:"versions"`
	LeasesInUse int                     `json:"leases_in_use"`
	CreatedAt   time.Time               `json:"created_at"`
	UpdatedAt   time.Time               `json:"updated_at"`
	RotationDue bool                    `json:"rotation_due"`
}

// HolderInfo is whom an admin sees behind a lease.
type HolderInfo struct {
	Type    identity.Type  `json:"type"`
	Name    string         `json:"name"`
	Proof   identity.Proof `json:"proof"`
	By      string         `json:"by"`
	Session string         `json:"session,omitempty"`
}

// Info is a live lease as an admin sees it.
type Info struct {
	LeaseID      string          `json:"lease_id"`
	Credential   string          `json:"credential"`
	Version      int             `json:"version"`
	Identity     HolderInfo      `json:"identity"`
	Delivery     policy.Delivery `json:"delivery"`
	Purpose      string          `json:"purpose"`
	IssuedAt     time.Time       `json:"issued_at"`
	ExpiresAt    time.Time       `json:"expires_at"`
	MaxExpiresAt time.Time       `json:"max_expires_at"`
	Orphaned     bool            `json:"orphaned"`
}

// Filter picks leases; empty fields pick all.
type Filter struct {
	Identity   string
	Type       identity.Type // of the identity
	Credential string
	LeaseID    string
}

// SeedItem is one item of a seed file with its value resolved. An item without a value (consumed) says only that
// the credential should be there already.
type SeedItem struct {
	NewCredential
	HasValue bool
	Line     int
}

// SeedResult says what became of one item.
type SeedResult struct {
	Name   string `json:"name"`
	Action string `json:"action"` // created, updated, rotated, unchanged, conflict
	Reason string `json:"reason,omitempty"`
}

// TokenSpec is a token to be made. The last three make one that can only do less than its identity.
type TokenSpec struct {
	Type        identity.Type
	Identity    string
	TTL         time.Duration // 0: until revoked
	Credentials []string      // patterns; nil: all that the identity may lease
	MaxTTL      time.Duration // of a lease, renewals included; 0: no further limit
	Uses        int           // how many leases it may open, renewals not counted; 0: no limit
}

// TokenInfo is a token record without its secret.
type TokenInfo struct {
	ID        string        `json:"id"`
	Type      identity.Type `json:"type"`
	Identity  string        `json:"identity"`
	State     string        `json:"state"` // active, expired, revoked, disabled (by a restore: RotateToken gives it a new text)
	CreatedAt time.Time     `json:"created_at"`
	ExpiresAt *time.Time    `json:"expires_at"`
	// When it last proved its identity, an open stream's too; nil: never. Not written down for itself: after a daemon
	// that was killed it is the last use that left an Entry in the trail, hence a lower bound.
	LastUsedAt    *time.Time `json:"last_used_at"`
	PreviousUntil *time.Time `json:"previous_until"` // until then the text before the last rotation works too
	Credentials   []string   `json:"credentials"`    // patterns; null: all that its identity may lease
	MaxTTL        string     `json:"max_ttl"`        // as in 10m; "": no further limit
	Uses          *int       `json:"uses"`           // leases that it may open; null: no limit
	UsesLeft      *int       `json:"uses_left"`
}

// Limits of what callers may send and how much a page holds.
const (
	MaxPurpose  = 200
	MaxPage     = 200
	DefaultPage = 50
)
