//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// starting measures how long a daemon with many live leases takes from being started until it lends, and from being told
// to stop until it is gone. Then it verifies the trail.
func starting(r *run) error {
	sizes := []struct {
		n       int
		seconds float64
		rounds  int
	}{{100_000, 1, r.rounds}, {1_000_000, 3, min(r.rounds, 3)}}
	if r.short {
		sizes = sizes[:1]
		sizes[0].n = 2000
	}
	for _, size := range sizes {
		if err := r.within(func() error { return r.started(size.n, size.seconds, size.rounds) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) started(n int, seconds float64, rounds int) error {
	w, err := r.filled(100, n, 2*time.Hour, time.Now)
	if err != nil {
		return err
	}
	var start, killed, stop []float64
	begin := func() (float64, error) {
		began := time.Now()
		if err := w.serve(); err != nil {
			return 0, err
		}
		c, err := w.local("bench")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		_, err = c.ask(leaseCall(credential(0)))
		return time.Since(began).Seconds(), err
	}
	memory := 0
	for range rounds {
		took, err := begin()
		if err != nil {
			return err
		}
		start = append(start, took)
		memory = status(w.pid, "VmRSS")
		_ = syscall.Kill(w.pid, syscall.SIGKILL)
		w.gone()
		if took, err = begin(); err != nil {
			return err
		}
		killed = append(killed, took)
		began := time.Now()
		if err := w.stop(); err != nil {
			return err
		}
		stop = append(stop, time.Since(began).Seconds())
	}
	at := func(all []float64) spread { return over(len(all), func(i int) float64 { return all[i] }) }
	what := fmt.Sprintf("start with %s live leases", power(n))
	r.atMost(what, shipped, "until something is lent", "s", seconds, at(start), "%d MB resident then", memory>>10)
	r.told(what+", after a kill", shipped, "until something is lent", "s", at(killed), "without the snapshot that a stop writes")
	what = fmt.Sprintf("stop with %s live leases", power(n))
	if n > 100_000 { // nobody promised how long that takes
		r.told(what, shipped, "until the process is gone", "s", at(stop), "with a snapshot written")
	} else {
		r.atMost(what, shipped, "until the process is gone", "s", 2, at(stop), "with a snapshot written")
	}
	return r.verified(w, rounds)
}

// gone waits until the daemon that was killed is.
func (w *world) gone() {
	for syscall.Kill(w.pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
}

func (r *run) verified(w *world, rounds int) error {
	if err := w.serve(); err != nil {
		return err
	}
	var each []float64
	var report struct {
		OK      bool `json:"ok"`
		Entries int  `json:"entries"`
	}
	for range rounds {
		began := time.Now()
		if err := w.cliJSON(&report, "audit", "verify"); err != nil {
			return err
		}
		if !report.OK || report.Entries == 0 {
			return fmt.Errorf("the trail does not hold: %+v", report)
		}
		each = append(each, float64(time.Since(began).Microseconds())/float64(report.Entries))
	}
	r.atMost(fmt.Sprintf("verify a trail of %.1g events", float64(report.Entries)), shipped, "`audit verify`, for each event", "µs", 2, over(len(each), func(i int) float64 { return each[i] }), "%d events, the command's own start included", report.Entries)
	return nil
}

// expiry measures how late the end of a lease is in the trail.
func expiry(r *run) error {
	if err := r.within(r.late); err != nil {
		return err
	}
	return r.within(r.atOnce)
}

// late lends leases of a second, one after the other, and follows the trail: an entry is shown when it is on the disk,
// so what is measured is that, the way through the command, and its JSON.
func (r *run) late() error {
	w, _, err := r.served(100, 0)
	if err != nil {
		return err
	}
	cmd := exec.Command(r.binary, "audit", "--follow", "--event", "lease.expired", "--json")
	cmd.Env, cmd.Dir = w.env(), w.home
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.later(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	many := 1500
	if r.short {
		many = 50
	}
	type end struct {
		lease string
		at    time.Time
	}
	ends := make(chan end, many)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			now := time.Now()
			var e struct {
				LeaseID string `json:"lease_id"`
			}
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				ends <- end{e.LeaseID, now}
			}
		}
		close(ends)
	}()
	time.Sleep(200 * time.Millisecond) // until the command follows
	c, err := w.local("bench")
	if err != nil {
		return err
	}
	defer c.Close()
	deadline := map[string]time.Time{}
	for i := range many {
		answer, err := c.ask(call("lease_credential", `{"credential":"`+credential(i%100)+`","ttl":"1s","purpose":"soon over","delivery":"value"}`))
		if err != nil {
			return err
		}
		_, after, _ := bytes.Cut(answer, []byte(`"expires_at":"`))
		text, _, _ := bytes.Cut(after, []byte(`"`))
		at, err := time.Parse(time.RFC3339Nano, string(text))
		if err != nil {
			return err
		}
		deadline[string(leaseOf(answer))] = at
		time.Sleep(time.Duration(10+rand.IntN(4)) * time.Millisecond) // no more than 100 at a time
	}
	var lates []float64
	early := 0
	for range many {
		select {
		case e, ok := <-ends:
			if !ok {
				return fmt.Errorf("the trail is no longer followed")
			}
			at, known := deadline[e.lease]
			if !known {
				return fmt.Errorf("%s ended, which was not lent", e.lease)
			}
			if e.at.Before(at) {
				early++
			}
			lates = append(lates, ms(e.at.Sub(at)))
		case <-time.After(20 * time.Second):
			return fmt.Errorf("only %d of %d leases ended", len(lates), many)
		}
	}
	if early > 0 {
		return fmt.Errorf("%d leases ended early", early)
	}
	slices.Sort(lates)
	r.atMost("expiry, late at p99", shipped, "until who follows the trail knows", "ms", 5, spread{lates[len(lates)*99/100], lates[0], lates[len(lates)-1]},
		"%d leases of 1 s one after the other; p50 %.2f ms; none early", many, lates[len(lates)/2])
	return nil
}

// atOnce has many leases end in the same instant: they were all lent while the clock stood still. It is the trail that
// says when the last of them was over.
func (r *run) atOnce() error {
	many := 100_000
	if r.short {
		many = 5000
	}
	rounds := min(r.rounds, 3)
	var lasted, late []float64
	for range rounds {
		err := r.within(func() error {
			began, ttl := time.Now(), 15*time.Second
			if r.short {
				ttl = 4 * time.Second
			}
			w, err := r.filled(100, many, ttl, func() time.Time { return began })
			if err != nil {
				return err
			}
			if err := w.serve(); err != nil {
				return err
			}
			end := began.Add(ttl)
			if time.Now().After(end) {
				return fmt.Errorf("lending %d leases took longer than %s", many, ttl)
			}
			time.Sleep(time.Until(end.Add(3 * time.Second)))
			if err := w.stop(); err != nil {
				return err
			}
			first, last, n, err := w.expired()
			if err != nil {
				return err
			}
			if n != many || first.Before(end) {
				return fmt.Errorf("%d of %d leases ended, the first %s after the deadline", n, many, first.Sub(end))
			}
			lasted = append(lasted, last.Sub(end).Seconds())
			late = append(late, ms(first.Sub(end)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	at := over(len(lasted), func(i int) float64 { return lasted[i] })
	r.atMost(fmt.Sprintf("%s leases ending at once", power(many)), shipped, "until the last is over, as the trail says", "s", 0.5, at, "the first %.2f ms late; none early", late[0])
	return nil
}

// expired reads from the trail when leases ran out.
func (w *world) expired() (first, last time.Time, n int, err error) {
	if err := w.serve(); err != nil {
		return first, last, 0, err
	}
	text, err := w.cli("audit", "--event", "lease.expired", "--json")
	if err != nil {
		return first, last, 0, err
	}
	var out struct {
		Entries []struct {
			Time time.Time `json:"time"`
		} `json:"entries"`
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return first, last, 0, err
	}
	for _, e := range out.Entries {
		if n++; first.IsZero() {
			first = e.Time
		}
		last = e.Time
	}
	return first, last, n, nil
}

// status is a line of /proc/PID/status, in KiB.
func status(pid int, name string) (kib int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := bytes.Cut(text, []byte("\n"+name+":"))
	_, _ = fmt.Sscan(string(after), &kib)
	return kib
}
