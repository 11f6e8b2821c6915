// Command openbao measures an OpenBao server beside keylease, where its binary is at hand:
//
//	go run ./bench/openbao --bao /path/to/bao
//
// It starts the server on loopback with a store of its own (integrated storage, which syncs, and an audit log in a file)
// in a folder that goes afterwards, and does what comes nearest to a lease: create a token, read a secret with it. That
// is one operation here. Then it makes many tokens that live, and shows the memory. keylease is started on the same disk
// and does the same over Streamable HTTP: lease a credential, with the value in the answer. The two take turns.
//
// None of OpenBao's code is in here: only its HTTP API is spoken. KEYLEASE_BENCH_BAO names the binary too.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "openbao: error:", err)
		os.Exit(1)
	}
}

// plan is what a run does.
type plan struct {
	bao, keylease, disk string
	turn                time.Duration
	rounds, leases      int
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var p plan
	f := flag.NewFlagSet("openbao", flag.ContinueOnError)
	f.StringVar(&p.bao, "bao", os.Getenv("KEYLEASE_BENCH_BAO"), "the OpenBao `binary`")
	f.StringVar(&p.keylease, "keylease", "", "the keylease `binary` (default: one that is built now)")
	f.StringVar(&p.disk, "disk", os.TempDir(), "a `folder` on the disk to measure")
	f.DurationVar(&p.turn, "turn", 5*time.Second, "how long each turn is")
	f.IntVar(&p.rounds, "rounds", 3, "how often they take turns")
	f.IntVar(&p.leases, "leases", 100_000, "how many live when memory is measured")
	if err := f.Parse(args); err != nil {
		return err
	}
	if p.bao == "" {
		return errors.New("give the path of the OpenBao binary: --bao, or KEYLEASE_BENCH_BAO")
	}
	home, err := os.MkdirTemp(p.disk, "klo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	if p.keylease == "" {
		p.keylease = filepath.Join(home, "keylease")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", p.keylease, "keylease/cmd/keylease")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building keylease: %w: %s", err, text)
		}
	}
	b, err := startBao(ctx, p.bao, filepath.Join(home, "bao"))
	if err != nil {
		return fmt.Errorf("starting OpenBao: %w", err)
	}
	defer b.stop()
	k, err := startKeylease(ctx, p.keylease, filepath.Join(home, "kl"))
	if err != nil {
		return fmt.Errorf("starting keylease: %w", err)
	}
	defer k.stop()
	return p.compare(ctx, out, b, k)
}

// server is one of the two.
type server interface {
	lend(ctx context.Context) error // one operation
	memory() int                    // resident, in KiB; 0 where that can't be told
}

func (p plan) compare(ctx context.Context, out io.Writer, b, k server) error {
	fmt.Fprint(out, "| callers | OpenBao | keylease | keylease over OpenBao |\n|---|---|---|---|\n")
	for _, callers := range []int{1, 64} {
		var ratios []float64
		var theirs, ours []string
		for range p.rounds {
			t, err := load(ctx, callers, p.turn, b.lend)
			if err != nil {
				return fmt.Errorf("OpenBao: %w", err)
			}
			o, err := load(ctx, callers, p.turn, k.lend)
			if err != nil {
				return fmt.Errorf("keylease: %w", err)
			}
			ratios, theirs, ours = append(ratios, o.rate/t.rate), append(theirs, t.String()), append(ours, o.String())
		}
		slices.Sort(ratios)
		fmt.Fprintf(out, "| %d | %s | %s | %.1f× (%.1f – %.1f) |\n", callers, theirs[len(theirs)/2], ours[len(ours)/2], ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
	}
	for _, s := range []server{b, k} {
		var left atomic.Int64
		left.Store(int64(p.leases))
		if _, err := load(ctx, 64, time.Hour, func(ctx context.Context) error {
			if left.Add(-1) < 0 {
				return errEnough
			}
			return s.lend(ctx)
		}); err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	theirs, ours := b.memory(), k.memory()
	fmt.Fprintf(out, "\nResident with these and %d more that live: OpenBao %d MB, keylease %d MB, %.2f of it.\n", p.leases, theirs>>10, ours>>10, float64(ours)/float64(max(theirs, 1)))
	return nil
}

var errEnough = errors.New("enough")

// measured is what one contestant did in one turn.
type measured struct {
	rate     float64
	p50, p99 time.Duration
}

func (m measured) String() string {
	return fmt.Sprintf("%.0f/s, p50 %.1f ms, p99 %.1f ms", m.rate, m.p50.Seconds()*1e3, m.p99.Seconds()*1e3)
}

// load has so many callers do it again and again for d. The error is the first that one of them had.
func load(ctx context.Context, callers int, d time.Duration, do func(context.Context) error) (m measured, err error) {
	each, errs := make([][]time.Duration, callers), make([]error, callers)
	var all sync.WaitGroup
	began := time.Now()
	for i := range callers {
		all.Go(func() {
			for time.Since(began) < d && errs[i] == nil {
				at := time.Now()
				if errs[i] = do(ctx); errs[i] == nil {
					each[i] = append(each[i], time.Since(at))
				}
			}
		})
	}
	all.Wait()
	took := slices.Concat(each...)
	for _, e := range errs {
		if e != nil {
			return m, e
		}
	}
	if len(took) == 0 {
		return m, errors.New("nothing was done")
	}
	slices.Sort(took)
	return measured{float64(len(took)) / time.Since(began).Seconds(), took[len(took)/2], took[len(took)*99/100]}, nil
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}

// ask sends JSON and reads JSON. Its errors do not repeat the headers, in which tokens are.
func ask(ctx context.Context, method, url string, in, out any, headers ...string) (http.Header, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: HTTP %d: %.300s", method, r.URL.Path, res.StatusCode, text)
	}
	if _, after, ok := strings.Cut(string(text), "data: "); ok && strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		line, _, _ := strings.Cut(after, "\n")
		text = []byte(line)
	}
	if out != nil {
		err = json.Unmarshal(text, out)
	}
	return res.Header, err
}

// process is a server's, with what it says.
type process struct {
	*exec.Cmd
	log    *lines
	exited chan struct{}
}

func start(cmd *exec.Cmd) (*process, error) {
	p := &process{Cmd: cmd, log: &lines{}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait(); close(p.exited) }()
	return p, nil
}

func (p *process) stop() { _ = p.Process.Kill(); <-p.exited }

// memory is what /proc says.
func (p *process) memory() (kib int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	_, after, _ := strings.Cut(string(text), "\nVmRSS:")
	_, _ = fmt.Sscan(after, &kib)
	return kib
}

// until waits for what check finds.
func (p *process) until(ctx context.Context, check func() bool) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.exited:
			return fmt.Errorf("it ended: %s", p.log)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if check() {
			return nil
		}
	}
	return fmt.Errorf("it does not come up: %s", p.log)
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()[max(0, l.buf.Len()-2000):]
}
