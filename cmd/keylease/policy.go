package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/strictyaml"
	"keylease/policy"
	"keylease/server"
)

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "Check the policy file, and ask what it would answer", a.policyCheckCommand(), a.policyExplainCommand())
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{Use: "check [FILE]", Short: "Check a policy file, the one that governs by default; nothing is applied",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly("FILE")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.checkNamedPolicy(args[0])
			}
			return a.checkPolicyInUse(cmd.Context())
		}}
}

// checkNamedPolicy checks any file. How it lies here is only warned of: it may be on its way to somewhere else.
func (a *app) checkNamedPolicy(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return usagef("", "reading the policy: %s", err)
	}
	defer f.Close()
	data, err := readAll(f, path, strictyaml.MaxSize)
	if err != nil {
		return usagef("", "%s", err)
	}
	if read := policyFile(path)(""); read.Err != nil {
		a.sayf("keylease: warning: a daemon would not take it as it lies here: %s", terminal(read.Err.Error()))
	}
	return a.checkPolicy(path, data)
}

// checkPolicyInUse checks the file that the running daemon looks at, and what came of it; the configured one where none
// runs.
func (a *app) checkPolicyInUse(ctx context.Context) error {
	s, err := a.settings(true)
	if err != nil {
		return err
	}
	running, err := a.runningPolicy(ctx, &s)
	if err != nil {
		return err
	}
	path := s.PolicyFile
	if running != nil {
		if running.Problem != "" {
			return usagef(goesOn(*running), "%s", running.Problem)
		}
		if running.File == "" {
			a.sayf("keylease: warning: the daemon was started with --no-policy and reads no policy file")
		} else {
			path = running.File
		}
	}
	switch read := policyFile(path)(""); {
	case running != nil && running.Present && read.Err != nil: // of a system's daemon, whose files are not ours to read
		return a.print(map[string]any{"file": path, "hash": running.Hash}, func(w io.Writer) {
			fmt.Fprintf(w, "%s: good, the daemon says: it is in force\n", path)
		})
	case errors.Is(read.Err, fs.ErrNotExist):
		return usagef("without one, what a credential admits is allowed; a file there changes that, as in policy.example.yaml", "there is no policy file %s", path)
	case read.Err != nil:
		return usagef("", "%s", read.Err)
	default:
		return a.checkPolicy(path, read.Data)
	}
}

// runningPolicy is what a daemon that runs says of its policy; nil where there is none to ask. It starts none.
func (a *app) runningPolicy(ctx context.Context, s *settings) (*lease.PolicyStatus, error) {
	named, err := s.named(a.env, "")
	if err != nil {
		return nil, err
	}
	admin := *s
	if admin.paths.Socket = named; named == "" && s.system != nil {
		admin.paths.Socket = s.system.AdminSocket
	}
	c := server.NewAdminClient(server.DialOptions{Paths: admin.paths, Version: version()})
	defer c.Close()
	status, err := c.Status(ctx)
	switch {
	case err == nil:
		return &status.Policy, nil
	case named != "":
		return nil, spoken(err)
	case !errors.Is(err, server.ErrUnreachable):
		a.sayf("keylease: warning: the running daemon was not asked, so this is about the configured file: %s", terminal(spoken(err).Error()))
	}
	return nil, nil
}

// goesOn says what governs while the file on disk does not.
func goesOn(p lease.PolicyStatus) string {
	if p.Present {
		return "put it right: it holds from the next call on; until then the policy that was read last governs"
	}
	return "put it right: it holds from the next call on; until then there is no policy, and what a credential admits is allowed"
}

func (a *app) checkPolicy(path string, data []byte) error {
	p, err := policy.Parse(path, data)
	if err != nil {
		return err
	}
	warnings := p.Warnings()
	if warnings == nil {
		warnings = []string{}
	}
	return a.print(map[string]any{"file": path, "rules": p.Rules(), "hash": p.Hash(), "warnings": warnings}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: good, %s\n", path, plural(p.Rules(), "rule"))
		for _, text := range warnings {
			a.sayf("keylease: warning: %s", terminal(text))
		}
	})
}

func (a *app) policyExplainCommand() *cobra.Command {
	var q server.Question
	var typ, proof string
	c := &cobra.Command{Use: "explain", Short: "Say whether an identity may lease a credential, and which rule says so", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if err := tokenID(q.Token); err != nil {
				return err
			}
			switch {
			case q.Identity != "" && q.Token != "":
				return usagef("a token says whose it is: leave --identity out", "--identity and --token: not both")
			case q.Credential == "" || (q.Identity == "") == (q.Token == ""):
				return usagef("keylease policy explain --identity claude-code --credential openai-dev", "--credential is needed, and --identity or --token")
			case q.Token != "" && (cmd.Flags().Changed("type") || cmd.Flags().Changed("proof")):
				return usagef("leave them out", "--type and --proof do not go with --token, which says both")
			}
			if q.Proof, err = identity.ParseProof(proof); err != nil {
				return usagef("", "--proof: %s", err)
			}
			if q.Type = identity.Type(typ); q.Type != identity.Agent && q.Type != identity.Human {
				return usagef("", "--type must be agent or human")
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				answer, err := c.Explain(cmd.Context(), q)
				if err != nil {
					return err
				}
				status, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				if status.Policy.Problem != "" {
					a.sayf("keylease: warning: the file on disk is not in force: %s", terminal(status.Policy.Problem))
				}
				return a.print(answer, func(w io.Writer) { explain(w, answer) })
			})
		}}
	c.Flags().SortFlags = false
	c.Flags().StringVar(&q.Identity, "identity", "", "who asks")
	c.Flags().StringVar(&q.Token, "token", "", "the id (tk_…) of the token that asks, with what it narrows, instead of an identity")
	c.Flags().StringVar(&q.Credential, "credential", "", "for what")
	c.Flags().StringVar(&typ, "type", "agent", "agent or human")
	c.Flags().StringVar(&proof, "proof", "declared", "how the name is proved: declared, token, oidc or mtls")
	return c
}

func explain(w io.Writer, a server.Answer) {
	verdict := "no"
	if a.Allow {
		verdict = "yes"
	}
	fmt.Fprintf(w, "%s: %s\n", verdict, terminal(a.Reason))
	if a.Allow {
		fmt.Fprintf(w, "  for %s, at most %s, as %s\n", a.DefaultTTL, a.MaxTTL, joined(a.Deliveries))
		fmt.Fprintf(w, "  live leases: %s on the credential, %s for %s under the rule\n", limit(a.MaxLeases), limit(a.RuleMaxLeases), terminal(a.Identity))
		switch a.Approval {
		case policy.User:
			fmt.Fprintln(w, "  once the user agrees, as the agent's own client reports, or an operator does (keylease approvals)")
		case policy.Operator:
			fmt.Fprintln(w, "  once an operator agrees (keylease approvals)")
		}
		if a.PurposeRequired {
			fmt.Fprintln(w, "  a purpose must be given")
		}
	}
	for _, s := range a.Steps {
		what := "matches"
		if !s.Matched {
			what = "does not match: " + s.Why
		}
		if s.Effect == policy.EffectNarrow {
			fmt.Fprintf(w, "  %s %s\n", s.Rule, terminal(what))
			continue
		}
		fmt.Fprintf(w, "  rule %q (%s) %s\n", terminal(s.Rule), s.Effect, terminal(what))
	}
}

func limit(n *int) string {
	if n == nil {
		return "no limit"
	}
	return "at most " + strconv.Itoa(*n)
}

func joined(list []policy.Delivery) string {
	words := make([]string, len(list))
	for i, d := range list {
		words[i] = string(d)
	}
	return strings.Join(words, ", ")
}
