//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// run is one run of the benchmarks.
type run struct {
	short  bool
	rounds int           // how often the contestants of a row take turns
	turn   time.Duration // how long each turn is
	disk   string        // where the homes are made: the disk that is measured
	binary string        // the shipped binary
	self   string        // this program, which is the no-op server too
	rows   []row

	ctx context.Context // ends when the run is interrupted

	mu      sync.Mutex // guards what follows
	undo    []func()
	folders []string
}

// parts are the rows in the order of the table. Each measures one thing with whatever it is compared with beside it.
var parts = []struct {
	name string
	do   func(*run) error
}{
	{"engine", engine},
	{"growth", growth},
	{"protocol", protocol},
	{"list", listing},
	{"start", starting},
	{"expiry", expiry},
	{"proxy", proxying},
	{"idle", idling},
}

func main() {
	switch {
	case os.Getenv(noopEnv) != "":
		os.Exit(noop(os.Getenv(noopEnv)))
	case os.Getenv(upstreamEnv) != "":
		os.Exit(upstream())
	}
	if err := bench(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func bench() (err error) {
	r := &run{rounds: 7, turn: time.Second}
	r.interrupted()
	flag.BoolVar(&r.short, "short", false, "a minute, to see that all of it still works: its figures mean little")
	only := flag.String("only", "", "run only the parts whose name matches: engine, growth, protocol, list, start, expiry, proxy, idle")
	asJSON := flag.String("json", "", "write the results to this file as JSON; - for standard output")
	update := flag.String("update", "", "put the table between the markers of this file, as in docs/performance.md")
	flag.StringVar(&r.binary, "binary", "", "the keylease to measure (default: one that is built now)")
	flag.StringVar(&r.disk, "disk", os.TempDir(), "a folder on the disk to measure; not one in memory")
	cycles := flag.Int("cycles", 0, "instead of all that, lease and release so often and show what stays behind")
	flag.Parse()
	if flag.NArg() > 0 {
		return errors.New("it takes flags only")
	}
	if r.short {
		r.rounds, r.turn = 1, 200*time.Millisecond
	}
	parts, err := chosen(*only)
	if err != nil {
		return err
	}
	defer func() {
		r.clean(0)
		if r.ctx.Err() != nil {
			select {} // until interrupted has ended us
		}
	}()
	if err := r.prepare(); err != nil {
		return err
	}
	if *cycles > 0 {
		return r.cycle(*cycles)
	}
	began := time.Now()
	for _, p := range parts {
		at := time.Now()
		fmt.Fprintf(os.Stderr, "%s …", p)
		if err := partOf(p)(r); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(at).Seconds())
	}
	result := results{Machine: machine(r.disk), Began: began.UTC().Truncate(time.Second), Took: time.Since(began).Round(time.Second).String(), Short: r.short, Rows: r.rows}
	table := result.markdown()
	if *asJSON != "-" {
		fmt.Print(table)
	}
	if *asJSON != "" {
		text, _ := json.MarshalIndent(result, "", "  ")
		if err := put(*asJSON, append(text, '\n')); err != nil {
			return err
		}
	}
	if *update != "" {
		return rewrite(*update, table)
	}
	return nil
}

func chosen(only string) (names []string, err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	for _, p := range parts {
		if match.MatchString(p.name) {
			names = append(names, p.name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("--only %s: no part is called so", only)
	}
	return names, nil
}

func partOf(name string) func(*run) error {
	for _, p := range parts {
		if p.name == name {
			return p.do
		}
	}
	return nil
}

func put(path string, data []byte) error {
	if path == "-" {
		_, err := os.Stdout.Write(data)
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// prepare builds what is measured: stripped, as it is shipped.
func (r *run) prepare() (err error) {
	if r.self, err = os.Executable(); err != nil {
		return err
	}
	if r.binary != "" {
		r.binary, err = filepath.Abs(r.binary)
		return err
	}
	dir, err := r.folder()
	if err != nil {
		return err
	}
	r.binary = filepath.Join(dir, "keylease")
	return build(r.binary)
}

// folder makes a folder on the disk that is measured, which goes when the run ends. Its name is short: a socket's path
// has 100 bytes.
func (r *run) folder() (string, error) { return r.folderOn(r.disk) }

func (r *run) folderOn(disk string) (string, error) {
	dir, err := os.MkdirTemp(disk, "klb")
	if err == nil {
		r.later(func() { _ = os.RemoveAll(dir) })
		r.mu.Lock()
		r.folders = append(r.folders, dir)
		r.mu.Unlock()
	}
	return dir, err
}

// later has undo called when the part ends, or all of it.
func (r *run) later(undo func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.undo = append(r.undo, undo)
}

// begun is how much there is to be undone.
func (r *run) begun() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.undo)
}

// clean ends what was started and removes what was made since there was so much of it, the newest first.
func (r *run) clean(since int) {
	for {
		r.mu.Lock()
		if len(r.undo) <= since {
			r.mu.Unlock()
			return
		}
		last := r.undo[len(r.undo)-1]
		r.undo = r.undo[:len(r.undo)-1]
		r.mu.Unlock()
		last()
	}
}

// within runs do and then cleans up what do began, so that one part does not disturb the next.
func (r *run) within(do func() error) error {
	since := r.begun()
	defer r.clean(since)
	return do()
}

// interrupted cleans up when the run is ended from outside: daemons of it would stay.
func (r *run) interrupted() {
	ctx, cancel := context.WithCancel(context.Background())
	r.ctx = ctx
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		r.clean(0)
		time.Sleep(300 * time.Millisecond) // whoever wrote into a folder while it was removed has ended by now
		r.mu.Lock()
		for _, dir := range r.folders {
			_ = os.RemoveAll(dir)
		}
		os.Exit(130)
	}()
}
