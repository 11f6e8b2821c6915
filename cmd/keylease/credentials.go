package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keylease/internal/credtype"
	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/policy"
	"keylease/server"
)

func (a *app) putCommand() *cobra.Command {
	var typ, def, limit, whole string
	var meta, allow []string
	var leases int
	var how usage
	c := &cobra.Command{Use: "put NAME", Short: "Store a credential; its value comes from a prompt or stdin", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			item := server.CredentialItem{Name: args[0], Type: typ, HasValue: true}
			err := credtype.CheckName(args[0])
			if err != nil {
				return usagef("write it in lower case, like openai-dev", "%s", err)
			}
			if item.Metadata, err = metadata(meta); err != nil {
				return err
			}
			if item.Policy, err = credentialPolicy(def, limit, leases, allow); err != nil {
				return err
			}
			if whole != "" {
				if cmd.Flags().Changed("ttl") || cmd.Flags().Changed("max-ttl") || cmd.Flags().Changed("max-leases") || cmd.Flags().Changed("allow") {
					return usagef("write all of it in --policy", "--policy does not go with --ttl, --max-ttl, --max-leases or --allow")
				}
				if item.Policy, err = policy.ParseCredentialPolicy("--policy", []byte(whole)); err != nil {
					return err
				}
			}
			if item.Expose, item.Upstream, err = how.fields(); err != nil {
				return err
			}
			a.makes = true
			if isTerminal(a.in) { // before anybody types a value twice
				if err := a.withAdmin(func(c *server.AdminClient) error { return free(cmd.Context(), c, item.Name) }); err != nil {
					return err
				}
			}
			if item.Value, err = a.readValue(cmd.Context(), "value of "+terminal(args[0])); err != nil {
				return err
			}
			defer clear(item.Value)
			return a.changed(func(c *server.AdminClient) (lease.CredentialInfo, error) {
				info, err := c.Put(cmd.Context(), item)
				if r := lease.AsRefusal(err); r != nil && r.Code == lease.Conflict {
					err = exists(item.Name)
				}
				return info, err
			}, "stored")
		}}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&typ, "type", "api-key", "api-key or generic-secret")
	f.StringArrayVar(&meta, "meta", nil, "KEY=VALUE that may be shown to agents; repeat it for more")
	f.StringVar(&def, "ttl", "", "default length of a lease, as in 30m")
	f.StringVar(&limit, "max-ttl", "", "longest lease (default 1h)")
	f.IntVar(&leases, "max-leases", 0, "live leases at a time, over all holders (default no limit)")
	f.StringArrayVar(&allow, "allow", nil, "agent that may lease it, as a name or a pattern such as \"ide-*\" (default all); repeat it for more")
	f.StringVar(&whole, "policy", "", "instead of these four: its policy as in a seed file, like '{delivery: [proxy, exec], approval: user}'")
	how.flags(f)
	return c
}

// free refuses a name that is taken.
func free(ctx context.Context, c *server.AdminClient, name string) error {
	_, err := c.Credential(ctx, name)
	if r := lease.AsRefusal(err); r != nil && r.Code == lease.NotFound {
		return nil
	}
	if err == nil {
		return exists(name)
	}
	return err
}

func exists(name string) error {
	return fail(exitConflict, fmt.Sprintf("keylease rotate %s gives it a new value; keylease rm %s forgets it", name, name), "there is a credential %q already", name)
}

func metadata(pairs []string) (map[string]string, error) {
	m := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("write --meta service=openai", "--meta takes KEY=VALUE")
		}
		if _, twice := m[k]; twice {
			return nil, usagef("", "--meta gives %q twice", k)
		}
		m[k] = v
	}
	return m, nil
}

func credentialPolicy(def, limit string, leases int, allow []string) (p policy.CredentialPolicy, err error) {
	if p.DefaultLeaseTTL, err = optionalTTL("--ttl", def); err != nil {
		return p, err
	}
	if p.MaxLeaseTTL, err = optionalTTL("--max-ttl", limit); err != nil {
		return p, err
	}
	if longest := p.MaxLeaseTTL; longest == 0 && p.DefaultLeaseTTL > policy.DefaultMaxTTL {
		return p, usagef("add --max-ttl "+def, "--ttl is longer than leases last where --max-ttl does not say so: at most %s", ttl.Format(policy.DefaultMaxTTL))
	}
	if leases < 0 {
		return p, usagef("", "--max-leases can't be negative")
	}
	p.MaxLeases = leases
	for _, name := range allow {
		if err := policy.CheckGlob(name, "._@+:/-"); err != nil {
			return p, usagef("", "--allow: %s", err)
		}
		p.AllowedIdentities = append(p.AllowedIdentities, policy.Matcher{Type: identity.Agent, Name: name})
	}
	return p, nil
}

func (a *app) rotateCommand() *cobra.Command {
	var revokeLeases bool
	c := &cobra.Command{Use: "rotate NAME", Short: "Give a credential a new value, from a prompt or stdin; live leases keep the old one", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := a.readValue(cmd.Context(), "new value of "+terminal(args[0]))
			if err != nil {
				return err
			}
			defer clear(value)
			return a.changed(func(c *server.AdminClient) (lease.CredentialInfo, error) {
				return c.Rotate(cmd.Context(), args[0], value, revokeLeases)
			}, "rotated")
		}}
	c.Flags().BoolVar(&revokeLeases, "revoke-leases", false, "end the leases on the old value now")
	return c
}

func (a *app) revokeCommand() *cobra.Command {
	return &cobra.Command{Use: "revoke NAME", Short: "Lend a credential no more and end its leases", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changed(func(c *server.AdminClient) (lease.CredentialInfo, error) {
				return c.RevokeCredential(cmd.Context(), args[0])
			}, "revoked")
		}}
}

// changed does something to one credential and says how it is now.
func (a *app) changed(do func(*server.AdminClient) (lease.CredentialInfo, error), what string) error {
	return a.withAdmin(func(c *server.AdminClient) error {
		info, err := do(c)
		if err != nil {
			return err
		}
		return a.print(info, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s: version %d", what, terminal(info.Name), info.Version)
			if old := olderVersions(info); old > 0 && info.LeasesInUse > 0 {
				fmt.Fprintf(w, "; an older value is still on loan and is destroyed when its last lease ends")
			}
			fmt.Fprintln(w)
		})
	})
}

func olderVersions(i lease.CredentialInfo) (n int) {
	for _, v := range i.Versions {
		if v.State == "rotated" {
			n++
		}
	}
	return n
}

func (a *app) rmCommand() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Forget a credential: its leases end, its values are destroyed", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				if err := c.Remove(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.print(map[string]string{"removed": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "removed %s\n", args[0]) })
			})
		}}
}

func (a *app) lsCommand() *cobra.Command {
	var match string
	c := &cobra.Command{Use: "ls", Short: "List the credentials", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withAdmin(func(c *server.AdminClient) error {
			list, err := c.Credentials(cmd.Context(), match)
			if err != nil {
				return err
			}
			if _, err := a.tellState(cmd.Context(), c); err != nil {
				return err
			}
			empty := "no credentials; keylease put NAME stores one"
			if len(list) == 0 && match != "" {
				all, err := c.Credentials(cmd.Context(), "")
				if err != nil {
					return err
				}
				if len(all) > 0 {
					empty = fmt.Sprintf("none match %s; %s stored", terminal(match), plural(len(all), "credential"))
				}
			}
			return a.print(map[string]any{"credentials": list}, func(w io.Writer) {
				rows := make([][]string, len(list))
				for i, c := range list {
					rows[i] = []string{c.Name, c.Type, state(c), strconv.Itoa(c.Version), inUse(c), pairs(c.Metadata)}
				}
				table(w, empty, "NAME TYPE STATE VERSION LEASES METADATA", rows)
			})
		})
	}}
	c.Flags().StringVar(&match, "match", "", "only names that match this pattern")
	return c
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a credential, without its value", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				info, err := c.Credential(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(info, func(w io.Writer) { describe(w, info) })
			})
		}}
}

func describe(w io.Writer, c lease.CredentialInfo) {
	rows := [][]string{{"type", c.Type}, {"state", state(c)}, {"metadata", pairs(c.Metadata)}, {"leases", inUse(c)},
		{"policy", policyText(c.Policy)}, {"used as", usedAs(c)}, {"upstream", upstreamText(c.Upstream)},
		{"stored", moment(c.CreatedAt)}, {"changed", moment(c.UpdatedAt)}}
	for _, v := range c.Versions {
		rows = append(rows, []string{"version " + strconv.Itoa(v.Version), v.State + ", since " + moment(v.CreatedAt)})
	}
	table(w, "", "name "+c.Name, rows)
}

func state(c lease.CredentialInfo) string {
	if c.RotationDue {
		return c.State + " (rotation due)"
	}
	return c.State
}

func inUse(c lease.CredentialInfo) string {
	if c.Policy.MaxLeases > 0 {
		return fmt.Sprintf("%d of %d", c.LeasesInUse, c.Policy.MaxLeases)
	}
	return strconv.Itoa(c.LeasesInUse)
}

func policyText(p policy.CredentialPolicy) string {
	var parts []string
	if p.DefaultLeaseTTL > 0 {
		parts = append(parts, "for "+ttl.Format(p.DefaultLeaseTTL))
	}
	if p.MaxLeaseTTL > 0 {
		parts = append(parts, "at most "+ttl.Format(p.MaxLeaseTTL))
	}
	for _, m := range p.AllowedIdentities {
		parts = append(parts, string(m.Type)+" "+m.Name+m.Email)
	}
	for _, d := range p.Delivery {
		parts = append(parts, "as "+string(d))
	}
	if p.Approval != "" && p.Approval != policy.None {
		parts = append(parts, "approved by "+string(p.Approval))
	}
	if p.KeepOnDisconnect {
		parts = append(parts, "kept on disconnect")
	}
	return strings.Join(parts, ", ")
}
