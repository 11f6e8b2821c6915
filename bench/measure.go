//go:build linux

package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// sample is what one contestant did in one turn.
type sample struct {
	n    int             // operations
	took time.Duration   // by all of them together
	each []time.Duration // and by each, sorted
}

func (s sample) rate() float64 { return float64(s.n) / s.took.Seconds() }

// p is the quantile q of how long an operation took.
func (s sample) p(q float64) time.Duration {
	if len(s.each) == 0 {
		return 0
	}
	return s.each[min(int(float64(len(s.each))*q), len(s.each)-1)]
}

func (s sample) mean() time.Duration {
	var sum time.Duration
	for _, d := range s.each {
		sum += d
	}
	return sum / time.Duration(max(len(s.each), 1))
}

// join is several turns of one contestant as one.
func join(all []sample) (sum sample) {
	for _, s := range all {
		sum.n, sum.took = sum.n+s.n, sum.took+s.took
		sum.each = append(sum.each, s.each...)
	}
	slices.Sort(sum.each)
	return sum
}

// load has so many callers call do, each again as soon as it has its answer, for d. do gets the caller's number and says
// how many operations it was.
func load(callers int, d time.Duration, do func(caller int, note func(time.Duration)) error) (sample, error) {
	each, errs := make([][]time.Duration, callers), make([]error, callers)
	for i := range each {
		each[i] = make([]time.Duration, 0, 1<<12)
	}
	var all sync.WaitGroup
	began := time.Now()
	until := began.Add(d)
	for i := range callers {
		all.Go(func() {
			note := func(d time.Duration) { each[i] = append(each[i], d) }
			for errs[i] == nil && time.Now().Before(until) {
				errs[i] = do(i, note)
			}
		})
	}
	all.Wait()
	s := sample{took: time.Since(began), each: slices.Concat(each...)}
	s.n = len(s.each)
	slices.Sort(s.each)
	for _, err := range errs {
		if err != nil {
			return s, err
		}
	}
	if s.n == 0 {
		return s, fmt.Errorf("nothing was done in %s", d)
	}
	return s, nil
}

// one is load's do for a single operation.
func one(do func(caller int) error) func(int, func(time.Duration)) error {
	return func(caller int, note func(time.Duration)) error {
		began := time.Now()
		err := do(caller)
		note(time.Since(began))
		return err
	}
}

// turns lets the contestants take turns, and begins each round with another one. The first round warms up and is
// forgotten, unless the run is short.
func (r *run) turns(contestants ...func(d time.Duration) (sample, error)) ([][]sample, error) {
	out := make([][]sample, len(contestants))
	warm := 1
	if r.short {
		warm = 0
	}
	for round := range r.rounds + warm {
		for i := range contestants {
			i = (i + round) % len(contestants)
			d := r.turn
			if round < warm {
				d /= 2
			}
			s, err := contestants[i](d)
			if err != nil {
				return nil, err
			}
			if round >= warm {
				out[i] = append(out[i], s)
			}
		}
	}
	return out, nil
}

// spread is a figure of several rounds.
type spread struct{ mid, low, high float64 }

// over takes a figure in each round.
func over(rounds int, figure func(round int) float64) spread {
	all := make([]float64, rounds)
	for i := range all {
		all[i] = figure(i)
	}
	slices.Sort(all)
	return spread{all[len(all)/2], all[0], all[len(all)-1]}
}

// times is a/b of each round.
func times(a, b []sample, figure func(sample) float64) spread {
	return over(min(len(a), len(b)), func(i int) float64 { return figure(a[i]) / figure(b[i]) })
}

func median(s sample) float64 { return float64(s.p(0.5)) }
func rate(s sample) float64   { return s.rate() }
