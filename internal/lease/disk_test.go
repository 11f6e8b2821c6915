package lease

import (
	"errors"
	"sync/atomic"
)

// faultyDisk stands in front of what a world's store writes; the zero one is sound.
type faultyDisk struct {
	fault atomic.Pointer[func(write func() error) error]
}

var errDisk = errors.New("a disk that fails")

func (d *faultyDisk) write(write func() error) error {
	if fault := d.fault.Load(); fault != nil {
		return (*fault)(write)
	}
	return write()
}

func (d *faultyDisk) is(fault func(write func() error) error) { d.fault.Store(&fault) }

func (d *faultyDisk) heal() { d.fault.Store(nil) }

// failNext makes the next write fail alone: what it was given is on the disk nevertheless, or not.
func (d *faultyDisk) failNext(kept bool) {
	d.is(func(write func() error) error {
		d.heal()
		if kept {
			_ = write()
		}
		return errDisk
	})
}
