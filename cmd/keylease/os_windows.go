package main

import (
	"fmt"
	"io/fs"
	"os"
)

const noFollow, noWait = 0, 0

func ownerOf(fs.FileInfo) int { return os.Geteuid() }

func groupOf(fs.FileInfo) int { return -1 }

func fileStamp(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	return fmt.Sprint(info.Size(), info.ModTime().UnixNano()), nil
}

func hasStamp(string, string) bool { return false }

func harden() {}

func undumpable() {}

func inherited() []int { return nil }

func handOn([]int) {}

func hangups() (<-chan os.Signal, func()) { return nil, func() {} }

func alive(int) bool { return false }
