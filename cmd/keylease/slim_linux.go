package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// forgetCode gives back the pages of the program that starting it has touched: a relay needs few of them again, and gets
// those from the file. Only what is read-only and as it is in the file is given back.
func forgetCode() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	var from, to uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		field := strings.Fields(lines.Text())
		switch {
		case len(field) >= 6 && strings.HasPrefix(field[5], "/") && !strings.Contains(field[1], "w"):
			begin, end, _ := strings.Cut(field[0], "-")
			from, _ = strconv.ParseUint(begin, 16, 64)
			to, _ = strconv.ParseUint(end, 16, 64)
		case len(field) >= 5 && strings.Contains(field[0], "-"):
			from, to = 0, 0
		case len(field) == 3 && field[0] == "Anonymous:" && field[1] == "0" && from < to:
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
		}
	}
}
