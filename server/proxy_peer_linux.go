package server

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// uidBehind asks the kernel whose socket is at the other end of a loopback connection. uid is -1 where there is none: it
// was closed already. tells is false where this system has no way to know.
func uidBehind(conn *net.TCPConn) (uid int, tells bool) {
	far, err1 := netip.ParseAddrPort(conn.RemoteAddr().String())
	near, err2 := netip.ParseAddrPort(conn.LocalAddr().String())
	if err1 != nil || err2 != nil {
		return -1, true
	}
	far, near = bare(far), bare(near)
	uid, err := askDiag(far, near)
	if err == nil {
		return uid, true
	}
	if uid, err = readTable(far, near); err == nil {
		return uid, true
	}
	return 0, false
}

func bare(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// askDiag asks for one socket by its addresses (sock_diag(7)): inet_diag_req_v2 goes, inet_diag_msg comes.
func askDiag(far, near netip.AddrPort) (int, error) {
	const byFamily, headLen, reqLen, msgLen = 20, 16, 56, 72
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	long := unix.NsecToTimeval(int64(time.Second))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &long)
	b := make([]byte, headLen+reqLen)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], byFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	req := b[headLen:]
	req[0], req[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if far.Addr().Is4() {
		req[0] = unix.AF_INET
	}
	ne.PutUint32(req[4:], ^uint32(0)) // any state
	id := req[8:]
	binary.BigEndian.PutUint16(id[0:], far.Port())
	binary.BigEndian.PutUint16(id[2:], near.Port())
	copy(id[4:20], far.Addr().AsSlice())
	copy(id[20:36], near.Addr().AsSlice())
	ne.PutUint64(id[40:], ^uint64(0)) // no cookie
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 4096)
	n, from, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return 0, err
	}
	if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 || n < headLen+4 {
		return 0, errors.New("not the kernel's answer")
	}
	switch ne.Uint16(answer[4:]) {
	case unix.NLMSG_ERROR:
		if errno := unix.Errno(-int32(ne.Uint32(answer[headLen:]))); errno != unix.ENOENT {
			return 0, errno
		}
		return -1, nil
	case byFamily:
		if n < headLen+msgLen {
			return 0, errors.New("a short answer")
		}
		msg := answer[headLen:]
		if ne.Uint32(msg[68:]) == 0 { // no inode: its process has closed it, and it says 0 for a uid
			return -1, nil
		}
		return int(ne.Uint32(msg[64:])), nil
	}
	return 0, errors.New("an answer of another kind")
}

// readTable looks for the socket in /proc/net/tcp and tcp6, where sock_diag is not there: local address, remote address,
// …, uid as the eighth field, inode as the tenth.
func readTable(far, near netip.AddrPort) (int, error) {
	file := "/proc/net/tcp"
	if far.Addr().Is6() {
		file = "/proc/net/tcp6"
	}
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	local, remote := tableAddr(far), tableAddr(near)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		field := strings.Fields(lines.Text())
		if len(field) < 10 || field[1] != local || field[2] != remote {
			continue
		}
		uid, err := strconv.Atoi(field[7])
		if err != nil || field[9] == "0" {
			return -1, nil
		}
		return uid, nil
	}
	if local == "" {
		return 0, fs.ErrInvalid
	}
	return -1, nil
}

// tableAddr is how the kernel prints an address there: words of 32 bits in its own byte order.
func tableAddr(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(b)), a.Port())
}
