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
	EventLeaseAdopted      Event = "lease.adopted"
	EventLeaseReleased     Event = "lease.released"
	EventLeaseExpired      Event = "lease.expired"
	EventLeaseRevoked      Event = "lease.revoked"
	EventLeaseDenied       Event = "lease.denied"
	EventTokenCreated      Event = "token.created"
	EventTokenRotated      Event = "token.rotated"
	EventTokenRevoked      Event = "token.revoked"
	EventAuthFailed        Event = "auth.failed"
	EventPolicyLoaded      Event = "policy.loaded"
	EventPolicyRejected    Event = "policy.rejected"
	EventSeedConflict      Event = "seed.conflict"
	EventServerStarted     Event = "server.started"
	EventServerStopped     Event = "server.stopped"
	EventTrailSuppressed   Event = "trail.suppressed"
)

// allowed returns the fields that the details of an event may have: the trail is read by people and shipped to log
// systems, so a field gets in by being listed here, not by being filled in somewhere. false: no such event.
func allowed(e Event) ([]string, bool) {
	switch e {
	case EventCredentialCreated, EventCredentialUpdated, EventCredentialRotated, EventCredentialRevoked, EventCredentialDeleted:
		return []string{"type", "policy_hash", "versions", "reason", "source", "forced"}, true
	case EventVersionDestroyed:
		return []string{"reason"}, true
	case EventLeaseCreated:
		return []string{"delivery", "expires_at", "max_expires_at", "ttl", "ttl_capped", "rule", "policy_hash", "transport", "keep_on_disconnect", "peer"}, true
	case EventLeaseRenewed:
		return []string{"expires_at", "max_expires_at", "ttl", "ttl_capped", "rule", "policy_hash"}, true
	case EventLeaseOrphaned:
		return []string{"ends_at", "reason"}, true
	case EventLeaseAdopted:
		return []string{"session"}, true
	case EventLeaseReleased, EventLeaseExpired, EventLeaseRevoked:
		return []string{"reason", "held_for", "by"}, true
	case EventLeaseDenied:
		return []string{"code", "reason", "delivery", "verb", "peer"}, true
	case EventTokenCreated, EventTokenRotated, EventTokenRevoked:
		return []string{"token_id", "token_identity", "token_type", "expires_at", "reason"}, true
	case EventAuthFailed:
		return []string{"source", "reason", "count", "since"}, true
	case EventPolicyLoaded, EventPolicyRejected:
		return []string{"hash", "reason", "file", "rules"}, true
	case EventSeedConflict:
		return []string{"reason", "line"}, true
	case EventServerStarted, EventServerStopped:
		return []string{"version", "address", "reason", "auto", "key_source"}, true
	case EventTrailSuppressed:
		return []string{"count", "event", "since"}, true
	}
	return nil, false
}

// checkDetails refuses an event or a field that has no row above. It is a fault of the program, not of its user.
func checkDetails(e *Entry) error {
	fields, ok := allowed(e.Event)
	if !ok {
		return fmt.Errorf("event %q is not one that the trail knows", e.Event)
	}
	for field := range e.Details {
		if !slices.Contains(fields, field) {
			return fmt.Errorf("details of %s may not have the field %q", e.Event, field)
		}
	}
	return nil
}
