package store

import (
	"errors"
	"fmt"
)

// What callers branch on. Every error of this package that is not one of these is an ordinary failure of the disk.
var (
	ErrNoStore     = errors.New("there is no store here")
	ErrLocked      = errors.New("another process holds the store")
	ErrWrongKey    = errors.New("the root key is not the one this store was made with")
	ErrIntegrity   = errors.New("the store is not what was written")
	ErrKeycheck    = errors.New("without its keycheck a store can't be opened: put it back from a backup") // is ErrIntegrity too
	ErrUnavailable = errors.New("the store cannot record changes")
	ErrFull        = errors.New("the disk is full")
	ErrFolder      = errors.New("the folder cannot be trusted")
	ErrDestroyed   = errors.New("the version was destroyed")
	ErrSameKey     = errors.New("this is the root key in force already")
	ErrBackup      = errors.New("the backup is not what was written")
	ErrOccupied    = errors.New("the place to restore to is not empty")
	ErrUnsure      = errors.New("the disk does not say whether it was written")
)

// fault is a place in the trail that is not what was written.
type fault struct {
	seq     uint64 // the first Entry that can't be believed
	problem string
}

func (f *fault) Error() string {
	return fmt.Sprintf("%v: event %d: %s", ErrIntegrity, f.seq, f.problem)
}

func (f *fault) Unwrap() error { return ErrIntegrity }
