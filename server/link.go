package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
)

// link is one connection of the relay to a daemon.
type link struct {
	conn   net.Conn
	r      *bufio.Reader
	answer helloAnswer

	mu   sync.Mutex // guards writes, and the seq of calls that are on this link; taken before relay.mu, never after
	sent uint64     // lines written whole
	dead bool       // nothing more is written
}

// write sends one line. Where it fails, the line did not arrive whole, so the daemon can't have acted on it.
func (l *link) write(line []byte) (seq uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writeLocked(line)
}

func (l *link) writeLocked(line []byte) (seq uint64, err error) {
	if l.dead {
		return 0, net.ErrClosed
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := l.conn.Write(append(slices.Clip(line), '\n')); err != nil {
		l.dead = true // half a line may be in it
		_ = l.conn.Close()
		return 0, err
	}
	l.sent++
	return l.sent, nil
}

// end closes the link and returns when no write to it is under way any more.
func (l *link) end() {
	_ = l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
}

// dialDaemon finds or starts the daemon and says hello.
func (r *relay) dialDaemon(ctx context.Context) (*link, error) {
	conn, err := Dial(ctx, DialOptions{Paths: r.Paths, Version: r.Version, AutoStart: r.AutoStart, Start: r.Start})
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, r: bufio.NewReaderSize(conn, 8<<10)}
	h := hello{Kind: kindMCP, Version: r.Version, Token: r.Token, As: r.As}
	r.mu.Lock()
	first := r.first
	h.Session = r.session
	r.mu.Unlock()
	if first != nil {
		h.ClientName, h.ClientVersion = claimedClient(first)
		if h.ClientName == "" && h.As == "" {
			h.As = unnamed // or the first request on another connection might say something else
		}
	}
	if l.answer, err = sayHello(conn, l.r, h); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if l.answer.BadToken {
		r.badToken.Do(func() {
			r.Log.Warn().Msg("the token in KEYLEASE_TOKEN is not valid (unknown, expired or revoked): every call will be answered unauthenticated")
		})
	}
	return l, nil
}

// link returns the connection to the daemon, making one where there is none: with the client's handshake replayed,
// and all that it still waits for sent again.
func (r *relay) link(ctx context.Context) (*link, error) {
	if l := r.current(); l != nil {
		return l, nil
	}
	r.linkMu.Lock()
	defer r.linkMu.Unlock()
	if l := r.current(); l != nil {
		return l, nil
	}
	l, err := r.redial(ctx)
	if err != nil {
		return nil, err
	}
	if !r.asked { // once: a relay that lives long is not newer than the daemons that come after it
		r.asked = true
		if l.answer.Auto && newer(r.Version, l.answer.Version) {
			if l, err = r.replaceDaemon(ctx, l); err != nil {
				return nil, err
			}
		}
	}
	if err := r.replay(l); err != nil {
		_ = l.conn.Close()
		return nil, err
	}
	r.mu.Lock()
	r.cur = l
	waiting := r.unsent()
	r.mu.Unlock()
	go r.readDaemon(ctx, l) // ends with the connection, which Relay closes
	for _, c := range waiting {
		r.send(l, c)
	}
	if ctx.Err() != nil {
		_ = l.conn.Close()
	}
	return l, nil
}

func (r *relay) current() *link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur
}

// unsent lists the calls that are on no connection, oldest first. Called with mu held.
func (r *relay) unsent() []*flight {
	var calls []*flight
	for _, c := range r.pending {
		if c.on == nil {
			calls = append(calls, c)
		}
	}
	slices.SortFunc(calls, func(a, b *flight) int { return int(a.order) - int(b.order) })
	return calls
}

// replaceDaemon has an older daemon that some relay started make room for one of our version.
func (r *relay) replaceDaemon(ctx context.Context, old *link) (*link, error) {
	_ = old.conn.Close()
	if err := askHandover(ctx, r.Paths, r.Version); err != nil {
		r.Log.Warn().Err(err).Msg("an older daemon stays")
	}
	return r.redial(ctx)
}

// redial looks for a daemon until there is one, or the time for that is over.
func (r *relay) redial(ctx context.Context) (*link, error) {
	longest := reconnectTime
	if !r.AutoStart {
		longest = returnTime
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		l, err := r.dial(ctx)
		if err == nil || r.lasting(err) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// lasting reports whether trying again at once is of no use. A daemon that we do not start is waited for only if there
// was one before: it may be on its way back.
func (r *relay) lasting(err error) bool {
	var start *StartError
	var refused *HelloError
	return errors.Is(err, ErrUntrusted) || errors.Is(err, ErrUnsupported) || errors.As(err, &start) ||
		errors.As(err, &refused) || errors.Is(err, ErrNotOpen) || errors.Is(err, ErrUnreachable) && !r.AutoStart && !r.asked
}

// replay repeats the client's handshake on a new connection and keeps the answer to itself: the client has one.
func (r *relay) replay(l *link) error {
	r.mu.Lock()
	handshake := r.handshake
	r.mu.Unlock()
	if handshake[0] == nil {
		return nil
	}
	if _, err := l.write(handshake[0]); err != nil {
		return fmt.Errorf("replaying the handshake: %w", err)
	}
	_ = l.conn.SetReadDeadline(time.Now().Add(helloTime))
	line, err := readLine(l.r, maxRead)
	if err != nil {
		return fmt.Errorf("replaying the handshake: %w", err)
	}
	var e envelope
	if json.Unmarshal(line, &e) != nil || e.Result == nil {
		return errors.New("replaying the handshake: the daemon refused it")
	}
	_ = l.conn.SetReadDeadline(time.Time{})
	if handshake[1] != nil {
		_, err = l.write(handshake[1])
	}
	return err
}

// readDaemon passes the daemon's lines on until the connection ends, and then sees to what was in flight.
func (r *relay) readDaemon(ctx context.Context, l *link) {
	var bye control
	for {
		line, err := readLine(l.r, 64<<20) // an answer has no limit but the daemon's own
		if err != nil {
			break
		}
		if bytes.HasPrefix(line, []byte(`{"keylease":`)) {
			_ = json.Unmarshal(line, &bye)
			continue
		}
		r.answered(l, line)
	}
	l.end()
	if waiting := r.lose(l, bye); ctx.Err() != nil || bye.Keylease == controlIdle && waiting == 0 {
		return // with an idle daemon: until the client speaks
	}
	if _, err := r.link(ctx); err != nil { // unasked: a session is to be back before the grace of its leases is over
		r.giveUp(err)
	}
}

// lose answers what nobody can know about any more and keeps the rest for the next connection. It returns how much
// that is.
func (r *relay) lose(l *link, bye control) (waiting int) {
	r.mu.Lock()
	r.cur, r.session = nil, bye.Session
	var lost []*flight
	for key, c := range r.pending {
		mayHaveRun := c.on == l && c.seq != 0 && (bye.Keylease == "" || c.seq <= bye.Read)
		if c.method == string(mcp.MethodToolsCall) && mayHaveRun {
			delete(r.pending, key)
			lost = append(lost, c)
			continue
		}
		c.on, c.seq = nil, 0
		waiting++
	}
	r.mu.Unlock()
	for _, c := range lost {
		r.write(unknownOutcome(c.id))
	}
	r.settled.Broadcast()
	return waiting
}

// giveUp answers all that waits. The next request tries again.
func (r *relay) giveUp(err error) {
	r.mu.Lock()
	calls := r.unsent()
	for _, c := range calls {
		delete(r.pending, idKey(c.id))
	}
	r.mu.Unlock()
	for _, c := range calls {
		r.write(r.noDaemon(err).line(c.id))
	}
	r.settled.Broadcast()
}

// newer reports whether a relay of version mine should ask for a daemon of its own version. Versions that are not of
// the form v1.2.3 can't be ordered; then a different one counts as newer, as it is the one that was installed since.
func newer(mine, theirs string) bool {
	a, okA := versionParts(mine)
	b, okB := versionParts(theirs)
	if okA && okB {
		return slices.Compare(a, b) > 0
	}
	return mine != theirs
}

func versionParts(v string) ([]int, bool) {
	fields := strings.Split(strings.TrimPrefix(v, "v"), ".")
	if len(fields) != 3 {
		return nil, false
	}
	parts := make([]int, 3)
	for i, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, false
		}
		parts[i] = n
	}
	return parts, true
}
