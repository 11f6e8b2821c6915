//go:build !linux && !darwin

package server

import (
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

const (
	supported = false
	noFollow  = 0
)

func tryLock(*os.File) error { return ErrUnsupported }

func ownerOf(fs.FileInfo) int { return -1 }

func groupOf(fs.FileInfo) int { return -1 }

func alive(int) bool { return true }

func keepDescriptors() {}

func ownGroup(*exec.Cmd) {}

func detached() *syscall.SysProcAttr { return nil }
