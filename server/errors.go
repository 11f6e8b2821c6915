package server

import (
	"errors"
	"fmt"
)

var (
	// ErrUntrusted: somebody else may be at the other end; nothing was sent.
	ErrUntrusted = errors.New("the path to the daemon cannot be trusted")
	// ErrUnreachable: no daemon listens, and none was to be started.
	ErrUnreachable = errors.New("no daemon is listening")
	// ErrNotOpen: the socket's mode, or that of a folder above it, keeps this user out.
	ErrNotOpen = errors.New("this socket is not open")
	// ErrUnsupported: this system lacks what the daemon needs to know who connects.
	ErrUnsupported = errors.New("the keylease daemon does not run on this system: it needs Linux or macOS")
)

// RunningError: another daemon has the data folder and does not give it up.
type RunningError struct {
	PID     int // 0: not known
	Auto    bool
	Version string
}

func (e *RunningError) Error() string {
	if e.PID == 0 {
		return "another keylease daemon is using this data folder"
	}
	return fmt.Sprintf("a keylease daemon is running already (process %d)", e.PID)
}

// PortError: somebody else listens on the address for HTTP.
type PortError struct {
	Addr string
	Err  error
}

func (e *PortError) Error() string {
	return fmt.Sprintf("the address %s is in use by another program", e.Addr)
}
func (e *PortError) Unwrap() error { return e.Err }

// StartError: the daemon was started and did not come up.
type StartError struct {
	Code     int    // its exit code; -1: it is still there and says nothing
	LastLine string // the last that it wrote to its log
}

func (e *StartError) Error() string {
	if e.LastLine == "" {
		return fmt.Sprintf("the keylease daemon did not start (exit code %d) and left nothing in its log", e.Code)
	}
	return "the keylease daemon did not start: " + e.LastLine
}
