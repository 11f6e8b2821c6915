package server

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"keylease/internal/identity"
	"keylease/internal/lease"
)

// After the hello of kind "exec" one command has the connection for as long as it runs. JSON lines, both ways:
//
//	command → {"begin":{"credential":"…"|"lease_id":"…"|"command":"…",…}}
//	daemon  → {"granted":{"lease_id":"…","credential":"…","env":"…","argv":[…],"expires_at":"…"},"value":"<base64>"}
//	        | {"error":{"code":"…","message":"…","hint":"…"}}, and the end
//	        | {"approval_required":{"id":"…","expires_at":"…"}}, and one of the others later
//	daemon  → {"ended":"why"}      the lease is over: the command is to be stopped
//	command → {"stopping":true}    it was told to
//	command → {"exit":0}           it has ended, with this code
//	daemon  → {"keylease":"stop"}  the daemon goes and the lease does not: come back, with lease_id and opened
//
// The daemon renews the lease meanwhile. A connection that ends otherwise is a command whose keylease is gone: its use
// of the lease is over.
const kindExec = "exec"

const (
	maxExecLine = maxHello
	ackTime     = 80 * time.Millisecond // how long a command may take to say that it was told to stop: within the broker's own 100
	minRenewal  = 250 * time.Millisecond
)

// ExecRequest says what wants to run, and with which credential: by one of the first three.
type ExecRequest struct {
	LeaseID    string        `json:"lease_id,omitempty"`
	Credential string        `json:"credential,omitempty"`
	Command    string        `json:"command,omitempty"` // one that the admin fixed
	TTL        time.Duration `json:"ttl,omitempty"`     // 0: the default
	Purpose    string        `json:"purpose,omitempty"`
	Program    string        `json:"program,omitempty"` // for the record; no arguments, which may hold anything
	Opened     bool          `json:"opened,omitempty"`  // with LeaseID: an earlier grant said so
	Origin     string        `json:"origin,omitempty"`  // see lease.ExecRequest, as for Keep
	Keep       bool          `json:"keep,omitempty"`
}

// ExecGrant is what a command was given, without the value.
type ExecGrant struct {
	LeaseID    string    `json:"lease_id"`
	Credential string    `json:"credential"`
	Env        string    `json:"env"`            // the variable that the value goes into
	Argv       []string  `json:"argv,omitempty"` // of a command that the admin fixed
	ExpiresAt  time.Time `json:"expires_at"`
	Opened     bool      `json:"opened"` // the lease was opened for this command and is released after it

	User     string            `json:"user,omitempty"`     // with Origin: as whom one signs in there; "": nothing says
	Metadata map[string]string `json:"metadata,omitempty"` // with Keep: what goes with the value and is not secret
}

type execSaid struct {
	Begin    *ExecRequest `json:"begin,omitempty"`
	Stopping bool         `json:"stopping,omitempty"`
	Exit     *int         `json:"exit,omitempty"`
}

// ExecApproval is the question that a person has to answer before a command runs.
type ExecApproval struct {
	ID        string    `json:"id"`
	ExpiresAt time.Time `json:"expires_at"`
}

type execTold struct {
	Granted  *ExecGrant    `json:"granted,omitempty"`
	Approval *ExecApproval `json:"approval_required,omitempty"`
	Error    *wireRefusal  `json:"error,omitempty"`
	Ended    string        `json:"ended,omitempty"`
	Keylease string        `json:"keylease,omitempty"`
}

// execConn is one command's connection.
type execConn struct {
	conn   net.Conn
	r      *bufio.Reader
	caller identity.Caller
	now    func() time.Time
	said   chan execSaid // closed when the command says no more
	goes   chan struct{} // the daemon stops
	aside  chan struct{} // others need the room
}

// stop is for a daemon that goes: the command goes on and finds the next one.
func (c *execConn) stop(string) { close(c.goes) }

func (d *daemon) serveExec(conn net.Conn, r *bufio.Reader, h hello, peer *localPeer, g *guest) {
	defer conn.Close()
	c := &execConn{conn: conn, r: r, now: d.Now, goes: make(chan struct{}), aside: make(chan struct{})}
	c.caller = identity.Caller{Session: newSessionID(), Transport: "local", PID: peer.PID, UID: strconv.Itoa(peer.UID), Peer: kin(peer, d.peers.look)}
	known := d.knows(c, h, peer)
	g.asked(func() { close(c.aside) })
	d.mu.Lock()
	ending := d.ending
	d.conns[c] = struct{}{}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
	}()
	if ending {
		return
	}
	d.answer(conn, !known)
	q, err := c.begins()
	if err != nil {
		d.Log.Debug().Err(err).Msg("a command did not say what it wants")
		if errors.Is(err, errNoBegin) || errors.Is(err, errLineTooLong) {
			c.refuse(&lease.Refusal{Code: lease.InvalidArgument, Message: err.Error(), Hint: "Use keylease exec of the daemon's own version."})
		}
		return
	}
	d.touch()
	g.begin() // a command that runs is at work, however little it says
	defer g.end()
	if !known {
		c.refuse(&lease.Refusal{Code: lease.Unauthenticated, Message: "the token of this command is not valid (unknown, expired or revoked)",
			Hint: "Ask the operator for a new one; there is nothing to retry."})
		return
	}
	over := make(chan struct{})
	defer close(over)
	c.said = make(chan execSaid)
	go c.listen(over)
	ask := lease.ExecRequest{LeaseID: q.LeaseID, Credential: q.Credential, Command: q.Command,
		TTL: q.TTL, Purpose: q.Purpose, Program: cleanText(q.Program, maxClaim), Opened: q.Opened, Origin: q.Origin, Keep: q.Keep}
	use, err := d.exec(context.Background(), c.caller, ask)
	for waits := (*lease.NeedsApproval)(nil); errors.As(err, &waits); {
		if ask.ApprovalID == "" {
			c.tell(execTold{Approval: &ExecApproval{waits.ID, waits.ExpiresAt}})
		}
		if ask.ApprovalID = waits.ID; !c.waits(d.await, waits.ID) {
			return
		}
		use, err = d.exec(context.Background(), c.caller, ask)
	}
	if err != nil {
		r := lease.AsRefusal(err)
		if r == nil {
			d.Log.Error().Err(err).Msg("a command could not begin")
			r = &lease.Refusal{Code: lease.Internal, Message: "keylease hit an internal fault", Hint: "The daemon's log has the details."}
		}
		c.refuse(r)
		return
	}
	c.run(use, q.Keep)
}

// knows settles who c is, as for an MCP connection: a token that is no good stands for nobody.
func (d *daemon) knows(c *execConn, h hello, peer *localPeer) bool {
	if h.Token == "" {
		name := h.As
		if name == "" {
			name = unnamed
		}
		c.caller.Principal = declared(name, peer)
		return true
	}
	p, err := d.authenticate(context.Background(), h.Token, "local")
	if err != nil {
		d.Log.Warn().Err(err).Int("pid", peer.PID).Msg("a command came with a token that is not valid")
	}
	c.caller.Principal = p
	return err == nil
}

var errNoBegin = errors.New("this is not the begin of a command")

// plain reports whether q names one thing to run with, for a time that there is.
func (q *ExecRequest) plain() bool {
	named := 0
	for _, name := range []string{q.LeaseID, q.Credential, q.Command} {
		if name != "" {
			named++
		}
	}
	return (named == 1 || named == 0 && q.Origin != "") && (q.TTL == 0 || q.TTL >= time.Second && q.TTL%time.Second == 0)
}

// begins reads what the command wants.
func (c *execConn) begins() (*ExecRequest, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(helloTime))
	line, err := readLine(c.r, maxExecLine)
	if err != nil {
		return nil, err
	}
	var said execSaid
	if strictJSON(line) != nil || json.Unmarshal(line, &said) != nil || said.Begin == nil || !said.Begin.plain() {
		return nil, errNoBegin
	}
	return said.Begin, c.conn.SetReadDeadline(time.Time{})
}

func (c *execConn) refuse(r *lease.Refusal) { c.tell(execTold{Error: wireFrom(r).Error}) }

func (c *execConn) tell(t execTold) bool { return c.send(append(mustJSON(t), '\n')) }

func (c *execConn) send(line []byte) bool {
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := c.conn.Write(line)
	return err == nil
}

// grant hands the value over. It is put together by hand: what an encoder keeps for its next use can't be wiped.
func (c *execConn) grant(u *lease.Use, keep bool) bool {
	l := u.Lease
	g := &ExecGrant{LeaseID: l.LeaseID, Credential: l.Credential, Env: l.Env, Argv: u.Argv, ExpiresAt: l.ExpiresAt, Opened: u.Opened, User: u.User}
	if keep {
		g.Metadata = l.Metadata
	}
	head := mustJSON(execTold{Granted: g})
	const key = `,"value":"`
	line := make([]byte, 0, len(head)+len(key)+base64.StdEncoding.EncodedLen(u.Value.Len())+3)
	line = append(append(line, head[:len(head)-1]...), key...)
	line = base64.StdEncoding.AppendEncode(line, u.Value.Bytes())
	line = append(line, "\"}\n"...)
	defer clear(line)
	defer u.Value.Wipe() // the daemon has no more use for it
	return c.send(line)
}

// waits waits for a person's answer, as long as the command does. It reports whether to ask again.
func (c *execConn) waits(await func(context.Context, identity.Caller, string), id string) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answered := make(chan struct{})
	go func() { await(ctx, c.caller, id); close(answered) }()
	select {
	case <-answered:
		return true
	case <-c.goes:
		c.tell(execTold{Keylease: controlStop})
	case <-c.said: // gone, or it says what it may not yet
	case <-c.aside:
	}
	return false
}

// run stays with the command until it has ended, its lease has, or the daemon goes.
func (c *execConn) run(u *lease.Use, keep bool) {
	if !c.grant(u, keep) {
		u.End(lease.Outcome{Reason: "the command was gone before it began"})
		return
	}
	renew := newRenewal(u, c.now)
	defer renew.stop()
	for {
		select {
		case <-renew.due():
			renew.renew()
		case <-u.Context().Done():
			c.cut(u, u.Why())
			return
		case <-c.aside:
			c.cut(u, "the daemon has as many local connections as it may, and this user has most of them")
			return
		case <-c.goes: // without an End, which would be the command's: its lease waits for it a while, as it does after a kill
			c.tell(execTold{Keylease: controlStop})
			return
		case s, ok := <-c.said:
			switch {
			case !ok:
				u.End(lease.Outcome{Reason: "keylease exec is gone"})
				return
			case s.Exit != nil:
				u.End(lease.Outcome{Status: *s.Exit})
				return
			}
		}
	}
}

// cut has the command stopped, and ends its use as soon as it was told to; it is not waited for.
func (c *execConn) cut(u *lease.Use, why string) {
	if c.tell(execTold{Ended: why}) {
		select {
		case <-c.said:
		case <-time.After(ackTime):
		}
	}
	u.End(lease.Outcome{Reason: why})
}

// listen passes on what the command says, until it says no more.
func (c *execConn) listen(over <-chan struct{}) {
	defer close(c.said)
	for {
		line, err := readLine(c.r, maxExecLine)
		var s execSaid
		if err != nil || json.Unmarshal(line, &s) != nil {
			return
		}
		select {
		case c.said <- s:
		case <-over:
			return
		}
	}
}

// renewal extends the lease of a use whenever half of its time is over, up to its ceiling.
type renewal struct {
	use     *lease.Use
	now     func() time.Time
	expires time.Time
	timer   *time.Timer // nil: there is no more to be had
}

func newRenewal(u *lease.Use, now func() time.Time) *renewal {
	r := &renewal{use: u, now: now, expires: u.Lease.ExpiresAt}
	if r.expires.Before(u.Lease.MaxExpiresAt) {
		r.timer = time.NewTimer(r.half())
	}
	return r
}

func (r *renewal) half() time.Duration { return max(r.expires.Sub(r.now())/2, minRenewal) }

func (r *renewal) due() <-chan time.Time {
	if r.timer == nil {
		return nil
	}
	return r.timer.C
}

// renew tries again later where it is refused: what refused it may pass, and if not the lease ends with its time.
func (r *renewal) renew() {
	until, err := r.use.Renew(context.Background())
	refusal := lease.AsRefusal(err)
	switch {
	case refusal != nil && refusal.Code == lease.LeaseEnded, err == nil && !until.After(r.expires):
		r.timer = nil // the ceiling
		return
	case err == nil:
		r.expires = until
	}
	r.timer.Reset(r.half())
}

func (r *renewal) stop() {
	if r.timer != nil {
		r.timer.Stop()
	}
}

// gone reports whether err is a connection that ended before its daemon said anything, as that of one that just stops.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || reset(err)
}
