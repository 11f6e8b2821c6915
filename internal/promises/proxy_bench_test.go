//go:build linux

package promises

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkProxy calls the same service directly and through the shipped daemon, in turns: 1 caller for what a call takes
// longer, 64 for how many there are. Client, service and daemon share the machine's cores. Only the ratios mean
// something: added-ms is the median of the proxied calls less that of the direct ones, of-direct the proxied calls per
// second over the direct ones.
func BenchmarkProxy(b *testing.B) {
	up := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, answerOfAModel)
	}))
	defer up.Close()
	w := newWorld(b)
	w.write(w.policyFile(), strings.Replace(openPolicy, "leaseRate: 0", "leaseRate: 0, useRate: 0", 1))
	w.seed(proxied("svc", up.URL, ""))
	lent := borrow(b, w.agent("bench"), "svc")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}
	ask := func(base, key string) error {
		r, _ := http.NewRequest("POST", base+"/v1/chat/completions", strings.NewReader(`{"model":"fake","messages":[{"role":"user","content":"hello"}]}`))
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Content-Type", "application/json")
		res, err := client.Do(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		if err == nil && (res.StatusCode != 200 || n != int64(len(answerOfAModel))) {
			err = fmt.Errorf("status %d, %d bytes", res.StatusCode, n)
		}
		return err
	}
	ways := [2][2]string{{up.URL, keyOf("svc")}, {lent.base, lent.handle}}
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d", callers), func(b *testing.B) {
			var took [2]time.Duration
			var each [2][]time.Duration
			const turn = 1000
			for n := 0; n < b.N; n += turn {
				for i, way := range ways {
					times, all, err := calls(callers, turn, func() error { return ask(way[0], way[1]) })
					if err != nil {
						b.Fatal(err)
					}
					took[i] += all
					each[i] = append(each[i], times...)
				}
			}
			slices.Sort(each[0])
			slices.Sort(each[1])
			median := func(i int) time.Duration { return each[i][len(each[i])/2] }
			b.ReportMetric(float64(median(1)-median(0))/1e6, "added-ms")
			b.ReportMetric(float64(took[0])/float64(took[1]), "of-direct")
			b.ReportMetric(float64(len(each[1]))/took[1].Seconds(), "req/s")
		})
	}
}

// calls makes n calls from so many callers, and returns how long each and all took.
func calls(callers, n int, do func() error) (each []time.Duration, all time.Duration, err error) {
	type done struct {
		times []time.Duration
		err   error
	}
	out := make(chan done, callers)
	start := time.Now()
	for range callers {
		go func() {
			var d done
			for range max(n/callers, 1) {
				began := time.Now()
				if d.err = do(); d.err != nil {
					break
				}
				d.times = append(d.times, time.Since(began))
			}
			out <- d
		}()
	}
	for range callers {
		d := <-out
		each = append(each, d.times...)
		if d.err != nil {
			err = d.err
		}
	}
	return each, time.Since(start), err
}

var answerOfAModel = `{"id":"chatcmpl-fake","object":"chat.completion","model":"fake","choices":[{"index":0,"message":{"role":"assistant","content":"` +
	strings.Repeat("A sentence that a model could have written. ", 40) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":400}}`
