package store

// Size is about how many bytes e takes on the disk, if it is alone in its group: a few more than it does, never fewer, save
// for Records, which are not counted.
func (e *Entry) Size() int {
	const fixed = headLen + 16 + 8 + 16 + // salt, time, and the lengths of the texts
		groupHeader + 12 + 16 + 9 + 40 // a group's header, seal and key, and what Badger adds to it
	n := fixed + len(e.Event) + len(e.Credential) + len(e.CredentialID) + len(e.LeaseID) + len(e.Purpose)
	i := &e.Identity
	n += len(i.Type) + len(i.Name) + len(i.Proof) + len(i.By) + len(i.Session) + len(i.ClientName) + len(i.ClientVersion)
	for j := range e.Details {
		n += len(e.Details[j].Field) + len(e.Details[j].Value) + 3
	}
	return n
}
