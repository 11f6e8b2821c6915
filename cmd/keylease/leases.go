package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/server"
)

// optionalTTL reads a flag's duration; 0 where it was not given.
func optionalTTL(flag, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := ttl.Parse(s)
	if err != nil {
		return 0, usagef("", "%s: %s", flag, err)
	}
	return d, nil
}

func (a *app) leasesCommand() *cobra.Command {
	var who, what string
	c := &cobra.Command{Use: "leases", Short: "List the live leases: who holds what, until when and why", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				list, err := c.Leases(cmd.Context(), who, what)
				if err != nil {
					return err
				}
				is, err := a.tellState(cmd.Context(), c)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"leases": list, "frozen": is.Frozen}, func(w io.Writer) { leaseTable(w, list, time.Now().Add(clockBehind(is))) })
			})
		}}
	c.Flags().StringVar(&who, "identity", "", "only those of this identity")
	c.Flags().StringVar(&what, "credential", "", "only those on this credential")
	return c
}

func leaseTable(w io.Writer, list []lease.Info, now time.Time) {
	rows := make([][]string, len(list))
	for i, l := range list {
		ends := left(l.ExpiresAt, now)
		if l.Orphaned {
			ends += " (its session is gone)"
		}
		rows[i] = []string{l.LeaseID, l.Credential, strconv.Itoa(l.Version), holder(l.Identity), string(l.Delivery), ends, l.Purpose}
	}
	table(w, "no live leases", "LEASE CREDENTIAL VERSION HOLDER DELIVERY ENDS PURPOSE", rows)
}

func holder(h lease.HolderInfo) string { return whoIs(h.Name, h.Proof.String(), h.By) }

// whoIs is a name and how far it can be trusted. What another user's agent declares is worth that user's number: two
// users' agents may give themselves one name.
func whoIs(name, proof, by string) string {
	if strings.HasPrefix(by, "uid:") && by != "uid:"+strconv.Itoa(os.Getuid()) {
		proof += ", " + by
	}
	return name + " (" + proof + ")"
}

func (a *app) releaseCommand() *cobra.Command {
	return &cobra.Command{Use: "release LEASE", Short: "End one lease now, whoever holds it", Args: exactly("LEASE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				e, err := c.EndLease(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(e, func(w io.Writer) {
					fmt.Fprintf(w, "%s %s after %s; what its holder has seen of the value only rotation takes back\n", e.LeaseID, e.Status, e.HeldFor)
				})
			})
		}}
}

// nobodyHolds says that there was nothing to end.
func nobodyHolds(f server.LeaseFilter) string {
	who, what := "nobody", "a lease"
	if f.Type != "" {
		who = "no " + string(f.Type)
	}
	if f.Identity != "" {
		who += " called " + f.Identity
	}
	if f.Credential != "" {
		what += " on " + f.Credential
	}
	return who + " holds " + what
}

func (a *app) revokeLeasesCommand() *cobra.Command {
	var f server.LeaseFilter
	var typ string
	c := &cobra.Command{Use: "revoke-leases", Short: "End all leases of an identity, on a credential, or all", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.All == (f.Identity != "" || f.Credential != "") {
				return usagef("name --identity and/or --credential, or --all alone", "which leases?")
			}
			if f.Type = identity.Type(typ); typ != "" && (f.Identity == "" || f.Type != identity.Agent && f.Type != identity.Human) {
				return usagef("", "--type goes with --identity, and must be agent or human")
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				if f.Credential != "" { // a typo would end nothing, and look like success
					if _, err := c.Credential(cmd.Context(), f.Credential); err != nil {
						return err
					}
				}
				n, err := c.RevokeLeases(cmd.Context(), f)
				if err != nil {
					return err
				}
				if n == 0 && !f.All {
					a.sayf("keylease: %s", terminal(nobodyHolds(f)))
				}
				return a.print(map[string]int{"revoked": n}, func(w io.Writer) { fmt.Fprintf(w, "revoked %s\n", plural(n, "lease")) })
			})
		}}
	c.Flags().StringVar(&f.Identity, "identity", "", "those of this identity, all at once however many they are")
	c.Flags().StringVar(&typ, "type", "", "agent or human, where an identity of each has that name (default both)")
	c.Flags().StringVar(&f.Credential, "credential", "", "those on this credential")
	c.Flags().BoolVar(&f.All, "all", false, "every one")
	return c
}
