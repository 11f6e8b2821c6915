// Package ttl reads and writes the lengths of time that people put in files and tool calls: "90s", "30m", "1h30m",
// "2d". Its rule: what it returns is a whole, positive number of seconds, or an error that says why not.
package ttl

import (
	"fmt"
	"strconv"
	"time"
)

// Max is the longest duration that Parse accepts: ten years. Anything longer is a mistake, not a lease.
const Max = 10 * 365 * 24 * time.Hour

var units = []struct {
	name byte
	size time.Duration
}{{'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// Parse reads one or more whole numbers, each with a unit of d, h, m or s, the larger unit first: "1h30m".
// Zero, signs, fractions, overflow and anything under a second are errors.
func Parse(s string) (time.Duration, error) {
	var total time.Duration
	rest, next := s, 0
	for rest != "" {
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		if digits == 0 || digits == len(rest) || digits > 9 {
			return 0, invalid(s)
		}
		var n time.Duration
		for _, c := range rest[:digits] {
			n = n*10 + time.Duration(c-'0')
		}
		unit := next
		for unit < len(units) && units[unit].name != rest[digits] {
			unit++
		}
		if unit == len(units) {
			return 0, invalid(s)
		}
		if n > Max/units[unit].size {
			return 0, fmt.Errorf("duration %q is longer than ten years", clip(s))
		}
		total += n * units[unit].size
		rest, next = rest[digits+1:], unit+1
	}
	switch {
	case total == 0:
		return 0, invalid(s)
	case total > Max:
		return 0, fmt.Errorf("duration %q is longer than ten years", clip(s))
	}
	return total, nil
}

func invalid(s string) error {
	return fmt.Errorf("%q is not a duration: write whole numbers with d, h, m or s, at least 1s, like 90s, 30m, 1h30m or 2d", clip(s))
}

// clip shows enough of a slip of the pen, and not the key that was pasted in a duration's place.
func clip(s string) string {
	if len(s) > 12 {
		return s[:12] + "…"
	}
	return s
}

// Format writes d, cut to whole seconds, the way Parse reads it, in h, m and s (and d for whole days): "30m",
// "1h30m", "2d". Anything under a second is "0s".
func Format(d time.Duration) string {
	d = d.Truncate(time.Second)
	if d <= 0 {
		return "0s"
	}
	var room [32]byte
	b := room[:0]
	for _, u := range units {
		if n := d / u.size; n > 0 {
			if u.name == 'd' && d%u.size != 0 {
				continue
			}
			b = append(strconv.AppendInt(b, int64(n), 10), u.name)
			d -= n * u.size
		}
	}
	return string(b)
}
