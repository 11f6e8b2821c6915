//go:build !linux

package store

import "errors"

// allocate is not known here: there is no ballast.
func allocate(string, int64) error { return errors.ErrUnsupported }
