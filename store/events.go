package store

import (
	"fmt"
	"slices"
)

// Event says what an Entry is about.
type Event string

const (
	EventCredentialCreated Event = "credential.created"
	EventCredentialUpdated Event = "credential.updated"
	EventCredentialRotated Event = "credential.rotated"
	EventVersionDestroyed  Event = "credential.version_destroyed"
	EventCredentialRevoked Event = "credential.revoked"
	EventCredentialDeleted Event = "credential.deleted"
	EventLeaseCreated      Event = "lease.created"
	EventLeaseRenewed      Event = "lease.renewed"
	EventLeaseOrphaned     Event = "lease.orphaned"
	EventLeasesOrphaned    Event = "leases.orphaned" // a daemon began: all that was bound to sessions of the one before
	EventLeaseAdopted      Event = "lease.adopted"
	EventLeasesAdopted     Event = "leases.adopted" // all that one holder's sessions left behind, where that is many
	EventLeaseUsed         Event = "lease.used"
	EventLeaseReleased     Event = "lease.released"
	EventLeaseExpired      Event = "lease.expired"
	EventLeaseRevoked      Event = "lease.revoked"
	EventLeaseDenied       Event = "lease.denied"
	EventLeasesEnded       Event = "identity.leases_ended" // all that one identity holds gives nothing from here on
	EventApprovalAsked     Event = "approval.asked"
	EventApprovalGranted   Event = "approval.granted"
	EventApprovalDenied    Event = "approval.denied"
	EventApprovalExpired   Event = "approval.expired"
	EventTokenCreated      Event = "token.created"
	EventTokenRotated      Event = "token.rotated"
	EventTokenRevoked      Event = "token.revoked"
	EventAuthFailed        Event = "auth.failed"
	EventPolicyLoaded      Event = "policy.loaded"
	EventPolicyRejected    Event = "policy.rejected"
	EventSeedConflict      Event = "seed.conflict"
	EventServerStarted     Event = "server.started"
	EventServerStopped     Event = "server.stopped"
	EventServerFrozen      Event = "server.frozen"
	EventServerThawed      Event = "server.thawed"
	EventClockSetBack      Event = "server.clock_set_back"
	EventTrailSuppressed   Event = "trail.suppressed"
	EventKeyRotated        Event = "key.rotated"         // the root key
	EventStoreBackedUp     Event = "store.backed_up"     // somebody was given a copy of everything, sealed
	EventStoreRestored     Event = "store.restored"      // ends all leases and approvals and disables all tokens, unless it says otherwise
	EventLossAccepted      Event = "store.loss_accepted" // ends all leases and approvals and disables all tokens
	EventTrailExported     Event = "trail.exported"      // somebody confirmed that a file holds the trail up to an event
	EventTrailPruned       Event = "trail.pruned"
)

// row is an event with the fields that its details may have.
type row struct {
	event  Event
	fields []string
}

// rows are all events there are: the trail is read by people and shipped to log systems, so a field gets in by being
// listed here, not by being filled in somewhere.
var rows = [...]row{
	{EventCredentialCreated, credentialFields[:]},
	{EventCredentialUpdated, credentialFields[:]},
	{EventCredentialRotated, credentialFields[:]},
	{EventVersionDestroyed, []string{"reason"}},
	{EventCredentialRevoked, credentialFields[:]},
	{EventCredentialDeleted, credentialFields[:]},
	{EventLeaseCreated, []string{"delivery", "expires_at", "max_expires_at", "ttl", "ttl_capped", "rule", "policy_hash", "transport", "keep_on_disconnect", "peer", "uid", "handle", "approval_id"}},
	{EventLeaseRenewed, []string{"expires_at", "max_expires_at", "ttl", "ttl_capped", "rule", "policy_hash"}},
	{EventLeaseOrphaned, []string{"ends_at", "reason"}},
	{EventLeasesOrphaned, []string{"leases", "ends_at", "reason"}},
	{EventLeaseAdopted, []string{"session"}},
	{EventLeasesAdopted, []string{"leases", "session"}},
	{EventLeaseUsed, []string{"delivery", "phase", "method", "path", "program", "origin", "status", "bytes_in", "bytes_out", "duration_ms", "reason", "peer"}},
	{EventLeaseReleased, endFields[:]},
	{EventLeaseExpired, endFields[:]},
	{EventLeaseRevoked, endFields[:]},
	{EventLeaseDenied, []string{"code", "reason", "delivery", "verb", "peer"}},
	{EventLeasesEnded, []string{"identity", "identity_type", "token_id", "leases", "reason"}},
	{EventApprovalAsked, []string{"approval_id", "approval", "delivery", "ttl", "ttl_capped", "rule", "policy_hash", "terms", "question", "expires_at", "transport", "peer"}},
	{EventApprovalGranted, answerFields[:]},
	{EventApprovalDenied, answerFields[:]},
	{EventApprovalExpired, answerFields[:]},
	{EventTokenCreated, tokenFields[:]},
	{EventTokenRotated, tokenFields[:]},
	{EventTokenRevoked, tokenFields[:]},
	{EventAuthFailed, []string{"source", "reason", "token_id", "issuer", "subject", "san", "count", "since"}},
	{EventPolicyLoaded, []string{"hash", "reason", "file", "rules"}},
	{EventPolicyRejected, []string{"hash", "reason", "file", "rules"}},
	{EventSeedConflict, []string{"reason", "line"}},
	{EventServerStarted, serverFields[:]},
	{EventServerStopped, serverFields[:]},
	{EventServerFrozen, []string{"reason"}},
	{EventServerThawed, []string{"reason"}},
	{EventClockSetBack, []string{"from", "reason"}},
	{EventKeyRotated, []string{"generation", "source", "reason"}},
	{EventStoreBackedUp, []string{"epoch", "head"}},
	{EventStoreRestored, []string{"epoch", "head", "made", "missing", "until", "leases", "tokens", "approvals", "kept"}},
	{EventLossAccepted, []string{"epoch", "held", "missing", "reason", "aside"}},
	{EventTrailSuppressed, []string{"count", "event", "since", "reason"}},
	{EventTrailExported, []string{"from", "to", "head", "file"}},
	{EventTrailPruned, []string{"from", "to", "head"}},
}

var (
	credentialFields = [...]string{"type", "policy_hash", "versions", "reason", "source", "forced"}
	endFields        = [...]string{"reason", "held_for", "by"}
	answerFields     = [...]string{"approval_id", "by", "question", "expires_at", "reason"}
	tokenFields      = [...]string{"token_id", "token_identity", "token_type", "expires_at", "reason", "credentials", "max_ttl", "uses", "previous_until"}
	serverFields     = [...]string{"version", "address", "reason", "auto", "key_source"}
)

// Events returns the name of every event that the trail can hold.
func Events() []string {
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = string(r.event)
	}
	return names
}

// checkDetails refuses an event or a field that has no row above. It is a fault of the program, not of its user.
func checkDetails(e *Entry) error {
	at := slices.IndexFunc(rows[:], func(r row) bool { return r.event == e.Event })
	if at < 0 {
		return fmt.Errorf("event %q is not one that the trail knows", e.Event)
	}
	for i := range e.Details {
		if !slices.Contains(rows[at].fields, e.Details[i].Field) {
			return fmt.Errorf("details of %s may not have the field %q", e.Event, e.Details[i].Field)
		}
	}
	if !e.Details.inOrder() {
		return fmt.Errorf("details of %s are out of order, or have a field twice", e.Event)
	}
	return nil
}
