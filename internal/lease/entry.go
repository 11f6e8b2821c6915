package lease

import (
	"fmt"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// entry begins an Entry about what caller did.
func entry(event store.Event, caller identity.Caller) store.Entry {
	return store.Entry{Event: event, Identity: store.EntryIdentity{
		Type: string(caller.Type), Name: caller.Name, Proof: caller.Proof.String(), By: caller.By,
		Session: caller.Session, ClientName: caller.ClientName, ClientVersion: caller.ClientVersion}}
}

// notePeer puts the program behind a local caller into an Entry, as an attribute: it decides nothing.
func notePeer(e *store.Entry, caller identity.Caller) {
	if caller.Peer != "" {
		e.Details.Set("peer", caller.Peer)
	}
}

// entry begins an Entry about l.
func (l *lease) entry(event store.Event, caller identity.Caller, now time.Time) store.Entry {
	e := entry(event, caller)
	e.Time, e.LeaseID, e.Credential, e.CredentialID, e.Version = now, l.id, l.cred.rec.Name, l.cred.rec.ID, l.version
	return e
}

// principalOf is who an Entry says did it. With an error it is that with no proof.
func principalOf(e *store.Entry) (identity.Principal, error) {
	p := identity.Principal{Type: identity.Type(e.Identity.Type), Name: e.Identity.Name, By: e.Identity.By}
	var err error
	if p.Proof, err = identity.ParseProof(e.Identity.Proof); err != nil {
		return p, fmt.Errorf("entry %d: %w", e.Seq, err)
	}
	return p, nil
}
