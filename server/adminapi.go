package server

import (
	"encoding/json"
	"time"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/use"
	"keylease/policy"
	"keylease/store"
)

// What the admin API speaks: HTTP/1.1 and JSON over the local socket, after a hello of kind "admin". It is private to
// keylease: CLI and daemon are the same binary, and where they are not, the hello says so first.

// CodeDenied is the refusal of an admin verb to a process that came from an MCP client.
const CodeDenied lease.Code = "denied"

// maxAdminBody bounds one request: a seed file's worth of values.
const maxAdminBody = 16 << 20

// CredentialItem is a credential on its way into the store. Value travels in bodies on the socket and nowhere else.
type CredentialItem struct {
	Name     string                  `json:"name"`
	Type     string                  `json:"type"`
	Value    []byte                  `json:"value"`
	HasValue bool                    `json:"has_value"`
	Metadata map[string]string       `json:"metadata,omitempty"`
	Policy   policy.CredentialPolicy `json:"policy"`
	Expose   *use.Expose             `json:"expose,omitempty"`
	Upstream *use.Upstream           `json:"upstream,omitempty"`
	Line     int                     `json:"line,omitempty"`
}

type seedRequest struct {
	Items []CredentialItem `json:"items"`
	Force bool             `json:"force"`
}

type rotateRequest struct {
	Value        []byte `json:"value"`
	RevokeLeases bool   `json:"revoke_leases"`
}

// LeaseFilter picks leases. All must be said in words: an empty filter picks nothing.
type LeaseFilter struct {
	Identity   string        `json:"identity,omitempty"`
	Type       identity.Type `json:"type,omitempty"` // of the identity; "": agent or human
	Credential string        `json:"credential,omitempty"`
	All        bool          `json:"all,omitempty"`
}

// EndedLease is how a lease stopped being one.
type EndedLease struct {
	LeaseID string      `json:"lease_id"`
	Status  lease.State `json:"status"`
	EndedAt time.Time   `json:"ended_at"`
	HeldFor string      `json:"held_for"`
}

// TokenRequest is a token to be made.
type TokenRequest struct {
	Type     identity.Type `json:"type"`
	Identity string        `json:"identity"`
	TTL      time.Duration `json:"ttl"` // nanoseconds; 0: until revoked

	Credentials []string      `json:"credentials"` // patterns; null: all that the identity may lease
	MaxTTL      time.Duration `json:"max_ttl"`     // nanoseconds; 0: no further limit
	Uses        int           `json:"uses"`        // 0: no limit
}

type rotateTokenRequest struct {
	Overlap time.Duration `json:"overlap"` // nanoseconds
}

type freezeRequest struct {
	Reason string `json:"reason"`
}

// NewToken is a token record with the one copy of its secret that there will be.
type NewToken struct {
	Token string `json:"token"`
	lease.TokenInfo
}

// Question asks what the policy would answer.
type Question struct {
	Type       identity.Type  `json:"type"`
	Identity   string         `json:"identity"`
	Proof      identity.Proof `json:"proof"`
	Token      string         `json:"token,omitempty"` // a record's id, instead of the three above
	Credential string         `json:"credential"`
}

// Answer is what the policy answers, and what each of its rules had to say.
type Answer struct {
	Identity        string            `json:"identity"`
	Allow           bool              `json:"allow"`
	Reason          string            `json:"reason"`
	Rule            string            `json:"rule"`
	DefaultTTL      string            `json:"default_ttl,omitempty"`
	MaxTTL          string            `json:"max_ttl,omitempty"`
	MaxLeases       *int              `json:"max_leases"`
	RuleMaxLeases   *int              `json:"rule_max_leases"`
	Deliveries      []policy.Delivery `json:"deliveries"`
	Approval        policy.Approval   `json:"approval"`
	PurposeRequired bool              `json:"purpose_required"`
	Steps           []policy.Step     `json:"steps"`
}

// EntryQuery picks entries of the trail; zero fields do not narrow.
type EntryQuery struct {
	Since      time.Time
	Identity   string
	Credential string
	Event      string
	LeaseID    string
	Limit      int  // the newest so many; 0: all
	Follow     bool // and those to come
}

// VerifyReport is what checking the whole trail found.
type VerifyReport struct {
	OK bool `json:"ok"`
	store.Report
}

// Status is what a daemon says of itself.
type Status struct {
	Version     string             `json:"version"`
	PID         int                `json:"pid"`
	Auto        bool               `json:"auto"` // started by a relay or the CLI, not by hand
	HTTP        string             `json:"http"` // "" = off
	Credentials int                `json:"credentials"`
	LiveLeases  int                `json:"live_leases"`
	Healthy     bool               `json:"healthy"`
	Problem     string             `json:"problem,omitempty"`
	Frozen      *lease.Frozen      `json:"frozen"` // null: keylease lends
	Policy      lease.PolicyStatus `json:"policy"`
	// ClockBehind is how many seconds the system's clock is behind the one that leases end by.
	ClockBehind float64 `json:"clock_behind"`
}

// wireError is every answer that is not 2xx. An entry stream that breaks off ends with one too.
type wireError struct {
	Error *wireRefusal `json:"error,omitempty"`
}

// wireRefusal is a lease.Refusal with its time in whole seconds.
type wireRefusal struct {
	lease.Refusal
	RetryAfterSeconds int `json:"retry_after,omitempty"`
}

func wireFrom(r *lease.Refusal) wireError {
	return wireError{&wireRefusal{*r, int((r.RetryAfter + time.Second - 1) / time.Second)}}
}

// refusal reads body as a wireError; nil where it is none.
func refusal(body []byte) *lease.Refusal {
	var w wireError
	if json.Unmarshal(body, &w) != nil || w.Error == nil || w.Error.Code == "" {
		return nil
	}
	r := w.Error.Refusal
	r.RetryAfter = time.Duration(w.Error.RetryAfterSeconds) * time.Second
	return &r
}
