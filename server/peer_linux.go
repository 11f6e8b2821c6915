package server

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who connected (SO_PEERCRED).
func peerOf(conn *net.UnixConn) (localPeer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return localPeer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return localPeer{}, err
	}
	if credErr != nil {
		return localPeer{}, credErr
	}
	return localPeer{UID: int(cred.Uid), PID: int(cred.Pid)}, nil
}

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
