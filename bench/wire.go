//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"
)

const revision = "2025-11-25"

// wire is one connection of JSON-RPC lines, with many calls in flight and no goroutine but the caller's: what the client
// costs is taken from the server, since they share the machine.
type wire struct {
	conn io.Closer
	r    *bufio.Reader
	w    *bufio.Writer
	next int
}

// local opens an MCP connection to the daemon's socket.
func (w *world) local(name string) (*wire, error) {
	return dialWire(w.socket(), fmt.Sprintf(`{"keylease":1,"kind":"mcp","version":"bench","as":%q}`, name))
}

// dialWire opens one; hello is what the daemon wants to hear first, "" for another server.
func dialWire(socket, hello string) (*wire, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &wire{conn: conn, r: bufio.NewReaderSize(conn, 256<<10), w: bufio.NewWriterSize(conn, 256<<10)}
	if hello != "" {
		if _, err := io.WriteString(conn, hello+"\n"); err != nil {
			return nil, err
		}
		answer, err := c.r.ReadString('\n')
		if err != nil || !bytes.Contains([]byte(answer), []byte(`"ok":true`)) {
			return nil, fmt.Errorf("the daemon's hello: %q %v", answer, err)
		}
	}
	return c, c.handshake()
}

func (c *wire) handshake() error {
	_, err := c.ask([]byte(`"method":"initialize","params":{"protocolVersion":"` + revision + `","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`))
	if err != nil {
		return err
	}
	_, _ = c.w.WriteString(`{"jsonrpc":"2.0","method":"notifications/initialized"}` + "\n")
	return c.w.Flush()
}

func (c *wire) Close() { _ = c.conn.Close() }

// ask sends one request, of which body is what follows the id, and returns its answer.
func (c *wire) ask(body []byte) ([]byte, error) {
	c.next++
	c.send(c.next, body)
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	_, answer, err := c.read()
	return answer, err
}

func (c *wire) send(id int, body []byte) {
	_, _ = c.w.WriteString(`{"jsonrpc":"2.0","id":`)
	_, _ = c.w.Write(strconv.AppendInt(nil, int64(id), 10))
	_, _ = c.w.WriteString(",")
	_, _ = c.w.Write(body)
	_ = c.w.WriteByte('\n')
}

// read returns the next answer to a request.
func (c *wire) read() (id int, answer []byte, err error) {
	for {
		line, err := c.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return 0, nil, errors.New("an answer of more than 256 KiB")
		}
		if err != nil {
			return 0, nil, err
		}
		at := bytes.Index(line, []byte(`"id":`))
		if at < 0 {
			continue // a notification
		}
		for _, b := range line[at+5:] {
			if b < '0' || b > '9' {
				break
			}
			id = 10*id + int(b-'0')
		}
		if bad(line) {
			return 0, nil, fmt.Errorf("refused: %s", line[:min(len(line), 600)])
		}
		return id, line, nil
	}
}

func bad(answer []byte) bool {
	return bytes.Contains(answer, []byte(`"isError":true`)) || bytes.Contains(answer, []byte(`"error":{`))
}

// script is what one slot does: it gets the answer to its last request, nil at first, and returns the next. When it is
// over it returns only what puts things in order, and then nil.
type script func(slot int, answer []byte, over bool) (body []byte, counts bool)

// run keeps depth calls in flight for d. Only those of which the script says that they count are counted and timed.
func (c *wire) run(depth int, d time.Duration, s script) (sample, error) {
	until := time.Now().Add(d)
	return c.drive(depth, func(_ int, now time.Time) bool { return now.After(until) }, s)
}

// drive is run until over says so, which is told how many calls were answered.
func (c *wire) drive(depth int, over func(calls int, now time.Time) bool, s script) (sample, error) {
	sent, counts := make([]time.Time, depth), make([]bool, depth)
	each := make([]time.Duration, 0, 1<<16)
	began, left, calls, ended := time.Now(), depth, 0, time.Time{}
	step := func(slot int, answer []byte, now time.Time) {
		done := over(calls, now)
		if done && ended.IsZero() {
			ended = now
		}
		body, yes := s(slot, answer, done)
		if body == nil {
			left--
			return
		}
		for c.next++; c.next%depth != slot; c.next++ { // the id says whose it is
		}
		sent[slot], counts[slot] = now, yes && !done
		c.send(c.next, body)
	}
	for slot := range depth {
		step(slot, nil, time.Now())
	}
	for left > 0 {
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return sample{}, err
			}
		}
		id, answer, err := c.read()
		if err != nil {
			return sample{}, err
		}
		calls++
		slot, now := id%depth, time.Now()
		if counts[slot] && ended.IsZero() {
			each = append(each, now.Sub(sent[slot]))
		}
		step(slot, answer, now)
	}
	slices.Sort(each)
	return sample{n: len(each), took: ended.Sub(began), each: each}, nil
}

// call is the rest of a tools/call after its id.
func call(tool, arguments string) []byte {
	return []byte(`"method":"tools/call","params":{"name":"` + tool + `","arguments":` + arguments + `}}`)
}

// The calls that are measured. What an agent would say is in them; a value is in the answer.
func leaseCall(credential string) []byte {
	return call("lease_credential", `{"credential":"`+credential+`","ttl":"30m","purpose":"run the integration tests","delivery":"value"}`)
}

func releaseCall(lease []byte) []byte {
	return call("release_lease", `{"lease_id":"`+string(lease)+`"}`)
}

var (
	noopCall = call("noop", `{"credential":"cred-0","ttl":"30m","purpose":"run the integration tests","delivery":"value"}`)
	listCall = call("list_credentials", `{}`)
)

var leaseKey = []byte(`"lease_id":"`)

// leaseOf returns the id of the lease that an answer speaks of.
func leaseOf(answer []byte) []byte {
	_, after, ok := bytes.Cut(answer, leaseKey)
	id, _, _ := bytes.Cut(after, []byte(`"`))
	if !ok {
		return nil
	}
	return id
}

// lendAndGiveBack leases and releases in turn. Both count where all is set, else the leases alone.
func lendAndGiveBack(depth, credentials int, all bool) script {
	held := make([]bool, depth)
	n := 0
	return func(slot int, answer []byte, over bool) ([]byte, bool) {
		if held[slot] {
			held[slot] = false
			return releaseCall(leaseOf(answer)), all
		}
		if over {
			return nil, false
		}
		held[slot] = true
		n++
		return leaseCall(credential(n % credentials)), true
	}
}

func credential(i int) string { return fmt.Sprintf("cred-%d", i) }

// always repeats one call.
func always(body []byte) script {
	return func(_ int, _ []byte, over bool) ([]byte, bool) {
		if over {
			return nil, false
		}
		return body, true
	}
}
