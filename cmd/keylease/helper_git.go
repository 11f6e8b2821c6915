package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/server"
)

const maxGitAsks = 64 << 10 // bytes of git's question, which is a few lines

func (a *app) helperGitCommand() *cobra.Command {
	var f helperFlags
	c := &cobra.Command{Use: "git get|store|erase", Short: "Sign git in with a leased credential (git's credential helper protocol)", Args: exactly("get|store|erase"),
		Long: `Answers git when it asks for a user and password, as git's credential helpers do. In ~/.gitconfig:

    [credential "https://github.com"]
        helper =
        helper = "!keylease helper git --credential github"

The empty line takes out the helpers configured before, which git would otherwise give the key to keep.

With --credential, a refusal ends git's command, so that it does not wait at a prompt. Without, the credential is the
one that is for the server git asks about, and where there is none git goes on to its next helper. Either way the key
goes only to the servers that the operator said it is for: by its upstream, or by the metadata service or host. The
value is never stored here, and store and erase do nothing. Who is asking: see keylease exec.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "get" { // what git does not know yet is to be ignored, says its manual
				_, err := io.Copy(io.Discard, io.LimitReader(a.in, maxGitAsks))
				return err
			}
			if err := a.unseen("git", "git"); err != nil {
				return err
			}
			q, err := readGitAsks(a.in)
			if err != nil {
				return err
			}
			if !q.web() { // the passphrase of a certificate, say
				return nil
			}
			err = a.lend(cmd.Context(), f, server.ExecRequest{Origin: q.origin(), Program: "git", Purpose: "git signs in at " + q.origin()}, func(e *server.Exec) error {
				answer, err := q.answer(e, time.Now())
				if err != nil {
					return err
				}
				return a.write(answer)
			})
			return a.gitRefused(err, f.credential != "", q.origin())
		}}
	a.helperFlags(c, &f, "the credential to sign in with (default: the one that is for git's server)", "5m")
	return c
}

// gitRefused says what there is to say where git got no answer. Where a credential was named nobody else is meant to
// answer: git is told not to ask on, and not to wait at a prompt that an agent never sees.
func (a *app) gitRefused(err error, named bool, origin string) error {
	var r *refused
	switch {
	case err == nil:
		return nil
	case named:
		fmt.Fprintln(a.out, "quit=1")
	case errors.As(err, &r) && r.Code == lease.NotAvailable:
		return fail(exitNotFound, "", "no credential for %s is available to you; git asks on", terminal(origin))
	}
	return err
}

// gitAsks is git's question.
type gitAsks struct {
	protocol, host, username string
	authtype                 bool // it understands an answer that no other helper may store
}

// readGitAsks reads key=value lines up to an empty line or the end. Keys that mean nothing here are passed over, as are
// those that later versions of git will bring.
func readGitAsks(from io.Reader) (q gitAsks, err error) {
	lines := bufio.NewScanner(io.LimitReader(from, maxGitAsks))
	lines.Buffer(nil, maxGitAsks)
	for lines.Scan() && lines.Text() != "" {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return q, usagef("let git run it", "what came on stdin is not git's question: a line has no =")
		}
		switch key {
		case "protocol":
			q.protocol = value
		case "host":
			q.host = value
		case "username":
			q.username = value
		case "capability[]":
			q.authtype = q.authtype || value == "authtype"
		}
	}
	if err := lines.Err(); err != nil {
		return q, fmt.Errorf("reading git's question: %w", err)
	}
	return q, nil
}

// web reports whether this is about a server on the web, where keys are used.
func (q gitAsks) web() bool {
	return q.host != "" && slices.Contains([]string{"https", "http"}, q.protocol)
}

func (q gitAsks) origin() string { return q.protocol + "://" + q.host }

// answer is what git is told: until when, as whom, and the value. The user in an address is often somebody's own name,
// which servers do not look at when the password is a token; where the operator says whose the key is, it has to be theirs.
func (q gitAsks) answer(e *server.Exec, now time.Time) ([]byte, error) {
	user, owner := e.User, e.Metadata["username"]
	if owner != "" && q.username != "" && !strings.EqualFold(owner, q.username) {
		return nil, fail(exitNotFound, "take the name out of the repository's address, or name another credential",
			"%s signs in as %s, and the address says %s", terminal(e.Credential), terminal(owner), terminal(q.username))
	}
	if user == "" {
		user = q.username
	}
	if user == "" {
		user = "x-access-token"
	}
	if strings.ContainsAny(string(e.Value), "\n\x00") || strings.ContainsAny(user, "\n\x00") || q.authtype && strings.Contains(user, ":") {
		return nil, fail(exitError, "store it as one line", "the value of %s can't be said in git's protocol", terminal(e.Credential))
	}
	until := max(e.ExpiresAt.Unix(), now.Unix()+1)
	if !q.authtype {
		return fmt.Appendf(nil, "username=%s\npassword_expiry_utc=%d\npassword=%s\n", user, until, e.Value), nil
	}
	pair := append([]byte(user+":"), e.Value...) // what git would make of them, marked as nothing that a helper may store
	defer clear(pair)
	out := fmt.Appendf(nil, "capability[]=authtype\nauthtype=Basic\nephemeral=1\npassword_expiry_utc=%d\ncredential=", until)
	return append(base64.StdEncoding.AppendEncode(out, pair), '\n'), nil
}
