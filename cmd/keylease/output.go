package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"keylease/internal/lease"
	"keylease/internal/ttl"
)

// print writes v as one JSON object with --json, and otherwise has people write for people.
func (a *app) print(v any, people func(w io.Writer)) error {
	if !a.json {
		people(a.out)
		return nil
	}
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table writes rows in columns under head; empty says what an empty one means.
func table(w io.Writer, empty, head string, rows [][]string) {
	if len(rows) == 0 {
		fmt.Fprintln(w, empty)
		return
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, row := range rows {
		for i := range row {
			if row[i] = terminal(row[i]); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	_ = t.Flush()
}

// terminal makes text of unknown origin fit to print: what could move a cursor or turn text around becomes U+FFFD.
func terminal(s string) string { return lease.CleanText(s, 4096) }

// pairs writes k=v for all that has a value, quoted where it holds spaces.
func pairs(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		switch v := m[k]; {
		case v == "":
		case strings.ContainsAny(v, " \"\t\n"):
			out = append(out, k+"="+strconv.Quote(v))
		default:
			out = append(out, k+"="+v)
		}
	}
	return strings.Join(out, " ")
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// left says how long it is until t, for people.
func left(t, now time.Time) string {
	if !now.Before(t) {
		return "over"
	}
	return "in " + ttl.Format(t.Sub(now).Round(time.Second))
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
