//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// row is one line of the table.
type row struct {
	What   string  `json:"what"`
	Form   string  `json:"form"` // how keylease was driven
	Figure string  `json:"figure"`
	Unit   string  `json:"unit"` // "×": a ratio
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Target float64 `json:"target"`  // 0: there is none
	AtMost bool    `json:"at_most"` // the target is an upper bound
	Met    bool    `json:"met"`
	Detail string  `json:"detail"` // what keylease and what it was compared with did, in this run
}

const (
	shipped   = "shipped"
	inProcess = "in process"
)

// atLeast and atMost add a row.
func (r *run) atLeast(what, form, figure, unit string, target float64, got spread, detail string, a ...any) {
	r.add(row{What: what, Form: form, Figure: figure, Unit: unit, Target: target, Met: got.mid >= target}, got, detail, a)
}

func (r *run) atMost(what, form, figure, unit string, target float64, got spread, detail string, a ...any) {
	r.add(row{What: what, Form: form, Figure: figure, Unit: unit, Target: target, AtMost: true, Met: got.mid <= target}, got, detail, a)
}

// told adds a row that nothing was promised of.
func (r *run) told(what, form, figure, unit string, got spread, detail string, a ...any) {
	r.add(row{What: what, Form: form, Figure: figure, Unit: unit}, got, detail, a)
}

func (r *run) add(w row, got spread, detail string, a []any) {
	w.Median, w.Low, w.High, w.Detail = got.mid, got.low, got.high, fmt.Sprintf(detail, a...)
	r.rows = append(r.rows, w)
}

// results is all of a run.
type results struct {
	Machine string    `json:"machine"`
	Began   time.Time `json:"began"`
	Took    string    `json:"took"`
	Short   bool      `json:"short"`
	Rows    []row     `json:"rows"`
}

func (r results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, in %s, on %s.\n", r.Began.Format("2006-01-02 15:04 MST"), r.Took, r.Machine)
	if r.Short {
		b.WriteString("**A short run: it shows that the benchmarks work, its figures mean little.**\n")
	}
	b.WriteString("\n| what | keylease | figure | target | median | low – high | met | in this run |\n|---|---|---|---|---|---|---|---|\n")
	met, judged := map[string]int{}, map[string]int{}
	for _, w := range r.Rows {
		yes, sign := "**no**", "≥"
		if w.Met && w.Target > 0 {
			yes = "yes"
			met[w.Form]++
		}
		if w.AtMost {
			sign = "≤"
		}
		target := sign + " " + number(w.Target) + unit(w.Unit)
		if w.Target == 0 {
			target, yes = "", ""
		} else {
			judged[w.Form]++
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s – %s | %s | %s |\n", w.What, w.Form, w.Figure, target,
			number(w.Median)+unit(w.Unit), number(w.Low), number(w.High), yes, w.Detail)
	}
	fmt.Fprintf(&b, "\nMet with the shipped binary, which is what counts: %d of %d; in process: %d of %d.\n",
		met[shipped], judged[shipped], met[inProcess], judged[inProcess])
	return b.String()
}

func unit(u string) string {
	if u == "×" || u == "" {
		return u
	}
	return " " + u
}

// number prints three digits.
func number(f float64) string {
	switch {
	case f >= 100 || f <= -100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10 || f <= -10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0")
	}
	s := fmt.Sprintf("%.2f", f)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// short forms of durations and rates for details.
func took(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func perSecond(s []sample) string {
	f := join(s).rate()
	if f >= 10_000 {
		return fmt.Sprintf("%.1fk/s", f/1000)
	}
	return fmt.Sprintf("%.0f/s", f)
}

const (
	beginMarker = "<!-- bench: begin. go run ./bench --update writes what stands between -->"
	endMarker   = "<!-- bench: end -->"
)

// rewrite puts the table between the markers of a page.
func rewrite(path, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(beginMarker))
	_, after, ended := bytes.Cut(rest, []byte(endMarker))
	if !ok || !ended {
		return fmt.Errorf("%s has no place for the table: put the lines %q and %q there", path, beginMarker, endMarker)
	}
	return os.WriteFile(path, []byte(string(before)+beginMarker+"\n"+table+endMarker+string(after)), 0o644)
}

// machine says where a run was.
func machine(disk string) string {
	model, memory := "unknown processor", ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, after, _ := strings.Cut(string(text), "model name")
		after, _, _ = strings.Cut(after, "\n")
		if after = strings.Trim(after, "\t :"); after != "" {
			model = after
		}
	}
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		memory = fmt.Sprintf(", %d GiB of memory", uint64(info.Totalram)*uint64(info.Unit)>>30)
	}
	var fs syscall.Statfs_t
	kind := "an unknown file system"
	if syscall.Statfs(disk, &fs) == nil {
		kind = map[int64]string{0xef53: "ext4", 0x58465342: "XFS", 0x9123683e: "btrfs", 0x01021994: "tmpfs, which is no disk", 0x794c7630: "overlayfs"}[int64(fs.Type)]
		if kind == "" {
			kind = fmt.Sprintf("file system %#x", fs.Type)
		}
	}
	var name syscall.Utsname
	kernel := ""
	if syscall.Uname(&name) == nil {
		for _, c := range name.Release {
			if c == 0 {
				break
			}
			kernel += string(rune(c))
		}
		kernel, _, _ = strings.Cut(kernel, "-")
		kernel = ", Linux " + kernel
	}
	return fmt.Sprintf("%d cores of %s%s, %s%s, %s; %s", runtime.NumCPU(), model, memory, kind, kernel, runtime.Version(), libraries())
}

// libraries are those of which the figures depend.
func libraries() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "libraries unknown"
	}
	var found []string
	for _, d := range info.Deps {
		for _, one := range []struct{ path, name string }{{"github.com/dgraph-io/badger/v4", "Badger"}, {"github.com/mark3labs/mcp-go", "mcp-go"}} {
			if d.Path == one.path {
				found = append(found, one.name+" "+d.Version)
			}
		}
	}
	return strings.Join(found, ", ")
}
