//go:build linux || darwin

package server

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// B8b: who squats the socket's path or folder reads nothing.
func TestASquattedSocketIsSentNothing(t *testing.T) {
	listen := func(p Paths) (net.Listener, chan string) {
		l, err := net.Listen("unix", p.SocketPath())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		heard := make(chan string, 10)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				b := make([]byte, 1000)
				if n, _ := conn.Read(b); n > 0 {
					heard <- string(b[:n])
				}
			}
		}()
		return l, heard
	}
	folder := func(mode os.FileMode) Paths {
		p := shortDir(t)
		if err := os.MkdirAll(p.Data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p.Data, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	squats := map[string]func() (Paths, chan string){
		"a folder open to others": func() (Paths, chan string) {
			p := folder(0o770)
			_, heard := listen(p)
			return p, heard
		},
		"a folder that is a link": func() (Paths, chan string) {
			real := folder(0o700)
			_, heard := listen(real)
			p := shortDir(t)
			if err := os.Symlink(real.Data, p.Data); err != nil {
				t.Fatal(err)
			}
			return p, heard
		},
		"a socket that is a link": func() (Paths, chan string) {
			real, p := folder(0o700), folder(0o700)
			_, heard := listen(real)
			if err := os.Symlink(real.SocketPath(), p.SocketPath()); err != nil {
				t.Fatal(err)
			}
			return p, heard
		},
	}
	if os.Geteuid() == 0 {
		squats["a folder of another user"] = func() (Paths, chan string) {
			p := folder(0o700)
			_, heard := listen(p)
			if err := os.Chown(p.Data, 12345, 12345); err != nil {
				t.Fatal(err)
			}
			return p, heard
		}
		squats["a socket of another user"] = func() (Paths, chan string) {
			p := folder(0o700)
			_, heard := listen(p)
			if err := os.Chown(p.SocketPath(), 12345, 12345); err != nil {
				t.Fatal(err)
			}
			return p, heard
		}
	}
	for name, squat := range squats {
		t.Run(name, func(t *testing.T) {
			p, heard := squat()
			o := DialOptions{Paths: p, AutoStart: true, Start: Start{Exe: "/bin/false"}}
			if _, err := dialAdmin(context.Background(), o); !errors.Is(err, ErrUntrusted) {
				t.Errorf("the CLI got %v", err)
			}
			s := startRelay(t, context.Background(), RelayOptions{Paths: p, AutoStart: true, Start: o.Start, Token: "kl_fake_token"})
			if a := s.ask(handshake("0", "x")); a.Error == nil {
				t.Errorf("the relay got %s", a.raw)
			}
			select {
			case b := <-heard:
				t.Errorf("the squatter heard %q", b)
			case <-time.After(50 * time.Millisecond):
			}
		})
	}
}
