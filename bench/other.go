//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: error: it reads memory and processor time from Linux's /proc; run it there")
	os.Exit(1)
}
