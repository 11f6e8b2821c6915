package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"keylease/server"
)

// helperFlags are those of every helper.
type helperFlags struct{ credential, ttl, purpose, as string }

func (a *app) helperCommand() *cobra.Command {
	return group("helper", "Be the program that git or the AWS tools ask for credentials", a.helperGitCommand(), a.helperAWSCommand())
}

func (a *app) helperFlags(c *cobra.Command, f *helperFlags, named, ttl string) {
	c.Flags().SortFlags = false
	c.Flags().StringVar(&f.credential, "credential", "", named)
	c.Flags().StringVar(&f.ttl, "ttl", ttl, "how long the lease is, where one is opened")
	c.Flags().StringVar(&f.purpose, "purpose", "", "why, where a lease is opened")
	c.Flags().StringVar(&f.as, "as", "", "name of the agent, where no token says it")
}

// unseen refuses to show a value: what a helper prints is for the program that started it.
func (a *app) unseen(program, verb string) error {
	if isTerminal(a.out) {
		return usagef("configure it, and let "+program+" run it: keylease help helper "+verb+" says how", "this prints a secret for %s to read, and stdout is a terminal", program)
	}
	return nil
}

// lend has the daemon lend a value to a program that it does not start, and show writes it to that program. The lease is
// a live one of the caller's own, or one that is opened and lasts its time: the program goes on with the value.
func (a *app) lend(ctx context.Context, f helperFlags, q server.ExecRequest, show func(*server.Exec) error) error {
	if a.json {
		return usagef("leave it out", "what a helper prints is as its program wants it; there is no --json")
	}
	var err error
	if q.TTL, err = optionalTTL("--ttl", f.ttl); err != nil {
		return err
	}
	q.Credential, q.Keep = f.credential, true
	if f.purpose != "" {
		q.Purpose = f.purpose
	}
	_, err = a.withValue(ctx, f.as, q, func(e *server.Exec) (int, error) {
		if err := show(e); err != nil {
			return exitError, err
		}
		return exitOK, nil
	})
	if waits := (*server.ApprovalError)(nil); errors.As(err, &waits) {
		return fail(exitApproval, "tell the user; the same again goes on waiting for the same answer", "%w", err)
	}
	return spoken(err)
}

// write puts out all that a helper answers, in one piece, and forgets it.
func (a *app) write(answer []byte) error {
	defer clear(answer)
	if _, err := a.out.Write(answer); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}
