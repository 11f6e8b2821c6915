package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkSubmit measures durable changes by 1 and 64 callers, and in the same run what the disk itself can do:
// append 512 B and sync, one at a time. Only the ratios mean anything beyond this machine.
func BenchmarkSubmit(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := mustOpen(b, testOptions(b))
			for i := range 64 {
				record(b, s, leaseCreated(i))
			}
			raw := rawAppend(b)
			b.ReportAllocs()
			b.ResetTimer()
			took := make([][]time.Duration, callers)
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for i := c; i < b.N; i += callers {
						begun := time.Now()
						if _, err := s.Submit(leaseCreated(i)).Wait(); err != nil {
							b.Error(err)
						}
						took[c] = append(took[c], time.Since(begun))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			times := slices.Concat(took...)
			slices.Sort(times)
			p50, p99 := times[len(times)/2], times[len(times)*99/100]
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
			b.ReportMetric(float64(p50.Microseconds()), "p50-µs")
			b.ReportMetric(float64(p99.Microseconds()), "p99-µs")
			b.ReportMetric(float64(p50)/float64(raw), "p50/raw")
			b.ReportMetric(float64(b.N)*raw.Seconds()/b.Elapsed().Seconds(), "op/s/raw")
		})
	}
}

// rawAppend is the median time to append 512 B to a file and sync it.
func rawAppend(b *testing.B) time.Duration {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := bytes.Repeat([]byte{'x'}, 512)
	times := make([]time.Duration, 1000)
	for i := range times {
		begun := time.Now()
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := dataSync(f); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(begun)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkRead measures reading the trail back, per event.
func BenchmarkRead(b *testing.B) {
	s := mustOpen(b, testOptions(b))
	const n = 100_000
	for i := range n {
		s.Submit(leaseCreated(i))
	}
	record(b, s, leaseCreated(n))
	b.ResetTimer()
	for b.Loop() {
		if err := s.Entries(b.Context(), 0, func(*Entry) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(n+1), "ns/event")
}
