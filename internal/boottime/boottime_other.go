//go:build !linux && !darwin

package boottime

import "time"

// Up counts from when this process began, and may leave suspend out: leases then end by the wall clock.
func Up() time.Duration { return sinceStart() }

// Boot is unknown here.
func Boot() ID { return ID{} }
