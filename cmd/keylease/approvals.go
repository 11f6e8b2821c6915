package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/internal/passphrase"
	"keylease/server"
)

// watchEvery is how often approvals --watch looks for new questions.
const watchEvery = time.Second

func (a *app) approvalsCommand() *cobra.Command {
	var watch, all bool
	c := &cobra.Command{Use: "approvals", Short: "List the questions that wait for a person's yes",
		Long: `List the questions that wait for a person's yes. Answer one with keylease approve ID or keylease deny ID. A question
waits five minutes; then it counts as denied, and whoever asked has to ask anew.`,
		Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				if watch {
					return a.watchApprovals(cmd.Context(), c)
				}
				list, err := c.Approvals(cmd.Context())
				if err != nil {
					return err
				}
				if !all {
					list.Approvals = waiting(list.Approvals)
				}
				return a.print(list, func(w io.Writer) { approvalList(w, list.Approvals, time.Now()) })
			})
		}}
	c.Flags().BoolVar(&watch, "watch", false, "print each new question as it comes, until ^C")
	c.Flags().BoolVar(&all, "all", false, "those of the last hour that are over, too")
	c.AddCommand(a.passphraseCommand())
	return c
}

// waiting are those that a person can still answer.
func waiting(list []lease.ApprovalInfo) []lease.ApprovalInfo {
	out := []lease.ApprovalInfo{}
	for _, i := range list {
		if i.Status == lease.Pending {
			out = append(out, i)
		}
	}
	return out
}

func approvalList(w io.Writer, list []lease.ApprovalInfo, now time.Time) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no question waits")
	}
	for i, q := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		showQuestion(w, q, now)
	}
}

// showQuestion prints all of a question. What the agent says of itself stands last.
func showQuestion(w io.Writer, q lease.ApprovalInfo, now time.Time) {
	state := string(q.Status)
	switch {
	case q.Status == lease.Pending:
		state = "waits for an answer, over " + left(q.ExpiresAt, now)
	case q.Status == lease.Approved:
		state = "approved, to be fetched; over " + left(q.ExpiresAt, now)
	case q.Reason != "":
		state += ": " + q.Reason
	}
	fmt.Fprintf(w, "%s  (%s)\n", q.ID, terminal(state))
	for line := range strings.Lines(q.Question) {
		fmt.Fprintln(w, terminal(strings.TrimRight(line, "\n")))
	}
}

// watchApprovals prints each question once, for people or as one JSON object a line.
func (a *app) watchApprovals(ctx context.Context, c *server.AdminClient) error {
	seen := map[string]bool{}
	for {
		list, err := c.Approvals(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, q := range waiting(list.Approvals) {
			if seen[q.ID] {
				continue
			}
			seen[q.ID] = true
			if a.json {
				if err := json.NewEncoder(a.out).Encode(q); err != nil {
					return err
				}
				continue
			}
			showQuestion(a.out, q, time.Now())
			fmt.Fprintf(a.out, "  keylease approve %s   or   keylease deny %s\n\n", q.ID, q.ID)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func (a *app) approveCommand() *cobra.Command {
	return &cobra.Command{Use: "approve ID", Short: "Say yes to one question of keylease approvals",
		Long: `Say yes to one question of keylease approvals: the command is the yes, to what it prints and nothing else. Whoever
asked has five minutes to come for the lease. Where admin.passphrase is set it asks for that, at a terminal only.`,
		Args: exactly("ID"), RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				list, err := a.question(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				var secret []byte
				if list.Passphrase {
					if secret, err = a.askPassphrase(cmd.Context()); err != nil {
						return err
					}
					defer clear(secret)
				}
				q, err := c.Approve(cmd.Context(), args[0], secret)
				if err != nil {
					return err
				}
				return a.print(q, func(w io.Writer) {
					fmt.Fprintf(w, "approved; whoever asked can fetch it until %s\n", moment(q.ExpiresAt))
				})
			})
		}}
}

func (a *app) denyCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{Use: "deny ID", Short: "Say no to one question of keylease approvals", Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				if _, err := a.question(cmd.Context(), c, args[0]); err != nil {
					return err
				}
				q, err := c.Deny(cmd.Context(), args[0], reason)
				if err != nil {
					return err
				}
				return a.print(q, func(w io.Writer) { fmt.Fprintln(w, "denied") })
			})
		}}
	c.Flags().StringVar(&reason, "reason", "", "why; the agent is told")
	return c
}

// question finds one question and, where people read, shows all of it.
func (a *app) question(ctx context.Context, c *server.AdminClient, id string) (server.Approvals, error) {
	list, err := c.Approvals(ctx)
	if err != nil {
		return list, err
	}
	for _, q := range list.Approvals {
		if q.ID != id {
			continue
		}
		if !a.json {
			showQuestion(a.out, q, time.Now())
		}
		return list, nil
	}
	return list, fail(exitNotFound, "keylease approvals lists those that wait", "there is no question %q", terminal(id))
}

// askPassphrase takes the passphrase from a person at a terminal and from nowhere else: what a program can pipe in, an
// agent's shell can.
func (a *app) askPassphrase(ctx context.Context) ([]byte, error) {
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return nil, fail(exitDenied, "run it at a terminal", "approving needs the passphrase of admin.passphrase, which is asked for at a terminal only")
	}
	return a.typed(ctx, f, "passphrase: ")
}

func (a *app) passphraseCommand() *cobra.Command {
	return &cobra.Command{Use: "passphrase", Short: "Make the hash of a passphrase that approve is to ask for",
		Long: `Make the hash of a passphrase that approve is to ask for. It is typed at a terminal, twice, and what is printed goes
into keylease.yaml under admin.passphrase; restart the daemon then. Without system mode it is a speed bump: whoever has
a shell under the daemon's user can edit that file too.`,
		Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
			f, ok := a.in.(*os.File)
			if !ok || !isTerminal(f) {
				return usagef("run it at a terminal", "a passphrase is typed at a terminal only")
			}
			typed, err := a.ask(cmd.Context(), f, "passphrase")
			if err != nil {
				return err
			}
			defer clear(typed)
			phc, err := passphrase.New(typed)
			if err != nil {
				return usagef("", "%s", err)
			}
			return a.print(map[string]string{"passphrase": phc}, func(w io.Writer) { fmt.Fprintf(w, "admin:\n  passphrase: %s\n", phc) })
		}}
}

// understandApprovals settles what approving takes and who is told of questions.
func (s *settings) understandApprovals(from sources) (err error) {
	if s.Admin.Passphrase != "" {
		if s.passphrase, err = passphrase.Parse(s.Admin.Passphrase); err != nil {
			return from.fault("admin.passphrase", "keylease approvals passphrase makes one", "%s", err)
		}
	}
	if n := s.Approvals.Notify; len(n) > 0 && !filepath.IsAbs(n[0]) {
		return from.fault("approvals.notify", "write it as in [/usr/local/bin/tell-me, --urgent]", "the first word must be the absolute path of a program")
	}
	return nil
}
