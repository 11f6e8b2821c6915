//go:build linux

package promises

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// monster is a message that is made while it is sent: nobody here holds it either.
type monster struct {
	name          string
	head          string
	part          string
	times         int
	tail          string
	contentCoding string
}

func (m monster) size() int { return len(m.head) + m.times*len(m.part) + len(m.tail) }

func (m monster) reader() io.Reader {
	return io.MultiReader(strings.NewReader(m.head), &repeated{part: []byte(m.part), left: m.times * len(m.part)}, strings.NewReader(m.tail))
}

type repeated struct {
	part []byte
	at   int
	left int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && r.left > 0 {
		k := copy(p[n:min(len(p), n+r.left)], r.part[r.at:])
		r.at, n, r.left = (r.at+k)%len(r.part), n+k, r.left-k
	}
	return n, nil
}

const monsterHead = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_credentials","arguments":{"match":`

// monsters are what C2 lists: first those over 64 KiB, then the same things within.
func monsters() (over, within []monster) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = io.Copy(z, &repeated{part: []byte(" "), left: 16 << 20})
	_ = z.Close()
	over = []monster{
		{name: "a string of 64 MiB", head: monsterHead + `"`, part: strings.Repeat("x", 1<<16), times: 1 << 10, tail: `"}}}`},
		{name: "arrays 10^5 deep", head: monsterHead, part: "[", times: 100_000, tail: strings.Repeat("]", 100_000) + "}}}"},
		{name: "10^6 keys", head: monsterHead + `{"a":1`, part: `,"k":1`, times: 1_000_000, tail: "}}}}"},
		{name: "a number of 10^6 digits", head: monsterHead, part: "7", times: 1_000_000, tail: "}}}"},
	}
	within = []monster{
		{name: "arrays 30,000 deep", head: monsterHead, part: "[", times: 30_000, tail: strings.Repeat("]", 30_000) + "}}}"},
		{name: "10,000 keys", head: monsterHead + `{"a":1`, part: `,"k":1`, times: 10_000, tail: "}}}}"},
		{name: "a number of 60,000 digits", head: monsterHead, part: "7", times: 60_000, tail: "}}}"},
		{name: "a gzip bomb", part: bomb.String(), times: 1, contentCoding: "gzip"},
	}
	return over, within
}

// postMonster sends one over a connection of its own, and returns how it was answered and whether the connection was
// closed then.
func postMonster(addr, path, token string, m monster, length string) (status string, closed bool, err error) {
	c, err := rawHTTP(addr)
	if err != nil {
		return "", false, err
	}
	defer c.Close()
	encoding := ""
	if m.contentCoding != "" {
		encoding = "Content-Encoding: " + m.contentCoding + "\r\n"
	}
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMcp-Protocol-Version: %s\r\n%s%s\r\n\r\n",
		path, addr, token, modern, encoding, length)
	sent := make(chan struct{})
	go func() { // while the answer is waited for: it may come before all is sent
		defer close(sent)
		if strings.HasPrefix(length, "Transfer") {
			buf := make([]byte, 32<<10)
			for r := m.reader(); ; {
				n, err := r.Read(buf)
				if n > 0 {
					if _, failed := fmt.Fprintf(c, "%x\r\n%s\r\n", n, buf[:n]); failed != nil {
						return
					}
				}
				if err != nil {
					fmt.Fprint(c, "0\r\n\r\n")
					return
				}
			}
		}
		_, _ = io.Copy(struct{ io.Writer }{c}, m.reader())
	}()
	answer, err := http.ReadResponse(c.r, nil)
	if err == nil {
		status = answer.Status
		_, _ = io.Copy(io.Discard, answer.Body)
		if !answer.Close {
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		}
		_, err = c.r.ReadByte()
	}
	closed = errors.Is(err, io.EOF) || err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	_ = c.Close()
	<-sent
	return status, closed, nil
}

// lineMonster sends one over the local socket and returns the first answer, and whether the connection was closed.
func (w *world) lineMonster(m monster) (answer string, closed bool, err error) {
	c, err := w.rawLocal(localHello("mallory"))
	if err != nil {
		return "", false, err
	}
	defer c.Close()
	if _, err := c.r.ReadString('\n'); err != nil {
		return "", false, err
	}
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{c}, m.reader())
		_, _ = io.WriteString(c, "\n")
	}()
	answer, _ = c.r.ReadString('\n')
	if !strings.Contains(answer, "longer than") && answer != "" {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	}
	_, err = c.r.ReadByte()
	return answer, err != nil && !errors.Is(err, os.ErrDeadlineExceeded), nil
}

// TestC2MonstersAreNotSwallowed: what is too big, deep, long or wide costs the daemon less than 20 MB on any transport,
// ends the connection it came on where it is over 64 KiB, and others do not notice.
func TestC2MonstersAreNotSwallowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure("limits: {callRate: 0}\n")
	s := w.serve()
	w.seed(secretOf("db", ""))
	mallory, _ := w.token("mallory")
	alice, _ := w.token("alice")
	stream := w.sse(s.addr, mallory)
	message := strings.TrimPrefix(stream.post, "http://"+s.addr)
	victims := []*victim{webVictim(s.addr, alice), w.localVictim("bob")}
	measure := func(into int) error {
		for _, v := range victims {
			if err := v.measure(into, 50, time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	}
	w.must(measure(0))
	before, most := rss(s.Process.Pid), highest(s.Process.Pid)
	over, within := monsters()
	attack := func(m monster, tooBig bool) error {
		lengths := []string{fmt.Sprintf("Content-Length: %d", m.size()), "Transfer-Encoding: chunked"}
		for _, path := range []string{"/mcp", message} {
			for _, length := range lengths {
				status, closed, err := postMonster(s.addr, path, mallory, m, length)
				if err != nil || tooBig && !closed || status != "" && !strings.HasPrefix(status, "4") {
					return fmt.Errorf("%s to %.9s with %.17s: %v, HTTP %s, closed: %t", m.name, path, length, err, status, closed)
				}
			}
		}
		if m.contentCoding != "" {
			return nil
		}
		answer, closed, err := w.lineMonster(m)
		if err != nil || closed != tooBig || !strings.Contains(answer, `"error"`) && !tooBig {
			return fmt.Errorf("%s as a line: %v, closed: %t, %.200s", m.name, err, closed, answer)
		}
		return nil
	}
	together(t, 5, func(i int) error {
		if i == 4 {
			return errors.Join(measure(1), measure(1), measure(1))
		}
		if err := attack(over[i], true); err != nil {
			return err
		}
		return attack(within[i], false)
	})
	grown := most() - before
	t.Logf("memory: %d KiB before, %d more at most", before, grown)
	if grown > 20<<10 {
		t.Errorf("the daemon grew by %d KiB", grown)
	}
	for _, v := range victims {
		v.unharmed(t)
	}
	call(t, stream, "list_credentials", args{})
}

// TestC2TheRelayKeepsNoMonster: a line of 64 MiB on a relay's stdin is refused, does not stay in its memory, and the
// client goes on.
func TestC2TheRelayKeepsNoMonster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed(secretOf("db", ""))
	a := w.agent("alice")
	lend(t, a, "db")
	before, most := rss(a.relay), highest(a.relay)
	over, _ := monsters()
	a.inMu.Lock()
	_, err := io.Copy(struct{ io.Writer }{a.in}, over[0].reader())
	a.inMu.Unlock()
	w.must(err)
	w.must(a.send(""))
	if line := a.stray(); !strings.Contains(line, "longer than 65536 bytes") {
		t.Errorf("answered with %s", line)
	}
	call(t, a, "list_credentials", args{})
	if grown := most() - before; grown > 20<<10 {
		t.Errorf("the relay grew by %d KiB", grown)
	}
}

// TestC2SlowSendersAreCut: a head, a body or a line that comes drop by drop is given up after seconds, whoever sends it.
func TestC2SlowSendersAreCut(t *testing.T) {
	if os.Getenv("KEYLEASE_TEST_FULL") == "" {
		t.Skip("takes 12 s: set KEYLEASE_TEST_FULL; the server's own tests have it with shorter times")
	}
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	token, _ := w.token("mallory")
	head := "POST /mcp HTTP/1.1\r\nHost: " + s.addr + "\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n"
	slow := map[string]string{"a head": head, "a body": head + "Authorization: Bearer " + token + "\r\n\r\n{", "a body of nobody's": head + "\r\n{", "a line": "{"}
	var names []string
	for name := range slow {
		names = append(names, name)
	}
	together(t, len(names), func(i int) error {
		var c *raw
		var err error
		if names[i] == "a line" {
			c, err = w.rawLocal(localHello("mallory"))
		} else {
			c, err = rawHTTP(s.addr)
		}
		if err != nil {
			return err
		}
		defer c.Close()
		begin := time.Now()
		_, err = io.WriteString(c, slow[names[i]])
		for err == nil && time.Since(begin) < 20*time.Second {
			time.Sleep(200 * time.Millisecond)
			_, err = io.WriteString(c, "x")
		}
		if took := time.Since(begin); err == nil || took > 14*time.Second {
			return fmt.Errorf("%s is still read after %v", names[i], took)
		}
		return nil
	})
}
