package lease

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/policy"
	"keylease/store"
)

// benchWorld is a Broker by the real clock with creds credentials and live leases of many agents.
func benchWorld(b *testing.B, creds, live int) *world {
	w := &world{t: b, dir: b.TempDir()}
	s, err := store.Open(store.Options{Dir: filepath.Join(w.dir, "data"), AnchorDir: filepath.Join(w.dir, "config"),
		RootKey: make([]byte, 32), KeySource: "test", Create: true, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	w.store = s
	w.policy = benchPolicy
	w.Broker, err = Open(context.Background(), Config{Store: s, PolicyFile: w.readPolicy, Log: zerolog.Nop(), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	together(64, creds, func(i int) { w.put(fmt.Sprintf("cred-%06d", i), "sk-fake", policy.CredentialPolicy{}) })
	together(512, live, func(i int) {
		if _, err := w.Lease(context.Background(), benchAgent(i%1000), Request{Credential: fmt.Sprintf("cred-%06d", i%creds), TTL: time.Hour}); err != nil {
			b.Error(err)
		}
	})
	return w
}

const benchPolicy = `version: 1
limits: {leaseRate: 0}
rules:
  - {name: all, identities: ["*"], credentials: ["*"], maxLeaseTTL: 8h}
`

func benchAgent(i int) identity.Caller { return benchAgents[i] }

var benchAgents = func() (all [1000]identity.Caller) {
	for i := range all {
		all[i] = identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: fmt.Sprintf("agent-%d", i), By: fmt.Sprintf("uid:%d", 1000+i)},
			Transport: "http", UID: "1000"}
	}
	return all
}()

// together has n calls made by at goroutines.
func together(at, n int, fn func(int)) {
	var all sync.WaitGroup
	for c := range at {
		all.Go(func() {
			for i := c; i < n; i += at {
				fn(i)
			}
		})
	}
	all.Wait()
}

// BenchmarkLeaseAndRelease measures two durable changes with all that decides about them. An op is a change, so two
// of the loop's.
func BenchmarkLeaseAndRelease(b *testing.B) {
	for _, c := range []struct{ callers, creds, live int }{
		{1, 100, 1000}, {64, 100, 1000}, {64, 100, 100_000}, {64, 10_000, 1000},
	} {
		b.Run(fmt.Sprintf("callers=%d/creds=%d/live=%d", c.callers, c.creds, c.live), func(b *testing.B) {
			w := benchWorld(b, c.creds, c.live)
			names := slices.Clone(w.ix.names)
			b.ReportAllocs()
			b.ResetTimer()
			together(c.callers, b.N/2, func(i int) {
				who := benchAgent(i % 1000)
				g, err := w.Lease(context.Background(), who, Request{Credential: names[i%c.creds], Purpose: "bench"})
				if err == nil {
					_, err = w.Release(context.Background(), who, g.LeaseID)
				}
				if err != nil {
					b.Error(err)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
		})
	}
}
