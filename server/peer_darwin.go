package server

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who connected (LOCAL_PEERCRED, LOCAL_PEERPID).
func peerOf(conn *net.UnixConn) (*localPeer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Xucred
	var pid int
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); credErr == nil {
			pid, credErr = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID)
		}
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, credErr
	}
	peer := &localPeer{UID: int(cred.Uid), GID: -1, PID: pid}
	for i := range min(int(cred.Ngroups), len(cred.Groups)) {
		peer.Groups = append(peer.Groups, int(cred.Groups[i]))
	}
	return peer, nil
}

// knowsLives: macOS has no handle on a peer's process.
func knowsLives(*localPeer) bool { return false }

// lookProcess knows parents only: the session leader and the executable would need calls that want cgo, so a
// parent that may be a person's shell is not told from an agent's client, and counts as a shell.
func lookProcess(pid int) (process, bool) {
	p, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return process{}, false
	}
	return process{parent: int(p.Eproc.Ppid), session: pid}, true
}
