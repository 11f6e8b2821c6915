package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"keylease/internal/lease"
)

// ExecOptions is how a command finds the daemon and who it is to it.
type ExecOptions struct {
	Dial  DialOptions
	As    string // the name that it declares; "": local
	Token string // proves who it is; never downgraded to a name
	// Approval is told of a question that a person has to answer first, and says how long to wait for that.
	Approval func(ExecApproval) time.Duration
}

// ApprovalError: nobody answered while somebody waited. The question stands: whoever asks the same comes back to it.
type ApprovalError struct{ ExecApproval }

func (e *ApprovalError) Error() string { return "nobody has agreed to " + e.ID + " yet" }

var errNotUnderstood = errors.New("the daemon's answer was not understood")

const (
	againTime  = 10 * time.Second // how long a daemon that just goes is waited out at the beginning
	resumeTime = 50 * time.Second // how long the next one is looked for later: a lease waits 60 s for whoever held it, unless configured otherwise
	byeTime    = 2 * time.Second  // for the daemon to write down how a command ended
)

// Exec is one command's hold on a lease. The daemon renews the lease meanwhile; where the daemon goes the next one is
// found or started, and the lease goes on.
type Exec struct {
	ExecGrant
	Value []byte // the caller wipes it

	o       ExecOptions
	program string
	until   time.Time // how long to begin anew when the daemon goes
	ended   chan string
	ctx     context.Context
	cancel  context.CancelFunc

	mu   sync.Mutex // guards conn, and writes to it
	conn net.Conn   // nil: between two daemons
	over chan struct{}
}

// BeginExec asks for the value. Errors: a *lease.Refusal, or those of Dial.
func BeginExec(ctx context.Context, o ExecOptions, q ExecRequest) (*Exec, error) {
	e := &Exec{o: o, program: q.Program, ended: make(chan string, 1), over: make(chan struct{})}
	e.until = time.Now().Add(againTime)
	for {
		lines, err := e.ask(ctx, q, true)
		if err == nil {
			e.conn = lines.conn
			e.ctx, e.cancel = context.WithCancel(context.Background())
			go e.follow(lines)
			return e, nil
		}
		if !gone(err) || time.Now().After(e.until) || ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ask says one begin and returns what follows the grant. keep: what was granted is taken.
func (e *Exec) ask(ctx context.Context, q ExecRequest, keep bool) (*execLines, error) {
	conn, err := Dial(ctx, e.o.Dial)
	if err != nil {
		return nil, err
	}
	lines := &execLines{conn: conn}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // whoever waits for a person may give up
	err = e.askOn(lines, q, keep)
	lines.wipe()
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return lines, nil
}

func (e *Exec) askOn(lines *execLines, q ExecRequest, keep bool) error {
	conn := lines.conn
	h := hello{Kind: kindExec, Version: e.o.Dial.Version, Token: e.o.Token, As: e.o.As}
	if _, err := sayHello(conn, bufio.NewReaderSize(conn, 16), h); err != nil { // nothing follows until we ask
		return err
	}
	if _, err := conn.Write(append(mustJSON(execSaid{Begin: &q}), '\n')); err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(startTime))
	line, err := lines.next()
	if approval := waitsFor(line); err == nil && approval != nil {
		e.until = approval.ExpiresAt
		patience := min(e.o.Approval(*approval), time.Until(approval.ExpiresAt))
		_ = conn.SetReadDeadline(time.Now().Add(patience + time.Second)) // it answers when the question is over, too
		line, err = lines.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return &ApprovalError{*approval}
		}
	}
	if err != nil {
		return fmt.Errorf("reading the daemon's answer: %w", err)
	}
	head, value, granted := cutValue(line)
	if r := refusal(head); r != nil {
		return r
	}
	var told execTold
	if json.Unmarshal(head, &told) != nil || told.Granted == nil || !granted {
		if told.Keylease == controlStop {
			return io.ErrUnexpectedEOF
		}
		return errNotUnderstood
	}
	if keep {
		e.ExecGrant = *told.Granted
		e.Value = make([]byte, base64.StdEncoding.DecodedLen(len(value)))
		n, err := base64.StdEncoding.Decode(e.Value, value)
		if err != nil {
			return errNotUnderstood
		}
		e.Value = e.Value[:n]
	}
	return conn.SetDeadline(time.Time{})
}

// cutValue takes a grant's line apart: what a decoder may read, and the value. It is the last of the members of that
// name: metadata may have one too.
func cutValue(line []byte) (head, value []byte, granted bool) {
	const key = `,"value":"`
	at := bytes.LastIndex(line, []byte(key))
	if at < 0 {
		return line, nil, false
	}
	return append(bytes.Clone(line[:at]), '}'), bytes.TrimSuffix(line[at+len(key):], []byte(`"}`)), true
}

func waitsFor(line []byte) *ExecApproval {
	var told execTold
	if !bytes.HasPrefix(line, []byte(`{"approval_required":`)) || json.Unmarshal(line, &told) != nil {
		return nil
	}
	return told.Approval
}

// Ended gives, at most once, why the command is to be stopped: its lease is over.
func (e *Exec) Ended() <-chan string { return e.ended }

// Stopping says that the command was told to stop.
func (e *Exec) Stopping() { e.say(execSaid{Stopping: true}) }

// Exit says that the command has ended. When it returns the daemon has written that down and released a lease that was
// opened for the command; it waits for that 2 s at most.
func (e *Exec) Exit(code int) {
	if e.say(execSaid{Exit: &code}) {
		select {
		case <-e.over:
		case <-time.After(byeTime):
		}
	}
	e.cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn != nil {
		_ = e.conn.Close()
	}
}

func (e *Exec) say(s execSaid) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return false
	}
	if s.Exit != nil {
		e.cancel() // the connection's end is the answer
	}
	_ = e.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := e.conn.Write(append(mustJSON(s), '\n'))
	return err == nil
}

// follow reads what the daemon says, and finds the next daemon when it goes.
func (e *Exec) follow(lines *execLines) {
	defer close(e.over)
	for {
		line, err := lines.next()
		var told execTold
		if err == nil && json.Unmarshal(line, &told) == nil && told.Ended != "" {
			e.ended <- told.Ended
			return
		}
		if err == nil && told.Keylease == "" {
			continue
		}
		e.mu.Lock()
		_ = e.conn.Close()
		e.conn = nil
		e.mu.Unlock()
		if e.ctx.Err() != nil {
			return
		}
		if lines, err = e.resume(); err != nil {
			if e.ctx.Err() == nil {
				e.ended <- err.Error()
			}
			return
		}
		e.mu.Lock()
		e.conn = lines.conn
		e.mu.Unlock()
	}
}

// resume comes back to the lease at the next daemon.
func (e *Exec) resume() (*execLines, error) {
	ctx, cancel := context.WithTimeout(e.ctx, resumeTime)
	defer cancel()
	q := ExecRequest{LeaseID: e.LeaseID, Program: e.program, Opened: e.Opened}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		lines, err := e.ask(ctx, q, false)
		if err == nil {
			return lines, nil
		}
		if r := lease.AsRefusal(err); r != nil && r.Code != lease.Unavailable && r.Code != lease.RateLimited {
			return nil, errors.New("keylease was restarted and the lease does not go on: " + r.Message)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("keylease is gone, and the lease with it: %w", err)
		case <-time.After(pause):
		}
	}
}

func reset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// execLines reads lines into a buffer of its own, which can be wiped: one of them holds the value.
type execLines struct {
	conn net.Conn
	buf  []byte // what was read and not returned
	used int    // how much of buf was
}

// maxGrant is longer than any line of the daemon's: a value, in base64, and an argv.
const maxGrant = 256 << 10

// next returns the next line, which is good until the next call.
func (l *execLines) next() ([]byte, error) {
	l.buf, l.used = append(l.buf[:0], l.buf[l.used:]...), 0
	for {
		if i := bytes.IndexByte(l.buf, '\n'); i >= 0 {
			l.used = i + 1
			return l.buf[:i], nil
		}
		if len(l.buf) > maxGrant {
			return nil, errLineTooLong
		}
		if len(l.buf) == cap(l.buf) {
			more := make([]byte, len(l.buf), 2*cap(l.buf)+4096)
			copy(more, l.buf)
			clear(l.buf)
			l.buf = more
		}
		n, err := l.conn.Read(l.buf[len(l.buf):cap(l.buf)])
		l.buf = l.buf[:len(l.buf)+n]
		if err != nil && n == 0 {
			return nil, err
		}
	}
}

// wipe overwrites the line that next returned last.
func (l *execLines) wipe() { clear(l.buf[:l.used]) }
