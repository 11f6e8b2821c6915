//go:build linux

package promises

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkProxy calls the same service directly and through the shipped daemon, in turns: 1 caller for what a call takes
// longer, 64 for how many there are; of a service that answers at once, so that only what computing takes is seen, and of
// one that takes 5 ms, which is quick for those that keys are for. Client, service and daemon share the machine's cores.
// Only the ratios mean something: added-ms is the median of the proxied calls less that of the direct ones, of-direct the proxied calls per
// second over the direct ones.
func BenchmarkProxy(b *testing.B) {
	var takes atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if d := time.Duration(takes.Load()); d > 0 {
			time.Sleep(d)
		}
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
	bare, pid := bareProxy(b, up.URL)
	ways := [3][2]string{{up.URL, keyOf("svc")}, {lent.base, lent.handle}, {bare, keyOf("svc")}}
	for _, c := range []struct {
		callers int
		takes   time.Duration
	}{{1, 0}, {64, 0}, {1, 5 * time.Millisecond}, {64, 5 * time.Millisecond}} {
		b.Run(fmt.Sprintf("callers=%d/takes=%s", c.callers, c.takes), func(b *testing.B) {
			takes.Store(int64(c.takes))
			callers := c.callers
			var took [3]time.Duration
			var each [3][]time.Duration
			daemon, other := w.holder(), pid
			var cpu [2]time.Duration
			const turn = 1000
			for n := 0; n < b.N; n += turn {
				for i, way := range ways {
					before := [2]time.Duration{cpuOf(daemon), cpuOf(other)}
					times, all, err := calls(callers, turn, func() error { return ask(way[0], way[1]) })
					if err != nil {
						b.Fatal(err)
					}
					took[i] += all
					if i > 0 {
						cpu[i-1] += [2]time.Duration{cpuOf(daemon), cpuOf(other)}[i-1] - before[i-1]
					}
					each[i] = append(each[i], times...)
				}
			}
			slices.Sort(each[0])
			slices.Sort(each[1])
			slices.Sort(each[2])
			b.ReportMetric(float64(each[2][len(each[2])/2]-each[0][len(each[0])/2])/1e6, "bare-added-ms")
			median := func(i int) time.Duration { return each[i][len(each[i])/2] }
			b.ReportMetric(float64(median(1)-median(0))/1e6, "added-ms")
			b.ReportMetric(float64(took[0])/float64(took[1]), "of-direct")
			b.ReportMetric(float64(took[0])/float64(took[2]), "bare-of-direct")
			b.ReportMetric(float64(cpu[0].Microseconds())/float64(len(each[1])), "cpu-µs")
			b.ReportMetric(float64(cpu[1].Microseconds())/float64(len(each[2])), "bare-cpu-µs")
			b.ReportMetric(float64(len(each[1]))/took[1].Seconds(), "req/s")
		})
	}
}

// bareEnv makes this test binary a reverse proxy to the URL in it, of the standard library and nothing else.
const bareEnv = "PROMISES_BARE_PROXY"

func bareProxied() int {
	to, err := url.Parse(os.Getenv(bareEnv))
	if err != nil {
		return 1
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	fmt.Println("http://" + l.Addr().String())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	_ = http.Serve(l, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1,
		Transport: &http.Transport{MaxIdleConnsPerHost: 128}})
	return 1
}

// bareProxy starts one: what there is to compare with, as it takes a process between client and service too.
func bareProxy(b *testing.B, to string) (origin string, pid int) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), bareEnv+"="+to)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid
}

// cpuOf is how long a process has computed.
func cpuOf(pid int) time.Duration {
	var total time.Duration
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range tasks {
		text, _ := os.ReadFile(file)
		var ran time.Duration
		_, _ = fmt.Sscan(string(text), &ran)
		total += ran
	}
	return total
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
