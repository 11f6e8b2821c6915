//go:build linux || darwin

package server

import (
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

const supported = true

// tryLock takes the file's lock without waiting. The kernel lets go of it when the process ends, however it ends,
// which is what a pid file can't promise.
func tryLock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// ownerOf returns who owns a file.
func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// groupOf returns which group a file is in.
func groupOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Gid)
	}
	return -1
}

// detached makes a child a session of its own, so that it outlives the terminal and the agent that started it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// ownGroup makes a child the head of a group of its own, all of which is killed when its time is up.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// alive reports whether there is a process of this number.
func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) != syscall.ESRCH }

// keepDescriptors marks whatever the client left open in us as not to be inherited: a pipe of its, kept by a daemon
// that lives for days, would never end for whoever waits at the other side.
func keepDescriptors() {
	for fd := 3; fd < 1024; fd++ {
		syscall.CloseOnExec(fd)
	}
}

const noFollow = syscall.O_NOFOLLOW
