package store

import "fmt"

// Destroy removes the data keys of versions, and the values that they sealed, from the files of the store: deleting
// alone would leave the bytes in tables and log. Writes wait for it, so gather what there is, a few hundred at most
// (measured: 160 ms at 20 MB; docs/backup.md has more). Afterwards the caller records it. Versions that are not there
// are destroyed; where an error is returned, any of them may be.
func (s *Store) Destroy(versions []ValueRef) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	in := s.keys.keks.Load()
	prefixes := make([][]byte, 0, 2*len(versions))
	for _, v := range versions {
		at := s.keys.valueKey(v.CredentialID, v.Version)
		prefixes = append(prefixes, at, in.now.dataKey(at))
		if in.next != nil {
			prefixes = append(prefixes, in.next.dataKey(at))
		}
	}
	err := s.db.DropPrefix(prefixes...)
	s.values.drop() // after it: what was read meanwhile goes too
	if err != nil {
		return fmt.Errorf("destroying %d versions: %w", len(versions), err)
	}
	return nil
}
