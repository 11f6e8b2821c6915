package server

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who connected (SO_PEERCRED, SO_PEERGROUPS), and for a handle on that process (SO_PEERPIDFD, from
// Linux 6.5 on).
func peerOf(conn *net.UnixConn) (*localPeer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var groups []int
	var credErr, groupErr, lifeErr error
	pidfd := -1
	if err := raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr != nil {
			return
		}
		groups, groupErr = peerGroups(int(fd))
		pidfd, lifeErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, credErr
	}
	peer := &localPeer{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid), Groups: groups}
	switch {
	case lifeErr == nil:
		peer.life = &pidHandle{fd: pidfd} // closed on exec: the kernel makes it so
	case !errors.Is(lifeErr, unix.ENOPROTOOPT): // reaped already (EINVAL, ESRCH), or a kernel that knows no such option
		peer.lost = hasPidfds()
	}
	if groupErr != nil { // older than Linux 4.13: nobody is let in by a group
		peer.Groups = nil
	}
	return peer, nil
}

// hasPidfds asks the kernel for a handle on ourselves.
var hasPidfds = sync.OnceValue(func() bool {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
	fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
})

// peerGroups is SO_PEERGROUPS: the supplementary groups that the peer had when it connected.
func peerGroups(fd int) ([]int, error) {
	ids := make([]uint32, 64)
	for {
		size := uint32(len(ids) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		if errno == unix.ERANGE && n > len(ids) && n <= 1<<16 { // the kernel's own limit
			ids = make([]uint32, n)
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		groups := make([]int, n)
		for i, id := range ids[:n] {
			groups[i] = int(id)
		}
		return groups, nil
	}
}

// pidHandle is a pidfd. It is asked by requests that may still run while the connection is let go of.
type pidHandle struct {
	mu sync.Mutex // guards fd: once closed its number may be another file's
	fd int        // -1: closed
}

// over asks whether the process has ended: a pidfd is readable from then on. (A signal 0 would need permission.)
func (h *pidHandle) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err != nil || n > 0
	}
}

func (h *pidHandle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
		h.fd = -1
	}
}

// knowsLives reports whether this kernel can say that a process has ended (SO_PEERPIDFD).
func knowsLives(p *localPeer) bool { return p.life != nil || p.lost }

// lookProcess reads /proc/PID/stat. The command's name stands in parentheses and may hold anything, so the fields are
// counted from the last parenthesis: state, parent, group, session.
func lookProcess(pid int) (process, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 4 {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	if err1 != nil || err2 != nil {
		return process{}, false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		exe = string(stat[open+1 : end]) // a process that forbids core dumps hides its exe: its name has to do
	}
	return process{parent: parent, session: session, exe: exe}, true
}
