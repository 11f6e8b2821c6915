package ttl

import (
	"testing"
	"time"
)

func TestParseReadsWhatPeopleWrite(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"1s": time.Second, "90s": 90 * time.Second, "30m": 30 * time.Minute, "4h": 4 * time.Hour,
		"1h30m": 90 * time.Minute, "2d": 48 * time.Hour, "1d12h": 36 * time.Hour, "0h5m": 5 * time.Minute,
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}

func TestParseRefusesWhatCouldNeverEndOrMeansNothing(t *testing.T) {
	for _, in := range []string{
		"", "0", "0s", "-5m", "+5m", "1.5h", "500ms", "30", "m", "30 m", " 30m", "30m ", "30M", "1m1h", "5m5m",
		"9999999999s", "99999d", "999999999d", "forever", "1h30", "٣m", "1w",
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", in, got)
		}
	}
}

func TestFormatIsCanonical(t *testing.T) {
	for d, want := range map[time.Duration]string{
		30 * time.Minute: "30m", 90 * time.Minute: "1h30m", 48 * time.Hour: "2d", 36 * time.Hour: "36h",
		90 * time.Second: "1m30s", 1500 * time.Millisecond: "1s", 0: "0s",
	} {
		if got := Format(d); got != want {
			t.Errorf("Format(%v) = %q, want %q", d, got, want)
		}
	}
}

// plainly adds s up in numbers that do not overflow.
func plainly(s string) (ns float64) {
	n := 0.0
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			n = n*10 + float64(c-'0')
		default:
			ns += n * map[rune]float64{'d': 86400e9, 'h': 3600e9, 'm': 60e9, 's': 1e9}[c]
			n = 0
		}
	}
	return ns
}

// What Parse takes is positive, within its limits, and what the numbers in it add up to; Format writes what Parse reads.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"30m", "1h30m", "2d", "0s", "-1h", "999999999d", "3650d", "3651d", "1d23h59m59s", "00000001s", "2562047h47m16s", "1s1s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Parse(s)
		if err != nil {
			if d != 0 || len(err.Error()) > 400 {
				t.Fatalf("Parse(%q) = %v, %q", s, d, err)
			}
			return
		}
		if sum := plainly(s); sum != float64(d) {
			t.Fatalf("Parse(%q) = %v, plainly added up it is %v ns", s, d, sum)
		}
		if d < time.Second || d > Max || d%time.Second != 0 {
			t.Fatalf("Parse(%q) = %v", s, d)
		}
		if again, err := Parse(Format(d)); err != nil || again != d || Format(again) != Format(d) {
			t.Fatalf("Parse(Format(%v)) = %v, %v", d, again, err)
		}
	})
}
