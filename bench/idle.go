//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// idling measures what keylease takes while nobody asks for anything, and how soon it is there when somebody does.
func idling(r *run) error {
	return r.within(func() error {
		w, _, err := r.served(1, 0)
		if err != nil {
			return err
		}
		rest, watch := 3*time.Second, 10*time.Second
		if r.short {
			rest, watch = 200*time.Millisecond, time.Second
		}
		time.Sleep(rest)
		before, began := cpuOf(w.pid), time.Now()
		time.Sleep(watch)
		busy := 100 * float64(cpuOf(w.pid)-before) / float64(time.Since(began))
		resident, own := status(w.pid, "VmRSS"), status(w.pid, "RssAnon")
		r.atMost("idle daemon, memory", shipped, "resident", "MB", 30, exactly(float64(resident)/1024), "%.1f MB of it anonymous; the rest is the program's and the store's files", float64(own)/1024)
		r.atMost("idle daemon, processor", shipped, "of one core", "%", 1, exactly(busy), "over %s", watch)
		if err := r.relayed(w); err != nil {
			return err
		}
		if err := w.stop(); err != nil {
			return err
		}
		if err := r.woken(w); err != nil {
			return err
		}
		info, err := os.Stat(r.binary)
		if err != nil {
			return err
		}
		r.atMost("binary, stripped", shipped, "size", "MB", 25, exactly(float64(info.Size())/1e6), "`go build -trimpath -ldflags \"-s -w\"`")
		return nil
	})
}

func exactly(f float64) spread { return spread{f, f, f} }

// cpuOf is how long a process has computed.
func cpuOf(pid int) (total time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range tasks {
		text, _ := os.ReadFile(file)
		var ran time.Duration
		_, _ = fmt.Sscan(string(text), &ran)
		total += ran
	}
	return total
}

// relay is `keylease mcp`, as a client starts it.
type relay struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// relay starts one and returns how long it took until it answered the first request.
func (w *world) relay() (*relay, time.Duration, error) {
	cmd := exec.Command(w.r.binary, "mcp")
	cmd.Env, cmd.Dir = w.env(), w.home
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	r := &relay{cmd, in, bufio.NewReader(out)}
	_, _ = io.WriteString(in, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+revision+`","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`+"\n")
	line, err := r.out.ReadString('\n')
	took := time.Since(began)
	if err == nil && bad([]byte(line)) {
		err = fmt.Errorf("the relay answered: %s", line)
	}
	return r, took, err
}

func (r *relay) end() { _ = r.in.Close(); _ = r.Wait() }

func (r *run) relayed(w *world) error {
	var first []float64
	for range 3 * r.rounds {
		c, took, err := w.relay()
		if err != nil {
			return err
		}
		first = append(first, ms(took))
		c.end()
	}
	r.atMost("`keylease mcp` to its first answer, with a daemon", shipped, "from its start", "ms", 15, over(len(first), func(i int) float64 { return first[i] }), "%d starts", len(first))
	c, _, err := w.relay()
	if err != nil {
		return err
	}
	defer c.end()
	_, _ = io.WriteString(c.in, `{"jsonrpc":"2.0","method":"notifications/initialized"}`+"\n"+`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}`+"\n")
	if _, err := c.out.ReadString('\n'); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // a relay lives as long as its client: it gives back what its start took a second after that
	r.atMost("relay, memory of its own", shipped, "anonymous", "MB", 4, exactly(float64(status(c.Process.Pid, "RssAnon"))/1024), "3 s after initialize and tools/list")
	r.atMost("relay, memory", shipped, "resident", "MB", 15, exactly(float64(status(c.Process.Pid, "VmRSS"))/1024), "the pages of the program are shared with the daemon")
	return nil
}

// woken starts relays that find no daemon and start one.
func (r *run) woken(w *world) error {
	var first []float64
	for range r.rounds {
		c, took, err := w.relay()
		if err != nil {
			return err
		}
		first = append(first, ms(took))
		c.end()
		pid, err := w.holder()
		if err != nil {
			return err
		}
		_ = syscall.Kill(pid, syscall.SIGTERM)
		w.pid = pid
		w.gone()
	}
	r.atMost("`keylease mcp` to its first answer, without a daemon", shipped, "from its start", "ms", 300, over(len(first), func(i int) float64 { return first[i] }), "%d starts, each of which opened the store", len(first))
	return nil
}

// holder is the daemon behind w's socket, by its own word.
func (w *world) holder() (int, error) {
	conn, err := net.Dial("unix", w.socket())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"keylease":1,"kind":"mcp","version":"bench"}`+"\n"); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return 0, err
	}
	var answer struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(line, &answer); err != nil || answer.PID <= 1 {
		return 0, fmt.Errorf("the daemon's hello: %s", line)
	}
	return answer.PID, nil
}
