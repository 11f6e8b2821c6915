package lease

import (
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
