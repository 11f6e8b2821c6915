package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"keylease/internal/seedfile"
	"keylease/policy"
)

// TestTheSeedFilesInTheDocsAreUnderstood: so is a documented seed file.
func TestTheSeedFilesInTheDocsAreUnderstood(t *testing.T) {
	text, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n# seed.yaml\n(.*?)```").FindAllSubmatch(text, -1)
	for _, block := range blocks {
		if _, err := seedfile.Parse("seed.yaml", block[1]); err != nil {
			t.Errorf("%v in\n%s", err, block[1])
		}
	}
	if len(blocks) != 1 {
		t.Errorf("the docs hold %d", len(blocks))
	}
}

// TestTheConfigurationsInTheDocsAreUnderstood: a documented configuration that is refused is a fault of the docs.
func TestTheConfigurationsInTheDocsAreUnderstood(t *testing.T) {
	text, err := os.ReadFile("../../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	home, seen := t.TempDir(), map[string]int{}
	for _, block := range regexp.MustCompile("(?s)```yaml\n# (\\S+)\n(.*?)```").FindAllSubmatch(text, -1) {
		name := string(block[1])
		seen[name]++
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, block[2], 0o600); err != nil {
			t.Fatal(err)
		}
		switch name {
		case "policy.yaml":
			_, err = policy.Parse(file, block[2])
		case "keylease.yaml":
			a := &app{env: func(string) string { return home }, environ: func() []string { return nil }, flags: flags{config: file}}
			_, err = a.settings(false)
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, block[2])
		}
	}
	if seen["policy.yaml"] != 1 || seen["keylease.yaml"] != 5 {
		t.Errorf("the docs hold %v", seen)
	}
}
