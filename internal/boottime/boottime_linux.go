package boottime

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Up is how long the machine has been up, suspend included.
func Up() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return sinceStart()
	}
	return time.Duration(ts.Nano())
}

// Boot says which start of the machine this is.
func Boot() ID {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ID{}
	}
	return named(strings.TrimSpace(string(id)))
}
