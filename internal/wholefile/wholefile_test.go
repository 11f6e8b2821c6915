package wholefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func write(text string) func(*os.File) error {
	return func(f *os.File) error { _, err := f.WriteString(text); return err }
}

// alone wants path to hold text, and nothing beside it.
func alone(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Errorf("%q, %v", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestANewFileIsWholeAndReplacesNothing(t *testing.T) {
	for name, make := range map[string]func(string, func(*os.File) error) error{"New": New, "NewAnywhere": NewAnywhere} {
		path := filepath.Join(t.TempDir(), "f")
		full := errors.New("the disk is full")
		err := make(path, func(f *os.File) error { _, _ = f.WriteString("ha"); return full })
		if names, _ := os.ReadDir(filepath.Dir(path)); !errors.Is(err, full) || len(names) != 0 {
			t.Errorf("%s: %v, and %v was left", name, err, names)
		}
		if err := make(path, write("one")); err != nil {
			t.Fatal(err)
		}
		if err := make(path, write("two")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s over a file: %v", name, err)
		}
		alone(t, path, "one", 0o600)
	}
}

func TestReplacePutsTheWholeInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"a longer text", "short"} {
		if err := Replace(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		alone(t, path, text, 0o640)
	}
	if err := os.Mkdir(path+".d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path+".d", nil, 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	_ = os.Remove(path + ".d")
	alone(t, path, "short", 0o640)
}
