package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// suspects says which of Badger's files in dir may be why events are missing, for whoever has to repair it; "" where
// none shows. It looks only: what it says decides nothing.
func suspects(dir string) string {
	all := unnamed(dir)
	logs, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	for _, path := range logs {
		if at, broken := brokenLog(path); broken {
			all = append(all, fmt.Sprintf("%s can't be read from byte %d on", filepath.Base(path), at))
		}
	}
	if len(logs) == 0 {
		all = append(all, "there is no log (*.mem)")
	}
	const most = 4
	if len(all) > most {
		all = append(all[:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + dir + ": " + strings.Join(all, "; ") + ")"
}

// logHeader is what Badger puts in front of a log: 8 bytes for a key, 12 for a nonce.
const logHeader = 20

// brokenLog returns where a log of Badger's stops making sense though something follows. Its entries are
//
//	meta u8 · user meta u8 · uvarints: key length, value length, expiry · key · value · CRC-32C over all before, u32
//
// and zeroes follow the last.
func brokenLog(path string) (at int64, broken bool) {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false
	}
	at = logHeader
	in := bufio.NewReaderSize(io.NewSectionReader(f, at, info.Size()-at), copyBlock)
	for {
		n, err := logEntry(in, info.Size()-at)
		if err != nil {
			break
		}
		at += n
	}
	next := nextData(f, at)
	for next < info.Size() {
		var b [copyBlock]byte
		n, err := f.ReadAt(b[:], next)
		if strings.Trim(string(b[:n]), "\x00") != "" {
			return at, true
		}
		if err != nil || n == 0 {
			break
		}
		next = nextData(f, next+int64(n))
	}
	return at, false
}

var errLogEntry = errors.New("no entry of a log")

// logEntry reads one entry and returns its length, which is at most left.
func logEntry(in *bufio.Reader, left int64) (int64, error) {
	var b [2 + 3*binary.MaxVarintLen64]byte
	head, err := in.Peek(len(b))
	if len(head) < 6 {
		return 0, errors.Join(errLogEntry, err)
	}
	at, size := 2, int64(0)
	for i := range 3 {
		n, used := binary.Uvarint(head[at:])
		if used <= 0 || i < 2 && n > 1<<31 {
			return 0, errLogEntry
		}
		if at += used; i < 2 {
			size += int64(n)
		}
	}
	if size += int64(at); size == int64(at) || size+4 > left {
		return 0, errLogEntry
	}
	sum := crc32.New(crcTable)
	if _, err := io.CopyN(sum, in, size); err != nil {
		return 0, err
	}
	var end [4]byte
	if _, err := io.ReadFull(in, end[:]); err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(end[:]) != sum.Sum32() {
		return 0, errLogEntry
	}
	return size + 4, nil
}
