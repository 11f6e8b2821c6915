//go:build linux

package promises

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The users of a machine that has system mode. They need no entry in its user table.
const (
	daemonUID = 61001
	agentUID  = 61002 // in socket.allow.uids
	otherUID  = 61003 // nobody knows it
	adminUID  = 61004 // in admin.uids
	groupUID  = 61005 // comes in by a group
	agentGID  = 61012 // in socket.allow.groups
)

// user is somebody else on the machine.
type user struct {
	uid    int
	groups []uint32
	home   string
}

func (u *user) credential() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.uid), Groups: u.groups}}
}

// system is a machine whose keylease has a user of its own. Its world's user is root.
type system struct {
	*world
	users map[int]*user
}

const systemConfig = `http: off
anchor: ANCHOR
socket:
  path: RUN/agent.sock
  admin: RUN/admin.sock
  allow: {uids: [61002], groups: [61012]}
admin: {uids: [61004]}
`

// newSystem makes the machine, as docs/system-mode.md does, but starts nothing.
func newSystem(t *testing.T) *system {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be several users: run the tests as root, as in a container, to try system mode")
	}
	s := &system{newWorld(t), map[int]*user{}}
	for _, dir := range []string{s.home, filepath.Dir(s.bin)} {
		s.must(os.Chmod(dir, 0o755))
	}
	s.must(os.Chmod(s.bin, 0o755))
	for _, uid := range []int{daemonUID, agentUID, otherUID, adminUID, groupUID} {
		u := &user{uid: uid, home: filepath.Join(s.home, "users", strconv.Itoa(uid))}
		if uid == groupUID {
			u.groups = []uint32{agentGID}
		}
		s.folder(u.home, uid, 0o700)
		s.users[uid] = u
	}
	s.users[daemonUID].home = s.home
	s.folder(s.data(), daemonUID, 0o700)
	s.folder(s.anchors(), daemonUID, 0o700)
	s.folder(s.run(), daemonUID, 0o755)
	s.folder(s.config(), 0, 0o750)
	s.must(os.Chown(s.config(), 0, daemonUID))
	s.file("keylease.yaml", strings.NewReplacer("ANCHOR", s.anchors(), "RUN", s.run()).Replace(systemConfig))
	s.file("policy.yaml", openPolicy)
	s.file("root.key", strings.Repeat("ab", 32))
	s.must(os.Chown(filepath.Join(s.config(), "root.key"), daemonUID, daemonUID))
	s.must(os.Chmod(filepath.Join(s.config(), "root.key"), 0o400))
	return s
}

func (s *system) anchors() string { return filepath.Join(s.home, "anchor") }
func (s *system) run() string     { return filepath.Join(s.home, "run") }
func (s *system) agents() string  { return filepath.Join(s.run(), "agent.sock") }
func (s *system) admins() string  { return filepath.Join(s.run(), "admin.sock") }

func (s *system) folder(path string, uid int, mode os.FileMode) {
	s.t.Helper()
	if parent := filepath.Dir(path); !exists(parent) {
		s.folder(parent, 0, 0o755)
	}
	if !exists(path) {
		s.must(os.Mkdir(path, mode))
	}
	s.must(os.Chmod(path, mode)) // whatever umask a store that was opened in this process has left
	s.must(os.Chown(path, uid, uid))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// file is root's, and the daemon may read it.
func (s *system) file(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.config(), name)
	s.must(os.WriteFile(path, []byte(text), 0o640))
	s.must(os.Chmod(path, 0o640))
	s.must(os.Chown(path, 0, daemonUID))
}

// as runs a program as somebody.
func (s *system) as(uid int, argv ...string) outcome {
	s.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = s.env("HOME="+s.users[uid].home), s.users[uid].home
	cmd.SysProcAttr = s.users[uid].credential()
	return s.world.run(cmd, "")
}

// up starts the daemon as its user.
func (s *system) up() {
	s.t.Helper()
	log, cmd := &buffer{}, exec.Command(s.bin, "serve")
	cmd.Env, cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = s.env(), "/", s.users[daemonUID].credential(), log, log
	s.must(cmd.Start())
	go func() { _ = cmd.Wait() }()
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("serve: %s", tail(log.String(), 4000))
		}
	})
	s.eventually("the system's daemon is up", func() error {
		if o := s.cli("ls"); o.code != 0 {
			return fmt.Errorf("%s\n%s", o, log)
		}
		return nil
	})
}

// agentAs starts a relay of somebody's.
func (s *system) agentAs(uid int, name string, env ...string) *agent {
	s.t.Helper()
	return s.agentOf(spec{client: "test-client", flags: []string{"--socket", s.agents(), "--as", name}, env: env, user: s.users[uid]})
}

// asThread has one thread of this process be somebody else for a moment, and ends it: what it opens is that user's.
func asThread(t *testing.T, uid int, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with this goroutine
		_, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		if errno != 0 {
			done <- errno
			return
		}
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// squat listens at path as somebody, and tells what was sent to it.
func squat(t *testing.T, uid int, path string) <-chan string {
	t.Helper()
	var l net.Listener
	asThread(t, uid, func() (err error) { l, err = net.Listen("unix", path); return err })
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetReadDeadline(time.Now().Add(patience))
				b := make([]byte, 1000)
				if n, _ := conn.Read(b); n > 0 {
					heard <- string(b[:n])
				}
			}()
		}
	}()
	return heard
}

// strangerEnv makes this test binary a process that connects its descriptor 3 to the socket named in it, and ends. The
// connection goes on in whoever else holds that descriptor.
const strangerEnv = "PROMISES_CONNECT"

func stranger() int {
	if err := unix.Connect(3, &unix.SockaddrUnix{Name: os.Getenv(strangerEnv)}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// leftBehind is a connection to path whose process is gone.
func leftBehind(t *testing.T, path string) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env, cmd.ExtraFiles = []string{strangerEnv + "=" + path}, []*os.File{file}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// knowsLives asks whether this kernel has SO_PEERPIDFD.
func knowsLives(t *testing.T, conn net.Conn) bool {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	has := false
	if err := raw.Control(func(fd uintptr) {
		if pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			has = true
			_ = unix.Close(pidfd)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return has
}
