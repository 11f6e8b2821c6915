package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/server"
)

func (a *app) freezeCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{Use: "freeze", Short: "Stop all lending now, until thaw: nothing is leased, renewed or handed out", Args: exactly(),
		Long: `Stop all lending now, until thaw: nothing is leased, renewed, handed out or used, through restarts too. Requests
and commands under way are cut. Agents may still list and release; leases that are live end at their time
(revoke-leases --all ends them now). A value that an agent has seen stays seen.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				before, unknown := c.Status(cmd.Context()) // which is no reason not to stop
				f, err := c.Freeze(cmd.Context(), reason)
				if err != nil {
					return err
				}
				if unknown == nil && before.Frozen != nil && reason != "" && reason != f.Reason {
					a.sayf("keylease: already frozen since %s; the first reason is kept", moment(f.Since))
				}
				return a.print(f, func(w io.Writer) {
					fmt.Fprintf(w, "%s; keylease thaw ends it, keylease revoke-leases --all ends what is live\n", terminal(frozen(f)))
				})
			})
		}}
	c.Flags().StringVar(&reason, "reason", "", "why, for the trail and other operators; agents are not told")
	return c
}

// tellState says on stderr that nothing is lent, and that the clock is not this system's, where that is so.
func (a *app) tellState(ctx context.Context, c *server.AdminClient) (server.Status, error) {
	s, err := c.Status(ctx)
	if err == nil && s.Frozen != nil {
		a.sayf("keylease: %s; keylease thaw ends it", terminal(frozen(*s.Frozen)))
	}
	if behind := clockBehind(s); behind > 0 {
		a.sayf("keylease: this system's clock is %s behind the one that leases end by", behind)
	}
	return s, err
}

// clockBehind is how far this system's clock is behind the daemon's, in whole seconds: times are to be told by the
// daemon's.
func clockBehind(s server.Status) time.Duration {
	return time.Duration(s.ClockBehind * float64(time.Second)).Round(time.Second)
}

// frozen says it for people.
func frozen(f lease.Frozen) string {
	text := "lending is frozen since " + moment(f.Since)
	if f.Reason != "" {
		text += " (" + f.Reason + ")"
	}
	return text
}

func (a *app) thawCommand() *cobra.Command {
	return &cobra.Command{Use: "thaw", Short: "Lend again after freeze", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withAdmin(func(c *server.AdminClient) error {
			was, err := c.Thaw(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]bool{"was_frozen": was}, func(w io.Writer) {
				if was {
					fmt.Fprintln(w, "lending again")
				} else {
					fmt.Fprintln(w, "lending was not frozen")
				}
			})
		})
	}}
}
