package store

import (
	"fmt"
)

// maxDestroy is how many versions one Destroy takes: each is three prefixes that Badger looks for in every table while
// writers wait.
const maxDestroy = 256

// Destroy removes the data keys of versions, and the values that they sealed, from the files of the store: deleting
// alone would leave the bytes in tables and log. Writes wait for it (measured: 160 ms at 20 MB), so gather what there
// is; between every maxDestroy versions others may write. Afterwards the caller records it. Versions that are not there
// are destroyed; where an error is returned, any of them may be.
func (s *Store) Destroy(versions []ValueRef) error {
	for len(versions) > 0 {
		some := versions[:min(maxDestroy, len(versions))]
		versions = versions[len(some):]
		if err := s.destroySome(some); err != nil {
			return fmt.Errorf("destroying %d versions: %w", len(some), err)
		}
	}
	return nil
}

func (s *Store) destroySome(versions []ValueRef) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	in := s.keys.keks.Load()
	var prefixes [][]byte
	for _, v := range versions {
		at := s.keys.valueKey(v.CredentialID, v.Version)
		prefixes = append(prefixes, at, in.now.dataKey(at))
		if in.next != nil {
			prefixes = append(prefixes, in.next.dataKey(at))
		}
	}
	return s.db.DropPrefix(prefixes...)
}
