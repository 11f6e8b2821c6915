package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"keylease/internal/credtype"
	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// checkFields validates all of c but its value.
func (c NewCredential) checkFields() error {
	if err := credtype.CheckName(c.Name); err != nil {
		return err
	}
	if err := credtype.CheckMetadata(c.Metadata); err != nil {
		return err
	}
	if err := checkPolicy(c.Policy); err != nil {
		return err
	}
	return errors.Join(c.Expose.Err(), c.Upstream.Err())
}

// check validates c as it would be stored and merges what its type extracts.
func (c NewCredential) check() (NewCredential, error) {
	if err := c.checkFields(); err != nil {
		return c, err
	}
	extracted, err := credtype.Check(c.Type, c.Value.Bytes(), c.Metadata)
	if err != nil {
		return c, err
	}
	merged := maps.Clone(extracted)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, c.Metadata)
	c.Metadata = merged
	return c, nil
}

func checkPolicy(p policy.CredentialPolicy) error {
	if p.DefaultLeaseTTL < 0 || p.MaxLeaseTTL < 0 || p.MaxLeases < 0 {
		return fmt.Errorf("defaultLeaseTTL, maxLeaseTTL and maxLeases can't be negative")
	}
	if p.MaxLeaseTTL > 0 && p.DefaultLeaseTTL > p.MaxLeaseTTL {
		return fmt.Errorf("defaultLeaseTTL is longer than maxLeaseTTL")
	}
	return nil
}

// Put stores a new credential. One that exists is a Conflict.
func (b *Broker) Put(_ context.Context, admin identity.Caller, c NewCredential) (CredentialInfo, error) {
	c, err := c.check()
	if err != nil {
		return CredentialInfo{}, invalid("%s", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return CredentialInfo{}, err
	}
	if b.ix.creds[c.Name] != nil {
		return CredentialInfo{}, refuse(Conflict, fmt.Sprintf("there is a credential %q already", c.Name),
			"Use rotate to give it a new value, or rm to remove it first.")
	}
	cred, err := b.create(admin, c, nil, nil)
	if err != nil {
		return CredentialInfo{}, err
	}
	return b.info(cred), nil
}

// create stores c; seeded is nil unless it comes from a seed file. Caller holds mu.
func (b *Broker) create(admin identity.Caller, c NewCredential, seeded *seedMarks, details store.Details) (*credential, error) {
	now := b.now()
	rec := credentialRecord{ID: newID("cr_"), Name: c.Name, Type: c.Type, State: stateActive, Metadata: c.Metadata,
		Policy: c.Policy, Expose: c.Expose, Upstream: c.Upstream, CreatedAt: now, UpdatedAt: now}
	if seeded != nil {
		rec.SeededValue, rec.SeededRest = seeded.value, seeded.rest
	}
	rec.Versions = []versionRecord{{Version: 1, State: stateActive, CreatedAt: now, ValueMAC: b.valueMAC(c.Value)}}
	if err := b.write(admin, store.EventCredentialCreated, rec, &c.Value, details); err != nil {
		return nil, err
	}
	return b.ix.creds[c.Name], nil
}

// write commits a credential's record, and the value of its newest version where there is one. Caller holds mu.
func (b *Broker) write(admin identity.Caller, event store.Event, rec credentialRecord, value *secret.Secret, details store.Details) error {
	e := entry(event, admin)
	e.Time, e.Credential, e.CredentialID, e.Details = rec.UpdatedAt, rec.Name, rec.ID, details
	e.Version = rec.Versions[len(rec.Versions)-1].Version
	change := store.Change{Entry: e, Records: []store.RecordWrite{credentialWrite(rec)}, Owed: event == store.EventCredentialRevoked}
	if value != nil {
		change.Values = []store.ValueWrite{{CredentialID: rec.ID, Version: e.Version, Value: *value}}
	}
	_, err := b.change(change, rec)
	return err
}

func credentialWrite(rec credentialRecord) store.RecordWrite {
	plain, err := json.Marshal(rec)
	if err != nil {
		panic(err) // strings, times and numbers: cannot fail
	}
	return store.RecordWrite{Kind: store.KindCredential, ID: rec.ID, Plain: plain}
}

func (b *Broker) valueMAC(v secret.Secret) []byte {
	mac := b.store.MAC("seed-values", v.Bytes())
	return mac[:]
}

// Rotate gives a credential a new value. Live leases keep the old version until they end, unless revokeLeases.
func (b *Broker) Rotate(_ context.Context, admin identity.Caller, name string, value secret.Secret, revokeLeases bool) (CredentialInfo, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.changeable(name)
	if err != nil {
		return CredentialInfo{}, err
	}
	if _, err := credtype.Check(c.rec.Type, value.Bytes(), c.rec.Metadata); err != nil {
		return CredentialInfo{}, invalid("%s", err)
	}
	if err := b.rotate(admin, c, value, nil, nil); err != nil {
		return CredentialInfo{}, err
	}
	if revokeLeases {
		if _, err := b.revokeAll(admin, c.leases, "credential rotated"); err != nil {
			return CredentialInfo{}, err
		}
	}
	return b.info(c), nil
}

func (b *Broker) rotate(admin identity.Caller, c *credential, value secret.Secret, seeded *seedMarks, details store.Details) error {
	rec := c.rec.clone()
	rec.UpdatedAt = b.now()
	for i := range rec.Versions {
		if rec.Versions[i].State == stateActive {
			rec.Versions[i].State = stateRotated
		}
	}
	rec.Versions = append(rec.Versions, versionRecord{Version: c.current() + 1, State: stateActive,
		CreatedAt: rec.UpdatedAt, ValueMAC: b.valueMAC(value)})
	if seeded != nil {
		rec.SeededValue = seeded.value
	}
	return b.write(admin, store.EventCredentialRotated, rec, &value, details)
}

// changeable returns a credential that exists and is neither revoked nor damaged. Caller holds mu.
func (b *Broker) changeable(name string) (*credential, error) {
	if err := b.ready(); err != nil {
		return nil, err
	}
	c := b.ix.creds[name]
	if c == nil {
		return nil, notFound("credential", name)
	}
	if s := c.state(); s != stateActive {
		return nil, refuse(Conflict, fmt.Sprintf("credential %q is %s", name, s), "Remove it with rm and put it anew.")
	}
	return c, nil
}

// RevokeCredential ends every lease of a credential and lends it no more. It is kept for the record; Remove forgets it.
func (b *Broker) RevokeCredential(_ context.Context, admin identity.Caller, name string) (CredentialInfo, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ends(); err != nil {
		return CredentialInfo{}, err
	}
	c := b.ix.creds[name]
	switch {
	case c == nil:
		return CredentialInfo{}, notFound("credential", name)
	case c.damaged != "":
		return CredentialInfo{}, refuse(Conflict, fmt.Sprintf("the record of %q is damaged and is lent to nobody", name), "Remove it with rm and put it anew.")
	case c.rec.State == stateRevoked:
		return b.info(c), b.unrecorded(b.barrier(), fmt.Sprintf("credential %q is revoked and all its leases have ended", name))
	}
	_, err := b.revokeAll(admin, c.leases, "credential revoked")
	if err != nil && b.broken == nil && b.ix.byID[c.rec.ID] == c {
		return CredentialInfo{}, err
	}
	if c = b.ix.byID[c.rec.ID]; c == nil { // it was read back meanwhile
		return CredentialInfo{}, notFound("credential", name)
	}
	rec := c.rec.clone()
	rec.State, rec.UpdatedAt = stateRevoked, b.now()
	if err := b.write(admin, store.EventCredentialRevoked, rec, nil, store.Details{}); err != nil {
		return CredentialInfo{}, b.unrecorded(err, fmt.Sprintf("credential %q is revoked and all its leases have ended", name))
	}
	return b.info(b.ix.byID[rec.ID]), nil
}

// Remove ends every lease of a credential, forgets it, and has its keys destroyed. A new one of the same name is
// another credential: nothing of the old is alive in it.
func (b *Broker) Remove(_ context.Context, admin identity.Caller, name string) error {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return err
	}
	c := b.ix.creds[name]
	if c == nil {
		return notFound("credential", name)
	}
	return b.remove(admin, c)
}

func (b *Broker) remove(admin identity.Caller, c *credential) error {
	if _, err := b.revokeAll(admin, c.leases, "credential removed"); err != nil {
		return err
	}
	e := entry(store.EventCredentialDeleted, admin)
	e.Credential, e.CredentialID = c.rec.Name, c.rec.ID
	_, err := b.change(store.Change{Entry: e, Deletes: []store.RecordDelete{{Kind: store.KindCredential, ID: c.rec.ID}}}, nil)
	b.poke()
	return err
}

// revokeAll ends the leases in set, waits until that is on disk, and returns how many were live. Caller holds mu.
func (b *Broker) revokeAll(admin identity.Caller, set leaseSet, reason string) (int, error) {
	set, now := slices.Clone(set), b.now() // each that ends leaves its sets
	if b.broken == nil {
		if err := b.expireDue(now); err != nil {
			return 0, err
		}
	}
	n := 0
	for _, l := range set {
		if b.ix.leases[l.id] != l {
			continue // its time was up just now
		}
		if l.held.cut == nil {
			n++
		}
		if _, _, err := b.end(l, store.EventLeaseRevoked, admin, now, reason); err != nil && b.broken == nil {
			return 0, err
		}
	}
	return n, b.barrier()
}

// barrier waits until everything submitted so far is durable: also what somebody else submitted and this answer rests
// on. Caller holds mu.
func (b *Broker) barrier() error {
	if b.broken != nil {
		return b.unavailable()
	}
	if b.newest.pending == nil {
		return nil
	}
	_, err := b.settleLocked(b.newest)
	return err
}

// EndLease releases any lease, for an admin.
func (b *Broker) EndLease(_ context.Context, admin identity.Caller, id string) (Ended, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	const what = "the lease has ended and gives nothing more"
	if err := b.ends(); err != nil {
		return Ended{}, err
	}
	now := b.now()
	if b.broken == nil {
		if err := b.expireDue(now); err != nil {
			return Ended{}, err
		}
	}
	if past, ok := b.ix.ended.byID(id); ok {
		return Ended{id, past.State, past.At, past.At.Sub(past.Issued)}, b.unrecorded(b.barrier(), what)
	}
	l := b.ix.leases[id]
	if l == nil {
		return Ended{}, notFound("lease", id)
	}
	ended, w, err := b.end(l, store.EventLeaseReleased, admin, now, "released by an admin")
	if err == nil {
		_, err = b.settleLocked(w)
	}
	return ended, b.unrecorded(err, what)
}

func (f Filter) picks(l *lease) bool {
	return (f.Identity == "" || f.Identity == l.owner.Name) && (f.Type == "" || f.Type == l.owner.Type) && (f.Credential == "" || f.Credential == l.cred.rec.Name) &&
		(f.LeaseID == "" || f.LeaseID == l.id)
}

// Leases returns the live leases that f picks, the one that ends first at the front.
func (b *Broker) Leases(f Filter) []Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	var set leaseSet
	for _, l := range b.ix.leases {
		if f.picks(l) {
			set = append(set, l)
		}
	}
	infos := []Info{}
	for _, l := range byExpiry(set, b.now()) {
		infos = append(infos, Info{LeaseID: l.id, Credential: l.cred.rec.Name, Version: l.version,
			Identity: HolderInfo{l.owner.Type, l.owner.Name, l.owner.Proof, l.owner.By, l.session},
			Delivery: l.delivery, Purpose: l.purpose, IssuedAt: l.issued, ExpiresAt: l.deadline(),
			MaxExpiresAt: l.maxAt, Orphaned: !l.orphanEnd.IsZero()})
	}
	return infos
}

// Credentials returns all credentials whose name matches the glob, by name; an empty glob matches all.
func (b *Broker) Credentials(match string) []CredentialInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	infos := []CredentialInfo{}
	for _, name := range b.ix.names {
		if match == "" || policy.Glob(match, name) {
			infos = append(infos, b.info(b.ix.creds[name]))
		}
	}
	return infos
}

// Credential returns one credential.
func (b *Broker) Credential(name string) (CredentialInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.ix.creds[name]
	if c == nil {
		return CredentialInfo{}, notFound("credential", name)
	}
	return b.info(c), nil
}

func (b *Broker) info(c *credential) CredentialInfo {
	now := b.now()
	i := CredentialInfo{Name: c.rec.Name, Type: c.rec.Type, State: c.state(), Metadata: maps.Clone(c.rec.Metadata),
		Policy: c.rec.Policy, Expose: c.rec.Expose, Upstream: c.rec.Upstream, Versions: []VersionInfo{}, LeasesInUse: c.leases.live(now),
		CreatedAt: c.rec.CreatedAt, UpdatedAt: c.rec.UpdatedAt, RotationDue: c.rotationDue(now)}
	if i.Metadata == nil {
		i.Metadata = map[string]string{}
	}
	for _, v := range slices.Clone(c.rec.Versions) {
		i.Version = v.Version
		i.Versions = append(i.Versions, VersionInfo{v.Version, v.State, v.CreatedAt})
	}
	return i
}
