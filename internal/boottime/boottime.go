// Package boottime reads the clock that counts from the machine's start, through suspend, and that nobody sets. Its
// rule: it only goes forward as long as the machine runs.
//
// Go's own monotonic clock is another one: on Linux and macOS it stands still while the machine sleeps.
package boottime

import (
	"crypto/sha256"
	"time"
)

// ID names one start of the machine. Readings of two processes can be held against each other where it is the same.
// Zero: nobody knows, so they can't.
type ID [16]byte

// Known reports whether it names one.
func (id ID) Known() bool { return id != ID{} }

// named makes an ID of what the system calls this start of the machine.
func named(text string) (id ID) {
	if text != "" {
		sum := sha256.Sum256([]byte(text))
		copy(id[:], sum[:])
	}
	return id
}

var began = time.Now()

// sinceStart is for where there is no better clock: from when this process began, suspend left out.
func sinceStart() time.Duration { return time.Since(began) }
