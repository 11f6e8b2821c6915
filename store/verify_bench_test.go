package store

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// BenchmarkVerify measures recomputing a trail of 100,000 leases in full groups, per event, beside the least that could
// be done with the same bytes: open each group and hash each Entry. The two alternate in one run; x-plain is the ratio.
func BenchmarkVerify(b *testing.B) {
	const n = 100_000
	s := mustOpen(b, testOptions(b))
	var last *Pending
	for i := range n {
		last = s.Submit(leaseCreated(i))
		if i%8192 == 0 {
			if _, err := last.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if _, err := last.Wait(); err != nil {
		b.Fatal(err)
	}
	var verify, plain time.Duration
	for b.Loop() {
		begun := time.Now()
		if r, err := s.Verify(b.Context(), ""); err != nil || r.Entries != n {
			b.Fatalf("%+v, %v", r, err)
		}
		verify += time.Since(begun)
		begun = time.Now()
		if got := s.openAndHash(b); got != n {
			b.Fatalf("%d events", got)
		}
		plain += time.Since(begun)
	}
	events := float64(b.N) * n
	b.ReportMetric(float64(verify.Nanoseconds())/events, "ns/event")
	b.ReportMetric(float64(plain.Nanoseconds())/events, "plain-ns/event")
	b.ReportMetric(float64(verify)/float64(plain), "x-plain")
}

// openAndHash is what no verification can do without.
func (s *Store) openAndHash(b *testing.B) (n int) {
	r := groupReader{keys: s.keys}
	err := s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupPrefix()})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			err := it.Item().Value(func(value []byte) error {
				g, err := r.open(groupSeq(it.Item().Key()), value)
				for range g.count {
					entry, err := g.next()
					if err != nil {
						return err
					}
					sha256.Sum256(entry)
					n++
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
