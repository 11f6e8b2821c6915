package child

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// File writes the value to a file that only this user can read, in a folder of its own that lies in memory, and returns
// its path. runtime is XDG_RUNTIME_DIR, or "". remove takes both away; what a SIGKILL leaves stays until the machine is
// restarted. A file system in memory can still be swapped out.
func File(runtime string, value []byte) (path string, remove func(), err error) {
	var faults []string
	for _, base := range []string{runtime, "/dev/shm"} {
		if !filepath.IsAbs(base) {
			continue
		}
		if err := inMemory(base); err != nil {
			faults = append(faults, err.Error())
			continue
		}
		dir, err := os.MkdirTemp(base, "keylease-") // 0700
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		remove := func() { _ = os.RemoveAll(dir) }
		if path, err = write(dir, value); err != nil {
			remove()
			return "", nil, err
		}
		return path, remove, nil
	}
	return "", nil, errors.New("there is no place in memory for the file: " + strings.Join(faults, "; "))
}

func write(dir string, value []byte) (string, error) {
	path := filepath.Join(dir, "value")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("making the file: %w", err)
	}
	_, err = f.Write(value)
	if err = errors.Join(err, f.Chmod(0o600), f.Close()); err != nil {
		return "", fmt.Errorf("writing the file: %w", err)
	}
	return path, nil
}
