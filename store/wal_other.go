//go:build !linux

package store

// badgerSyncs: only on Linux is a file's sync known to write what is changed in a map of it.
const badgerSyncs = true

type wal struct{ dir string }

func (*wal) sync() error { return nil }
func (*wal) close()      {}
