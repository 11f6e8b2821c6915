//go:build linux

package main

import (
	"fmt"
	"time"
)

// growth measures what an op costs while more and more is stored: in this process, and through the shipped daemon on
// the same kind of store. All the stores are open at once, and take turns.
func growth(r *run) error {
	live, credentials := []int{1_000, 100_000, 1_000_000}, []int{100, 100_000}
	if r.short {
		live, credentials = []int{100, 2000}, []int{10, 1000}
	}
	if err := r.grown("live leases", live, func(n int) (int, int) { return 100, n }); err != nil {
		return err
	}
	return r.grown("credentials", credentials, func(n int) (int, int) { return n, 100 })
}

func (r *run) grown(what string, sizes []int, of func(int) (credentials, live int)) error {
	return r.within(func() error {
		var inside, served []func(time.Duration) (sample, error)
		var houses []*house
		for _, n := range sizes {
			credentials, live := of(n)
			w, err := r.filled(credentials, live, 2*time.Hour, time.Now)
			if err != nil {
				return err
			}
			h, err := w.house(0)
			if err != nil {
				return err
			}
			houses = append(houses, h)
			inside = append(inside, h.turn(64, credentials))
		}
		got, err := r.turns(inside...)
		if err != nil {
			return err
		}
		r.flat(what, inProcess, sizes, got)
		for i, h := range houses { // then by the daemon, which wants them for itself
			credentials, _ := of(sizes[i])
			if err := h.close(); err != nil {
				return err
			}
			if err := h.w.serve(); err != nil {
				return err
			}
			c, err := h.w.local("bench")
			if err != nil {
				return err
			}
			defer c.Close()
			served = append(served, func(d time.Duration) (sample, error) {
				return c.run(64, d, lendAndGiveBack(64, credentials, true))
			})
		}
		if got, err = r.turns(served...); err != nil {
			return err
		}
		r.flat(what, shipped, sizes, got)
		return nil
	})
}

// flat holds the dearest size against the first.
func (r *run) flat(what, form string, sizes []int, got [][]sample) {
	detail := ""
	worst := spread{}
	for i := range sizes {
		detail += fmt.Sprintf(", %s: %s", power(sizes[i]), perSecond(got[i]))
		if s := times(got[0], got[i], rate); i > 0 && s.mid > worst.mid {
			worst = s
		}
	}
	r.atMost(fmt.Sprintf("cost of an op, %s → %s %s, 64 callers", power(sizes[0]), power(sizes[len(sizes)-1]), what), form, "over that with the fewest", "×", 1.25, worst, "%s", detail[2:])
}

// power writes 100000 as 10^5.
func power(n int) string {
	exp, rest := 0, n
	for rest%10 == 0 && rest > 0 {
		rest, exp = rest/10, exp+1
	}
	if rest == 1 && exp > 1 {
		return fmt.Sprintf("10^%d", exp)
	}
	return fmt.Sprint(n)
}
