package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"keylease/store"
)

// trialCommand is what a daemon starts to open a copy of its database where it may die of it: see store.Options.Trial.
func (a *app) trialCommand() *cobra.Command {
	return &cobra.Command{Use: "trial DIR", Hidden: true, Args: exactly("a copy of the database"), RunE: func(_ *cobra.Command, args []string) error {
		return store.TryOut(args[0], a.out)
	}}
}

// tryOut runs trialCommand in a process of its own, without our environment: the root key may be in it.
func tryOut(ctx context.Context, dir string) ([]byte, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var out, words bytes.Buffer
	cmd := exec.CommandContext(ctx, exe, "trial", "--", dir)
	cmd.Env, cmd.Dir = []string{"GOTRACEBACK=none"}, dir
	cmd.Stdout, cmd.Stderr = &out, &words
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if said := lastWords(words.String()); ended.ExitCode() == exitIntegrity || !ended.Exited() || strings.HasPrefix(said, "panic: ") || strings.HasPrefix(said, "fatal error: ") {
			return nil, fmt.Errorf("%w: %s", store.ErrDied, said)
		}
	}
	return out.Bytes(), err
}

// lastWords is the line in which a process says why it ends.
func lastWords(said string) string {
	const most = 500
	for line := range strings.Lines(said) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "keylease: error: ")
		if line != "" {
			return line[:min(len(line), most)]
		}
	}
	return "without a word"
}
