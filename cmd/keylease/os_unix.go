//go:build unix

package main

import (
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	noFollow = syscall.O_NOFOLLOW
	noWait   = syscall.O_NONBLOCK
)

// ownerOf returns who owns a file, or -1.
func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// groupOf returns which group a file is in, or -1.
func groupOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Gid)
	}
	return -1
}

// fileStamp changes whenever the file does: the change time can't be set back by whoever edits it.
func fileStamp(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	return string(appendStamp(make([]byte, 0, maxStamp), &st)), nil
}

// hasStamp reports whether fileStamp of what path is itself is stamp, without opening it; false where that can't be told.
func hasStamp(path, stamp string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return false
	}
	var b [maxStamp]byte
	return string(appendStamp(b[:0], &st)) == stamp
}

// appendStamp appends what changes with the file's content, owner and mode, and with the file.
func appendStamp(b []byte, st *unix.Stat_t) []byte {
	for _, n := range [...]int64{int64(st.Dev), int64(st.Ino), st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec), int64(st.Ctim.Sec), int64(st.Ctim.Nsec)} {
		b = strconv.AppendInt(append(b, ' '), n, 36)
	}
	return b
}

const maxStamp = 7 * 15 // a space and 14 digits of base 36, or 13 and a sign

// harden keeps what the daemon holds from core dumps and, where the system can, from other processes of the user.
func harden() {
	unix.Umask(0o077)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) // lowering a limit is always allowed
	undumpable()
}

// hangups delivers SIGHUPs until stop is called.
func hangups() (ch <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// inherited lists the descriptors, beyond the three, that whoever started us left open for what we start. Starting a
// daemon closes them for that (see server.Dial), which is not meant for a command.
func inherited() (fds []int) {
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// handOn opens them for it again.
func handOn(fds []int) {
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
}
