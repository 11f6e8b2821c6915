//go:build linux

package promises

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crowdEnv makes this test binary a process that fills the sockets named in it, until its stdin ends.
const crowdEnv = "PROMISES_CROWD"

// floodSocket is that process: it holds n MCP connections that all send as fast as they are read, admin ones that sit
// on half a request, and ones that say nothing. It never stops coming back.
func floodSocket() int {
	var path string
	var n, uid int
	if _, err := fmt.Sscan(os.Getenv(crowdEnv), &path, &n, &uid); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if uid != 0 {
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	open := func(hello, then string) net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return nil
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if hello != "" {
			_, _ = io.WriteString(conn, hello+"\n")
			_, err = bufio.NewReader(conn).ReadString('\n')
		}
		if err == nil {
			_, err = io.WriteString(conn, then)
		}
		if err != nil {
			_ = conn.Close()
			return nil
		}
		_ = conn.SetDeadline(time.Time{})
		return conn
	}
	blank := strings.Repeat("\n", 2000)
	there, begin := make(chan struct{}, n), make(chan struct{})
	for range n {
		go func() {
			for first := true; ; first = false {
				conn := open(localHello("mallory"), "")
				if first {
					there <- struct{}{}
				}
				for <-begin; conn != nil; {
					if _, err := io.WriteString(conn, blank); err != nil {
						_ = conn.Close()
						conn = nil
					}
				}
				time.Sleep(100 * time.Millisecond)
			}
		}()
	}
	for range n {
		<-there
	}
	var kept []net.Conn
	for range 40 {
		kept = append(kept, open(`{"keylease":1,"kind":"admin","version":"1"}`, "POST /v1/fre"))
	}
	for range 300 {
		kept = append(kept, open("", ""))
	}
	close(begin) // not before: its own flood would keep it from the rest
	fmt.Println("full")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range kept {
		if c != nil {
			_ = c.Close()
		}
	}
	return 0
}

// crowded starts that process, and returns when it holds what it can get.
func (w *world) crowded(path string, n, uid int) {
	w.t.Helper()
	exe, err := os.Executable()
	w.must(err)
	cmd := exec.Command("/bin/sh", "-c", `"$0" <&3 &`, exe) // no child of ours: who starts an MCP client does not administer
	cmd.Env = []string{fmt.Sprintf("%s=%s %d %d", crowdEnv, path, n, uid)}
	lives, in, err := os.Pipe()
	w.must(err)
	out, told, err := os.Pipe()
	w.must(err)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{lives}, told, told
	w.must(cmd.Run())
	_, _ = lives.Close(), told.Close()
	w.t.Cleanup(func() { _, _ = in.Close(), out.Close() })
	_ = out.SetReadDeadline(time.Now().Add(2 * patience))
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "full\n" {
		w.t.Fatalf("the crowd: %q %v", line, err)
	}
	time.Sleep(200 * time.Millisecond) // until all of it waits for its rate
}

// crowdOf is how many connections there are room for and how many the crowd has: with all of the real room it takes the
// crowd's rate seconds to say hello.
func crowdOf() (room int, config string) {
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		return 512, ""
	}
	return 48, "limits: {localConnections: 48}\n"
}

// TestC4OneProcessLocksNobodyOut: a process that holds every connection there is room for, all of them with messages that
// wait for their rate, keeps neither the admin's commands out nor another process' agent.
func TestC4OneProcessLocksNobodyOut(t *testing.T) {
	t.Parallel()
	n, config := crowdOf()
	w := newWorld(t)
	w.policy(openPolicy)
	w.configure(config)
	w.serve("--http", "off")
	w.seed(secretOf("db", ""))
	w.crowded(w.socket(), n, 0)
	w.stopAndGo()
	a := w.agent("alice")
	lend(t, a, "db")
	lend(t, w.agent("bob"), "db")
	call(t, a, "list_credentials", args{})
}

// TestC4AnAgentsUserLocksNobodyOut: the same in system mode, where it is users that make room for each other, and the
// admin has a socket that no agent's connections count at.
func TestC4AnAgentsUserLocksNobodyOut(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	n, config := crowdOf()
	text, err := os.ReadFile(filepath.Join(s.config(), "keylease.yaml"))
	s.must(err)
	s.file("keylease.yaml", string(text)+config)
	s.up()
	s.seed(secretOf("db", ""))
	s.crowded(s.agents(), n, agentUID)
	s.crowded(s.admins(), n, agentUID)
	s.stopAndGo()
	a := s.agentAs(groupUID, "bob")
	lend(t, a, "db")
	call(t, a, "list_credentials", args{})
}

// stopAndGo is the admin at work. (Before any agent is started: who has started one does not administer.)
func (w *world) stopAndGo() {
	w.t.Helper()
	begin := time.Now()
	for range 3 {
		w.ok("freeze", "--reason", "under attack")
		w.ok("thaw")
	}
	if took := time.Since(begin); took > patience {
		w.t.Errorf("six commands took %v", took)
	}
}
