//go:build linux

package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// engine measures durable changes: leases and releases, each of which is one.
func engine(r *run) error {
	return r.within(func() error {
		disk, err := r.appended()
		if err != nil {
			return err
		}
		raw, err := r.rawLog()
		if err != nil {
			return err
		}
		mutexed, err := r.mutexed()
		if err != nil {
			return err
		}
		inside, err := r.world()
		if err != nil {
			return err
		}
		h, err := inside.house(100)
		if err != nil {
			return err
		}
		w, tokens, err := r.served(100, 20)
		if err != nil {
			return err
		}
		socket, err := w.local("bench")
		if err != nil {
			return err
		}
		defer socket.Close()
		over := func(depth int) func(time.Duration) (sample, error) {
			return func(d time.Duration) (sample, error) {
				return socket.run(depth, d, lendAndGiveBack(depth, 100, true))
			}
		}
		if err := r.lone(disk, h.turn(1, 100), over(1)); err != nil {
			return err
		}
		if err := r.many(raw.turn(64), h.turn(64, 100), over(64), mutexed(64)); err != nil {
			return err
		}
		if err := r.allocations(h); err != nil {
			return err
		}
		agents, err := r.agents(w.addr, 1000, tokens...)
		if err != nil {
			return err
		}
		crowd := webTurn(agents, 100)
		got, err := r.turns(raw.turn(1000), h.turn(1000, 100), crowd)
		if err != nil {
			return err
		}
		r.atLeast("engine, 1,000 callers", shipped, "op/s of the raw log's", "×", 0.4, times(got[2], got[0], rate), "%s over HTTP, raw in-place log %s", perSecond(got[2]), perSecond(got[0]))
		r.atLeast("engine, 1,000 callers", inProcess, "op/s of the raw log's", "×", 0.4, times(got[1], got[0], rate), "%s, p99 %s", perSecond(got[1]), took(join(got[1]).p(.99)))
		return nil
	})
}

// served is a world with so many credentials whose daemon runs, and tokens for it.
func (r *run) served(credentials, tokens int) (*world, []string, error) {
	w, err := r.world()
	if err != nil {
		return nil, nil, err
	}
	if err := w.serve(); err != nil {
		return nil, nil, err
	}
	items := make([]string, credentials)
	for i := range items {
		items[i] = fakeKey(credential(i))
	}
	if err := w.seed(items...); err != nil {
		return nil, nil, err
	}
	var all []string
	for i := range tokens {
		token, err := w.token(fmt.Sprintf("web-%d", i))
		if err != nil {
			return nil, nil, err
		}
		all = append(all, token)
	}
	return w, all, nil
}

// webTurn has every agent lease and give back over HTTP, both counted.
func webTurn(agents []*agent, credentials int) func(time.Duration) (sample, error) {
	n := make([]int, len(agents))
	return func(d time.Duration) (sample, error) {
		return load(len(agents), d, func(i int, note func(time.Duration)) error {
			n[i]++
			began := time.Now()
			answer, err := agents[i].ask(leaseCall(credential((n[i] + i) % credentials)))
			if err != nil {
				return err
			}
			lent := time.Now()
			note(lent.Sub(began))
			id := leaseOf(answer)
			if id == nil {
				return errors.New("an answer without a lease")
			}
			_, err = agents[i].ask(releaseCall(id))
			note(time.Since(lent))
			return err
		})
	}
}

func (r *run) lone(contestants ...func(time.Duration) (sample, error)) error {
	got, err := r.turns(contestants...)
	if err != nil {
		return err
	}
	raw := join(got[0]).p(.5)
	r.atMost("engine, 1 caller, p50", shipped, "over append 512 B + fdatasync", "×", 1.3, times(got[2], got[0], median), "%s over the socket, append and sync %s", took(join(got[2]).p(.5)), took(raw))
	r.atMost("engine, 1 caller, p50", inProcess, "over append 512 B + fdatasync", "×", 1.3, times(got[1], got[0], median), "%s, append and sync %s", took(join(got[1]).p(.5)), took(raw))
	return nil
}

func (r *run) many(contestants ...func(time.Duration) (sample, error)) error {
	got, err := r.turns(contestants...)
	if err != nil {
		return err
	}
	raw, inside, socket, mutexed := got[0], got[1], got[2], got[3]
	for _, c := range []struct {
		form string
		s    []sample
	}{{shipped, socket}, {inProcess, inside}} {
		r.atLeast("engine, 64 callers", c.form, "op/s of the raw log's", "×", 0.45, times(c.s, raw, rate), "%s, raw in-place log %s", perSecond(c.s), perSecond(raw))
		r.atLeast("engine, 64 callers", c.form, "op/s of a transaction per request behind a mutex", "×", 15, times(c.s, mutexed, rate), "%s, Badger behind a mutex %s", perSecond(c.s), perSecond(mutexed))
		r.atMost("engine, 64 callers, p99", c.form, "duration", "ms", 5, over(len(c.s), func(i int) float64 { return ms(c.s[i].p(.99)) }), "p50 %s, p99.9 %s", took(join(c.s).p(.5)), took(join(c.s).p(.999)))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// allocations counts those of 64 callers in this process, of whom each does what a tool does.
func (r *run) allocations(h *house) error {
	turn := h.turn(64, 100)
	if _, err := turn(r.turn / 4); err != nil {
		return err
	}
	var count, size []float64
	for range r.rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := turn(r.turn)
		if err != nil {
			return err
		}
		runtime.ReadMemStats(&after)
		count = append(count, float64(after.Mallocs-before.Mallocs)/float64(s.n))
		size = append(size, float64(after.TotalAlloc-before.TotalAlloc)/float64(s.n)/1024)
	}
	r.atMost("engine, allocations", inProcess, "for each op", "", 12, over(len(count), func(i int) float64 { return count[i] }), "all of the process, 64 callers; the tools and the transport come on top")
	r.atMost("engine, bytes allocated", inProcess, "for each op", "KB", 2, over(len(size), func(i int) float64 { return size[i] }), "the same")
	return nil
}
