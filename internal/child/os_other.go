//go:build !linux && !darwin

package child

import "errors"

func (c *Command) Run() (int, error) { return Failed, ErrUnsupported }

func inMemory(string) error { return errors.New("this system has no file system in memory") }
