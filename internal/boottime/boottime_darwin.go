package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Up is how long the machine has been up, sleep included: CLOCK_MONOTONIC_RAW is mach_continuous_time here, which
// counts on while the machine sleeps (CLOCK_UPTIME_RAW is mach_absolute_time, which does not).
func Up() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
		return sinceStart()
	}
	return time.Duration(ts.Nano())
}

// Boot says which start of the machine this is.
func Boot() ID {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ID{}
	}
	return named(id)
}
