package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/server"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Tokens prove to HTTP, SSE and the local socket who is asking",
		a.tokenCreateCommand(), a.tokenLsCommand(), a.tokenRotateCommand(), a.tokenRevokeCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var who, typ, life, longest string
	var credentials []string
	var uses int
	c := &cobra.Command{Use: "create", Short: "Make a token for an identity; it is shown once", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if who == "" {
				return usagef("keylease token create --identity claude-code", "--identity is missing")
			}
			d, err := optionalTTL("--ttl", life)
			if err != nil {
				return err
			}
			most, err := optionalTTL("--max-ttl", longest)
			if err != nil {
				return err
			}
			for i, pattern := range credentials {
				credentials[i] = strings.TrimSpace(pattern)
			}
			switch { // an empty limit was meant to be one, so it is not taken for none
			case cmd.Flags().Changed("credentials") && len(credentials) == 0:
				return usagef("--credentials 'openai-*'; leave it out for all that the identity may lease", "--credentials is empty")
			case cmd.Flags().Changed("max-ttl") && most == 0:
				return usagef("--max-ttl 10m; leave it out for no further limit", "--max-ttl is empty")
			case cmd.Flags().Changed("uses") && uses < 1:
				return usagef("leave it out for no limit", "--uses must be 1 or more")
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				t, err := c.CreateToken(cmd.Context(), server.TokenRequest{Type: identity.Type(typ), Identity: who, TTL: d,
					Credentials: credentials, MaxTTL: most, Uses: uses})
				if err != nil {
					return err
				}
				return a.showToken(t)
			})
		}}
	c.Flags().SortFlags = false
	c.Flags().StringVar(&who, "identity", "", "whom the token stands for")
	c.Flags().StringVar(&typ, "type", "agent", "agent or human")
	c.Flags().StringVar(&life, "ttl", "", "how long it is good for (default until it is revoked)")
	c.Flags().StringSliceVar(&credentials, "credentials", nil, "only these of what the identity may lease: names or patterns like 'openai-*'; may be repeated")
	c.Flags().StringVar(&longest, "max-ttl", "", "the longest time that a lease of it may last, renewals included")
	c.Flags().IntVar(&uses, "uses", 0, "how many leases it may open; renewals are not counted (default no limit)")
	return c
}

// tokenID refuses a token's text where its id belongs, without repeating it.
func tokenID(arg string) error {
	if strings.HasPrefix(strings.TrimSpace(arg), "kl_") {
		return usagef("name its id (tk_…), see keylease token ls", "that is a token's text, and now stands in your shell's history")
	}
	return nil
}

// showToken prints the token alone on stdout, so that $(…) and pipes get nothing else.
func (a *app) showToken(t server.NewToken) error {
	return a.print(t, func(w io.Writer) {
		fmt.Fprintln(w, t.Token)
		until := "until it is revoked"
		if t.ExpiresAt != nil {
			until = "until " + moment(*t.ExpiresAt)
		}
		a.sayf("keylease: %s stands for %s %s; it is not shown again", t.ID, t.Identity, until)
		if less := narrowed(t.TokenInfo); less != "" {
			a.sayf("keylease: it can lease less than %s may: %s", t.Identity, less)
		}
		if t.PreviousUntil != nil {
			a.sayf("keylease: the text before it works until %s", moment(*t.PreviousUntil))
		}
	})
}

// narrowed says what a token may do less than its identity; "" for nothing.
func narrowed(t lease.TokenInfo) string {
	var words []string
	if t.Credentials != nil {
		words = append(words, strings.Join(t.Credentials, ","))
	}
	if t.MaxTTL != "" {
		words = append(words, "at most "+t.MaxTTL)
	}
	if t.Uses != nil {
		words = append(words, fmt.Sprintf("%d of %s left", *t.UsesLeft, plural(*t.Uses, "lease")))
	}
	return strings.Join(words, "; ")
}

func (a *app) tokenLsCommand() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the tokens, without their text", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withAdmin(func(c *server.AdminClient) error {
			list, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]any{"tokens": list}, func(w io.Writer) {
				rows := make([][]string, len(list))
				for i, t := range list {
					ends := "never"
					if t.ExpiresAt != nil {
						ends = moment(*t.ExpiresAt)
					}
					used := "never"
					if t.LastUsedAt != nil {
						used = moment(*t.LastUsedAt)
					}
					if t.PreviousUntil != nil {
						t.State += " (text before works until " + moment(*t.PreviousUntil) + ")"
					}
					rows[i] = []string{t.ID, string(t.Type), t.Identity, t.State, moment(t.CreatedAt), ends, used, narrowed(t)}
				}
				table(w, "no tokens; keylease token create --identity NAME makes one", "TOKEN TYPE IDENTITY STATE MADE ENDS USED ONLY", rows)
			})
		})
	}}
}

func (a *app) tokenRotateCommand() *cobra.Command {
	var overlap string
	c := &cobra.Command{Use: "rotate TOKEN", Short: "Replace a token's text; its leases stay its own", Args: exactly("the token's id (tk_…)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := tokenID(args[0]); err != nil {
				return err
			}
			d, err := optionalTTL("--overlap", overlap)
			if err != nil {
				return err
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				t, err := c.RotateToken(cmd.Context(), args[0], d)
				if err != nil {
					return err
				}
				switch { // the less may be a surprise, so it is said whatever the output is
				case d > 0 && t.PreviousUntil != nil && t.ExpiresAt != nil && t.PreviousUntil.Equal(*t.ExpiresAt):
					a.sayf("keylease: the text before it works no longer than the token")
				case d > lease.MaxOverlap:
					a.sayf("keylease: the overlap is cut to %s, the most there is", ttl.Format(lease.MaxOverlap))
				}
				return a.showToken(t)
			})
		}}
	c.Flags().StringVar(&overlap, "overlap", "", "how long the text before goes on, at most "+ttl.Format(lease.MaxOverlap)+" (default not at all, as after a leak)")
	return c
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{Use: "revoke TOKEN", Short: "End a token and the leases taken with it", Args: exactly("the token's id (tk_…)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := tokenID(args[0]); err != nil {
				return err
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				t, err := c.RevokeToken(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) { fmt.Fprintf(w, "revoked %s of %s and its leases\n", t.ID, t.Identity) })
			})
		}}
}
