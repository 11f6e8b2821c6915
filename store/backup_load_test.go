package store

import (
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Writers wait at most 25 ms longer while a backup is made, and its memory does not grow with the store. Windows with
// and without a backup alternate, so that they are of one machine in one mood; the short form judges no times.
func TestWritersHardlyNoticeABackup(t *testing.T) {
	events, rounds, window := 20_000, 3, 150*time.Millisecond
	full := os.Getenv("KEYLEASE_TEST_FULL") != ""
	if full {
		events, rounds, window = 1_000_000, 5, 3*time.Second
	}
	s := mustOpen(t, testOptions(t))
	for n := 0; n < events; {
		pending := make([]*Pending, 0, maxGroup)
		for range maxGroup {
			pending = append(pending, s.Submit(leaseCreated(n)))
			n++
		}
		for _, p := range pending {
			if _, err := p.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	times := func(busy bool) (took []time.Duration) {
		var over atomic.Bool
		var others sync.WaitGroup
		var mu sync.Mutex
		for range 8 {
			others.Go(func() {
				var own []time.Duration
				for !over.Load() {
					begin := time.Now()
					if _, err := s.Submit(leaseCreated(1)).Wait(); err != nil {
						t.Error(err)
						return
					}
					own = append(own, time.Since(begin))
				}
				mu.Lock()
				took = append(took, own...)
				mu.Unlock()
			})
		}
		for begin := time.Now(); time.Since(begin) < window; {
			if !busy {
				time.Sleep(window / 10)
				continue
			}
			if _, err := s.Backup(t.Context(), io.Discard); err != nil {
				t.Error(err)
			}
		}
		over.Store(true)
		others.Wait()
		return took
	}
	var quiet, busy []time.Duration
	for range rounds {
		quiet, busy = append(quiet, times(false)...), append(busy, times(true)...)
	}
	at := func(d []time.Duration, of float64) time.Duration {
		slices.Sort(d)
		return d[int(float64(len(d)-1)*of)]
	}
	t.Logf("p50 %s, while a backup is made %s; p99 %s and %s; worst %s and %s", at(quiet, 0.5), at(busy, 0.5),
		at(quiet, 0.99), at(busy, 0.99), at(quiet, 1), at(busy, 1))
	if more := at(busy, 0.99) - at(quiet, 0.99); full && more > 25*time.Millisecond { // on a machine that does nothing else
		t.Errorf("p99 is %s longer while a backup is made", more)
	}
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	begin := time.Now()
	b, err := s.Backup(t.Context(), writerFunc(func(p []byte) (int, error) {
		runtime.ReadMemStats(&during)
		peak = max(peak, during.HeapInuse)
		return len(p), nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %s; the heap grew by %d KiB at most", b.Bytes, time.Since(begin), int64(peak-min(peak, before.HeapInuse))>>10)
	if peak > before.HeapInuse+32<<20 {
		t.Errorf("the heap grew by %d MiB", (peak-before.HeapInuse)>>20)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
