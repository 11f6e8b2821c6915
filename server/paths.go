package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Paths is where one keylease lives. All are absolute.
type Paths struct {
	Data   string // folder: store/, lock, start.lock, daemon.log, and the socket unless it is elsewhere
	Config string // folder
	Socket string // "": keylease.sock in Data
}

// MaxSocketPath is how long a socket's path may be: the kernels take 104 to 108 bytes.
const MaxSocketPath = 100

// SocketPath returns where the daemon of this data folder listens. A path that is too long for a socket moves to a
// folder of our own under /tmp, with a name that two data folders do not share.
func (p Paths) SocketPath() string {
	path := p.Socket
	if path == "" {
		path = filepath.Join(p.Data, "keylease.sock")
	}
	if len(path) <= MaxSocketPath {
		return path
	}
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf("/tmp/keylease-%d/%s.sock", os.Geteuid(), hex.EncodeToString(sum[:8]))
}

func (p Paths) lock() string      { return filepath.Join(p.Data, "lock") }
func (p Paths) startLock() string { return filepath.Join(p.Data, "start.lock") }
func (p Paths) daemonLog() string { return filepath.Join(p.Data, "daemon.log") }

// ownFolder makes dir where it is missing, and reports ErrUntrusted unless it is a folder of ours that nobody else
// may enter. Whoever can write in it could put a socket of his own there.
func ownFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder %s: %w", dir, err)
	}
	return checkFolder(dir)
}

func checkFolder(dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("looking at the folder %s: %w", dir, err)
	case !info.IsDir():
		return fmt.Errorf("%w: %s is not a folder", ErrUntrusted, dir)
	case ownerOf(info) != os.Geteuid():
		return fmt.Errorf("%w: the folder %s belongs to uid %d, not %d", ErrUntrusted, dir, ownerOf(info), os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%w: the folder %s is open to others (mode %04o): chmod 700 it", ErrUntrusted, dir, info.Mode().Perm())
	}
	return nil
}

// socketOwner returns whose process has to be behind the socket at path: ours or, where the operator's word named the
// socket, that of the daemon of a system. Errors: see checkSocket.
func socketOwner(path string, named bool) (int, error) {
	info, err := os.Lstat(path)
	if !named {
		return os.Geteuid(), checkSocket(path)
	}
	if err == nil && ownerOf(info) == os.Geteuid() && checkSocket(path) == nil {
		return os.Geteuid(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking at the socket %s: %w", path, err)
	}
	owner := ownerOf(info)
	if info.Mode().Type() != fs.ModeSocket {
		return 0, fmt.Errorf("%w: %s is not a socket", ErrUntrusted, path)
	}
	if err := onlyRootAnd(owner, path); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return owner, nil
}

// checkSocket reports why nothing may be sent to the socket at path: fs.ErrNotExist where there is none, ErrUntrusted
// where somebody else may have put it there.
func checkSocket(path string) error {
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return fmt.Errorf("looking at the socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: %s is not a socket", ErrUntrusted, path)
	case ownerOf(info) != os.Geteuid():
		return fmt.Errorf("%w: the socket %s belongs to uid %d, not %d", ErrUntrusted, path, ownerOf(info), os.Geteuid())
	}
	return nil
}

// lockNote is what the lock's holder wrote into it, for people and for whoever wants to take over. It decides nothing.
type lockNote struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Auto    bool   `json:"auto"`
}

// errHeld: another process has the lock.
var errHeld = errors.New("held by another process")

// takeLock opens path and takes its lock, trying for at most wait. The file is never removed: a lock on a file that
// somebody else can replace locks nothing.
func takeLock(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock %s: %w", path, err)
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		err := tryLock(f)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, ErrUnsupported) || time.Now().After(deadline) {
			_ = f.Close()
			if errors.Is(err, ErrUnsupported) {
				return nil, err
			}
			return nil, fmt.Errorf("locking %s: %w", path, errHeld)
		}
	}
}

// sign writes who holds the lock into it.
func (n lockNote) sign(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(append(mustJSON(n), '\n'), 0)
	return err
}

func readLockNote(path string) lockNote {
	var n lockNote
	if b, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(b, &n) // half written or empty: nothing is known of the holder
	}
	return n
}
