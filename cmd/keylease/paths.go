package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// configFile returns the path of keylease.yaml. Naming a folder means the file in it.
func configFile(named, home string) (string, error) {
	if named == "" {
		return filepath.Join(home, ".config", "keylease", "keylease.yaml"), nil
	}
	path, err := absolute(named)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return filepath.Join(path, "keylease.yaml"), nil
	}
	return path, nil
}

// resolve makes a path absolute: ~/ is home, and all else is relative to base. Without a base it must be absolute:
// nothing is looked up in the working directory unless it was typed on the command line.
func resolve(path, home, base string) (string, error) {
	switch {
	case path == "" || filepath.IsAbs(path):
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(home, path[2:])
	case base == "":
		return "", errors.New("the path must be absolute or begin with ~/")
	default:
		path = filepath.Join(base, path)
	}
	if path == "" {
		return "", nil
	}
	return filepath.Clean(path), nil
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding out the working directory: %w", err)
	}
	return abs, nil
}

func defaultData(home string) string { return filepath.Join(home, ".local", "share", "keylease") }
