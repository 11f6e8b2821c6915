package server

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// The process behind a socket that looks right may still be another user's.
func TestAPeerOfAnotherUserIsSentNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to become somebody else")
	}
	p := shortDir(t)
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread that is somebody else ends with this goroutine
		if l, _ = net.Listen("unix", p.SocketPath()); l == nil {
			done <- errors.New("can't listen")
			return
		}
		raw, err := l.(*net.UnixListener).SyscallConn()
		if err == nil {
			_, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 12345, ^uintptr(0))
			if err = nil; errno != 0 {
				err = errno
			}
		}
		if err == nil { // who listens last is who the kernel names
			err = raw.Control(func(fd uintptr) { _ = syscall.Listen(int(fd), 10) })
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan int, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _ := conn.Read(make([]byte, 1000))
		heard <- n
	}()
	if _, err := helloAdmin(context.Background(), DialOptions{Paths: p}); !errors.Is(err, ErrUntrusted) {
		t.Errorf("got %v", err)
	}
	if n := <-heard; n != 0 {
		t.Errorf("the other user heard %d bytes", n)
	}
}
