package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnotherVersionsFolderIsSaidToBeOne(t *testing.T) {
	o := testOptions(t)
	mustClose(t, mustOpen(t, o))
	path := filepath.Join(o.Dir, keycheckName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(data, []byte(`"format": 3`), []byte(`"format": 2`), 1)
	if bytes.Equal(other, data) {
		t.Fatalf("no format in %s", data)
	}
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(o)
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "of format 2, and this version of keylease reads 3") {
		t.Errorf("got %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, other) {
		t.Errorf("it was changed: %v", err)
	}
}
