//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"
)

// upstreamEnv makes this program the service behind the proxy ("service"), or a reverse proxy of the standard library
// and nothing else (a URL): what there is to compare with, as it takes a process between client and service too.
const upstreamEnv = "KEYLEASE_BENCH_UPSTREAM"

func upstream() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return failed(err)
	}
	handler := http.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == slowPath {
			time.Sleep(5 * time.Millisecond)
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, answerOfAModel)
	}))
	if to := os.Getenv(upstreamEnv); to != "service" {
		at, err := url.Parse(to)
		if err != nil {
			return failed(err)
		}
		handler = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(at) }, FlushInterval: -1,
			Transport: &http.Transport{MaxIdleConnsPerHost: 128}}
	}
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	fmt.Println(l.Addr())
	return failed(http.Serve(l, handler))
}

const (
	quickPath = "/v1/chat/completions"
	slowPath  = "/slow/v1/chat/completions" // takes 5 ms, which is quick for the services that keys are for
)

var answerOfAModel = `{"id":"chatcmpl-fake","object":"chat.completion","model":"fake","choices":[{"index":0,"message":{"role":"assistant","content":"` +
	strings.Repeat("A sentence that a model could have written. ", 40) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":400}}`

var question = []byte(`{"model":"fake","messages":[{"role":"user","content":"hello"}]}`)

// proxying calls the same service directly and through the daemon: one that answers at once, so that only what computing
// takes is seen, and one that takes 5 ms. It has a process of its own, and so has Go's own reverse proxy, which stands
// beside for what any process between client and service takes. They all share the machine's cores.
func proxying(r *run) error {
	return r.within(func() error {
		service, _, err := r.again(upstreamEnv + "=service")
		if err != nil {
			return err
		}
		bare, _, err := r.again(upstreamEnv + "=http://" + service)
		if err != nil {
			return err
		}
		w, err := r.world()
		if err != nil {
			return err
		}
		if err := w.serve(); err != nil {
			return err
		}
		const key = "sk-fake-0123456789abcdef-bench"
		err = w.seed(`name: svc, type: api-key, value: ` + key + `, upstream: {url: "http://` + service + `", header: "Authorization: Bearer {value}", allow: ["* /**"]}`)
		if err != nil {
			return err
		}
		base, handle, err := w.borrow("svc")
		if err != nil {
			return err
		}
		at, under, _ := strings.Cut(strings.TrimPrefix(base, "http://"), "/")
		if under != "" {
			under = "/" + under
		}
		ways := [3]struct{ addr, under, key string }{{service, "", key}, {at, under, handle}, {bare, "", key}}
		for _, c := range []struct {
			callers  int
			path, of string
		}{{1, quickPath, "answers at once"}, {1, slowPath, "takes 5 ms"}, {64, quickPath, "answers at once"}, {64, slowPath, "takes 5 ms"}} {
			var contestants []func(time.Duration) (sample, error)
			for _, way := range ways {
				ask, err := r.asking(way.addr, way.under+c.path, way.key, c.callers)
				if err != nil {
					return err
				}
				contestants = append(contestants, ask)
			}
			got, err := r.turns(contestants...)
			if err != nil {
				return err
			}
			r.proxied(c.callers, c.of, got[0], got[1], got[2])
		}
		return nil
	})
}

func (r *run) proxied(callers int, of string, direct, through, bare []sample) {
	added := func(s []sample) spread {
		return over(len(s), func(i int) float64 { return ms(s[i].p(.5) - direct[i].p(.5)) })
	}
	if callers == 1 {
		r.atMost("proxy, 1 caller, p50, of a service that "+of, shipped, "added to a direct call", "ms", 0.3, added(through), "%s, direct %s; Go's own reverse proxy adds %.2f ms",
			took(join(through).p(.5)), took(join(direct).p(.5)), added(bare).mid)
		return
	}
	r.atLeast("proxy, 64 callers, masking on, of a service that "+of, shipped, "req/s of direct calls'", "×", 0.5, times(through, direct, rate), "%s, direct %s; Go's own reverse proxy %.2f×; p50 %s, p99 %s",
		perSecond(through), perSecond(direct), times(bare, direct, rate).mid, took(join(through).p(.5)), took(join(through).p(.99)))
}

// asking is so many callers who ask the service, or what stands before it.
func (r *run) asking(addr, path, key string, callers int) (func(time.Duration) (sample, error), error) {
	all := make([]*web, callers)
	for i := range all {
		c, err := dialWeb(addr)
		if err != nil {
			return nil, err
		}
		r.later(c.Close)
		c.headed(addr, path, "Authorization", "Bearer "+key)
		all[i] = c
	}
	return func(d time.Duration) (sample, error) {
		return load(callers, d, one(func(i int) error {
			_, body, err := all[i].post(question)
			if err == nil && len(body) != len(answerOfAModel) {
				err = fmt.Errorf("%d bytes instead of %d", len(body), len(answerOfAModel))
			}
			return err
		}))
	}, nil
}

// borrow leases by proxy, for as long as w's daemon lives.
func (w *world) borrow(name string) (base, handle string, err error) {
	c, err := w.local("bench")
	if err != nil {
		return "", "", err
	}
	w.r.later(c.Close)
	answer, err := c.ask(call("lease_credential", `{"credential":"`+name+`","purpose":"bench","delivery":"proxy"}`))
	if err != nil {
		return "", "", err
	}
	var out struct {
		Result struct {
			Structured struct {
				Use struct {
					BaseURL string `json:"base_url"`
					APIKey  string `json:"api_key"`
				} `json:"use"`
			} `json:"structuredContent"`
		} `json:"result"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(answer), &out); err != nil {
		return "", "", err
	}
	use := out.Result.Structured.Use
	if use.BaseURL == "" || use.APIKey == "" {
		return "", "", fmt.Errorf("no lease by proxy")
	}
	return use.BaseURL, use.APIKey, nil
}
