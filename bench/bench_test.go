//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestARowIsJudgedByTheMedianOfItsRounds(t *testing.T) {
	var r run
	r.atLeast("calls", shipped, "of the others'", "×", 0.5, over(3, func(i int) float64 { return []float64{0.9, 0.4, 0.6}[i] }), "%d rounds", 3)
	r.atMost("time", shipped, "late", "ms", 5, over(3, func(i int) float64 { return []float64{1, 9, 7}[i] }), "")
	r.atMost("bytes", inProcess, "of each", "KB", 2, exactly(1), "")
	r.told("size", inProcess, "of it", "MB", exactly(123.4), "")
	table := results{Rows: r.rows}.markdown()
	for _, want := range []string{
		"| calls | shipped | of the others' | ≥ 0.5× | 0.6× | 0.4 – 0.9 | yes | 3 rounds |",
		"| time | shipped | late | ≤ 5 ms | 7 ms | 1 – 9 | **no** |  |",
		"| size | in process | of it |  | 123 MB | 123 – 123 |  |  |",
		"Met with the shipped binary, which is what counts: 1 of 2; in process: 1 of 1.",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
}

func TestOnlyWhatStandsBetweenTheMarkersIsRewritten(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + beginMarker + "\nold\n" + endMarker + "\nafter\n")
	if err := rewrite(page, "new\n"); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(page)
	if want := "before\n" + beginMarker + "\nnew\n" + endMarker + "\nafter\n"; string(text) != want {
		t.Errorf("%q", text)
	}
	write("no place\n")
	if err := rewrite(page, "new\n"); err == nil {
		t.Error("a page without markers was written")
	}
	real, err := os.ReadFile(filepath.Join("..", "docs", "performance.md"))
	if err != nil || !strings.Contains(string(real), beginMarker) || !strings.Contains(string(real), endMarker) {
		t.Errorf("docs/performance.md has no place for the table: %v", err)
	}
}

func TestContestantsTakeTurns(t *testing.T) {
	r := run{rounds: 3, turn: time.Millisecond}
	order := ""
	contestant := func(name string) func(time.Duration) (sample, error) {
		return func(time.Duration) (sample, error) {
			order += name
			return sample{n: 1, took: time.Second, each: []time.Duration{time.Second}}, nil
		}
	}
	got, err := r.turns(contestant("a"), contestant("b"))
	if err != nil || order != "abbaabba" { // the first pair warms up
		t.Errorf("%s, %v", order, err)
	}
	if len(got[0]) != 3 || len(got[1]) != 3 {
		t.Errorf("%d and %d rounds", len(got[0]), len(got[1]))
	}
}
