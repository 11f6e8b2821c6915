package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The hello is the first line each way on the local socket; it says which protocol follows:
//
//	relay, CLI → {"keylease":1,"kind":"mcp","version":"…","token":"…","as":"…","client_name":"…","client_version":"…"}
//	daemon     → {"keylease":1,"ok":true,"version":"…","pid":…,"auto":true}
//	           | {"keylease":1,"ok":false,"error":{"code":"…","message":"…"}}
//
// After "mcp" come JSON-RPC lines; after "exec" those of exec.go; after "admin" plain HTTP/1.1; "handover" asks an auto-started daemon to stop, and
// the connection ends when it has.
const (
	helloVersion = 1
	maxHello     = 8 << 10
	helloTime    = 5 * time.Second

	kindMCP      = "mcp"
	kindAdmin    = "admin"
	kindHandover = "handover"
)

type hello struct {
	Keylease      int    `json:"keylease"`
	Kind          string `json:"kind"`
	Version       string `json:"version"`
	Token         string `json:"token,omitempty"`
	As            string `json:"as,omitempty"`
	ClientName    string `json:"client_name,omitempty"`
	ClientVersion string `json:"client_version,omitempty"`
	Session       string `json:"session,omitempty"` // that an earlier control line named: it goes on, if it is the same caller's
}

type helloAnswer struct {
	Keylease int         `json:"keylease"`
	OK       bool        `json:"ok"`
	Version  string      `json:"version,omitempty"`
	PID      int         `json:"pid,omitempty"`
	Auto     bool        `json:"auto,omitempty"`
	BadToken bool        `json:"bad_token,omitempty"` // every call on this connection will be unauthenticated
	Error    *HelloError `json:"error,omitempty"`
}

// HelloError is why the daemon would not talk.
type HelloError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *HelloError) Error() string { return e.Message }

// control is a line of the daemon's to its relays, between those of the protocol. Read is how many lines it has taken
// from this connection: what came after them had no effect.
type control struct {
	Keylease string `json:"keylease"` // "idle": come back when your client speaks; "stop": come back
	Read     uint64 `json:"read"`
	Session  string `json:"session,omitempty"`
}

const (
	controlIdle = "idle"
	controlStop = "stop"
)

// readHello reads what the connection is for. The error is for the peer to read.
func readHello(conn net.Conn, r *bufio.Reader) (hello, error) {
	var h hello
	if err := conn.SetReadDeadline(time.Now().Add(helloTime)); err != nil {
		return h, err
	}
	line, err := readLine(r, maxHello)
	switch {
	case errors.Is(err, errLineTooLong):
		return h, &HelloError{"invalid_argument", fmt.Sprintf("the hello line is longer than %d bytes", maxHello)}
	case err != nil:
		return h, err
	case strictJSON(line) != nil || json.Unmarshal(line, &h) != nil:
		return h, &HelloError{"invalid_argument", "the first line is not a keylease hello"}
	case h.Keylease != helloVersion:
		return h, &HelloError{"invalid_argument", fmt.Sprintf("this daemon speaks version %d of the local protocol only", helloVersion)}
	}
	return h, conn.SetReadDeadline(time.Time{})
}

// sayHello opens the conversation from our side. What the daemon sends after its answer is left in r.
func sayHello(conn net.Conn, r *bufio.Reader, h hello) (helloAnswer, error) {
	h.Keylease = helloVersion
	var a helloAnswer
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return a, err
	}
	_, told := conn.Write(append(mustJSON(h), '\n'))
	line, err := readLine(r, maxHello) // a daemon that refuses who we are closes without reading, but says so
	if err != nil && told != nil {
		return a, fmt.Errorf("saying hello to the daemon: %w", told)
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return a, fmt.Errorf("reading the daemon's hello: %w", err)
	}
	if err := json.Unmarshal(line, &a); err != nil || a.Keylease != helloVersion {
		return a, errors.New("the daemon's hello was not understood")
	}
	if !a.OK {
		if a.Error == nil {
			a.Error = &HelloError{"internal", "the daemon refused without a reason"}
		}
		return a, a.Error
	}
	return a, conn.SetDeadline(time.Time{})
}

// readConn is a connection whose first bytes are in r already.
type readConn struct {
	net.Conn
	r *bufio.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.r.Read(p) }
