//go:build linux

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// twoServers starts the daemon and the server with the tool that does nothing.
func (r *run) twoServers(credentials int) (w *world, token, noopAddr, noopSocket string, err error) {
	w, tokens, err := r.served(credentials, 1)
	if err != nil {
		return nil, "", "", "", err
	}
	noopSocket = filepath.Join(w.home, "noop.sock")
	noopAddr, _, err = r.again(noopEnv + "=" + noopSocket)
	return w, tokens[0], noopAddr, noopSocket, err
}

// protocol measures what an agent sees: lease_credential beside a tool that does nothing, through the same client.
// Leases are given back in between, so that limits hold; of these calls only the leasing is judged, by how long it took:
// the rate is that of 64 callers who did nothing else.
func protocol(r *run) error {
	return r.within(func() error {
		w, token, noopAddr, noopSocket, err := r.twoServers(100)
		if err != nil {
			return err
		}
		ours, err := r.agents(w.addr, 64, token)
		if err != nil {
			return err
		}
		theirs, err := r.agents(noopAddr, 64)
		if err != nil {
			return err
		}
		if err := r.overHTTP(ours, theirs, 64); err != nil {
			return err
		}
		if err := r.overHTTP(ours[:1], theirs[:1], 1); err != nil {
			return err
		}
		socket, err := w.local("bench")
		if err != nil {
			return err
		}
		defer socket.Close()
		plain, err := dialWire(noopSocket, "")
		if err != nil {
			return err
		}
		defer plain.Close()
		return r.overSocket(socket, plain)
	})
}

func (r *run) overHTTP(ours, theirs []*agent, callers int) error {
	got, err := r.turns(
		func(d time.Duration) (sample, error) {
			s, err := load(callers, d, leasing(ours))
			return busy(s, callers), err
		},
		func(d time.Duration) (sample, error) {
			return load(callers, d, one(func(i int) error { _, err := theirs[i].ask(noopCall); return err }))
		})
	if err != nil {
		return err
	}
	if callers == 1 {
		r.told("`lease_credential` over Streamable HTTP, 1 client, p50", shipped, "over a no-op tool", "×", times(got[0], got[1], median), "%s, no-op %s", took(join(got[0]).p(.5)), took(join(got[1]).p(.5)))
		return nil
	}
	r.atLeast("`lease_credential` over Streamable HTTP, 64 clients", shipped, "calls/s of a no-op tool's", "×", 0.6, times(got[0], got[1], rate), "%s, no-op %s; p50 %s, p99 %s, p99.9 %s", perSecond(got[0]), perSecond(got[1]), took(join(got[0]).p(.5)), took(join(got[0]).p(.99)), took(join(got[0]).p(.999)))
	return nil
}

// leasing leases, and gives back without counting it.
func leasing(agents []*agent) func(int, func(time.Duration)) error {
	return func(i int, note func(time.Duration)) error {
		began := time.Now()
		answer, err := agents[i].ask(leaseCall(credential(i)))
		note(time.Since(began))
		if err != nil {
			return err
		}
		id := leaseOf(answer)
		if id == nil {
			return errors.New("an answer without a lease")
		}
		_, err = agents[i].ask(releaseCall(id))
		return err
	}
}

// busy is s as it would have been if the callers had done nothing but what was timed.
func busy(s sample, callers int) sample {
	s.took = s.mean() * time.Duration(s.n) / time.Duration(callers)
	return s
}

func (r *run) overSocket(ours, theirs *wire) error {
	const depth = 64
	got, err := r.turns(
		func(d time.Duration) (sample, error) {
			s, err := ours.run(depth, d, lendAndGiveBack(depth, 100, false))
			return busy(s, depth), err
		},
		func(d time.Duration) (sample, error) {
			return theirs.run(depth, d, always(noopCall))
		})
	if err != nil {
		return err
	}
	r.atLeast("`lease_credential` over the local socket, 64 in flight", shipped, "calls/s of a no-op tool's", "×", 0.45, times(got[0], got[1], rate), "%s, no-op over mcp-go's stdio loop with 64 workers %s; p50 %s, p99 %s, p99.9 %s", perSecond(got[0]), perSecond(got[1]), took(join(got[0]).p(.5)), took(join(got[0]).p(.99)), took(join(got[0]).p(.999)))
	return nil
}

// listing measures the first page of many credentials.
func listing(r *run) error {
	return r.within(func() error {
		many := 10_000
		if r.short {
			many = 1000
		}
		w, token, noopAddr, noopSocket, err := r.twoServers(many)
		if err != nil {
			return err
		}
		ours, err := r.agents(w.addr, 1, token)
		if err != nil {
			return err
		}
		theirs, err := r.agents(noopAddr, 1)
		if err != nil {
			return err
		}
		ask := func(a *agent, body []byte) func(time.Duration) (sample, error) {
			return func(d time.Duration) (sample, error) {
				return load(1, d, one(func(int) error { _, err := a.ask(body); return err }))
			}
		}
		socket, err := w.local("bench")
		if err != nil {
			return err
		}
		defer socket.Close()
		plain, err := dialWire(noopSocket, "")
		if err != nil {
			return err
		}
		defer plain.Close()
		line := func(c *wire, body []byte) func(time.Duration) (sample, error) {
			return func(d time.Duration) (sample, error) {
				return c.run(1, d/2, always(body))
			}
		}
		what := fmt.Sprintf("`list_credentials`, %s credentials, first page, p50", power(many))
		got, err := r.turns(ask(ours[0], listCall), ask(theirs[0], noopCall), line(socket, listCall), line(plain, noopCall))
		if err != nil {
			return err
		}
		r.atMost(what, shipped, "over a no-op tool, HTTP", "×", 1.5, times(got[0], got[1], median), "%s, no-op %s", took(join(got[0]).p(.5)), took(join(got[1]).p(.5)))
		r.atMost(what, shipped, "over a no-op tool, local socket", "×", 1.5, times(got[2], got[3], median), "%s, no-op %s", took(join(got[2]).p(.5)), took(join(got[3]).p(.5)))
		return nil
	})
}
