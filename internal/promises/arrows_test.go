package promises

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// room is what a package is to the house: the lower may not know of the higher.
//
//	cmd ─► server ─► tools ─► internal/lease ─► policy, store ─► pure rooms
//
// The conformance stack and the benchmarks stand beside cmd: they may use what cmd may, and nothing may use them, so that
// no release holds them.
func room(pkg string) int {
	switch pkg {
	case "keylease/cmd/keylease", "keylease/e2e/conformance", "keylease/bench", "keylease/bench/openbao":
		return 6
	case "keylease/server":
		return 5
	case "keylease/tools":
		return 4
	case "keylease/internal/lease":
		return 3
	case "keylease/internal/seedfile", "keylease/internal/federation": // pure, in words of policy
		return 2
	case "keylease/policy", "keylease/store":
		return 1
	}
	return 0
}

// homes says in which rooms alone a third party, or a part of Go, may be used.
var homes = []struct {
	prefix string
	rooms  []string
}{
	{"github.com/mark3labs/mcp-go", []string{"keylease/tools", "keylease/server", "keylease/e2e/conformance", "keylease/bench"}},
	{"github.com/dgraph-io/badger", []string{"keylease/store", "keylease/bench"}}, // there as the baseline
	{"github.com/dgraph-io/ristretto", []string{"keylease/store"}},
	{"crypto/aes", []string{"keylease/store"}},
	{"crypto/cipher", []string{"keylease/store"}},
	{"crypto/ed25519", []string{"keylease/store"}},
	{"crypto/hkdf", []string{"keylease/store"}},
	{"github.com/coreos/go-oidc", []string{"keylease/internal/federation"}},
	{"github.com/go-jose", []string{"keylease/internal/federation", "keylease/internal/issuertest"}},
	{"golang.org/x/crypto", []string{"keylease/internal/passphrase"}},
	{"github.com/knadh/koanf", []string{"keylease/cmd/keylease"}},
	{"github.com/creack/pty", []string{"keylease/internal/child"}},
	{"github.com/spf13/", []string{"keylease/cmd/keylease"}},
	{"gopkg.in/yaml", []string{"keylease/internal/strictyaml"}},
	{"go.yaml.in/yaml", []string{"keylease/internal/strictyaml"}},
	{"github.com/rs/zerolog/log", nil}, // a global logger
}

// TestTheHouse: every import arrow points down, and every third party lives in its one room.
func TestTheHouse(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "keylease/...")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &complaint)
	}
	seen := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; seen++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, to := range p.Imports {
			if strings.HasPrefix(to, "keylease/") && room(to) >= room(p.ImportPath) && room(to)+room(p.ImportPath) > 0 {
				t.Errorf("%s imports %s: the arrow points up", p.ImportPath, to)
			}
			for _, h := range homes {
				if strings.HasPrefix(to, h.prefix) && !slices.Contains(h.rooms, p.ImportPath) {
					t.Errorf("%s imports %s, which lives in %v alone", p.ImportPath, to, h.rooms)
				}
			}
		}
	}
	if seen < 8 {
		t.Fatalf("only %d packages: this test looks in the wrong place", seen)
	}
}

// TestFilesFitAScreenOrSayWhy: no file of the program is longer than 400 lines without saying why.
func TestFilesFitAScreenOrSayWhy(t *testing.T) {
	root, seen := filepath.Join("..", ".."), 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		seen++
		text, err := os.ReadFile(path)
		if n := bytes.Count(text, []byte("\n")); n > 400 && !bytes.Contains(text, []byte("\n// Longer than 400 lines because ")) {
			t.Errorf("%s has %d lines and no line that begins with: // Longer than 400 lines because", path, n)
		}
		return err
	})
	if err != nil || seen < 50 {
		t.Fatalf("%d files, %v", seen, err)
	}
}
