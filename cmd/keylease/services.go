package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keylease/internal/lease"
	"keylease/internal/use"
)

// usage is what put's flags say about how a credential is used unseen.
type usage struct {
	env      string
	upstream use.Upstream
}

func (u *usage) flags(f *pflag.FlagSet) {
	f.StringVar(&u.env, "env", "", "variable that keylease exec gives it to a program in (default the service's, else its name in capitals)")
	f.StringVar(&u.upstream.Service, "service", "", "service that the proxy sends it to; keylease services lists them")
	f.StringVar(&u.upstream.URL, "upstream", "", "URL that the proxy sends it to, where it is none of these or is hosted elsewhere")
	f.StringVar(&u.upstream.Header, "header", "", "header that carries it there, as in \"Authorization: Bearer {value}\"")
	f.StringArrayVar(&u.upstream.Allow, "request", nil, "request that the proxy lets through, as in \"POST /v1/chat/*\" (default the service's own list); repeat it for more")
	f.BoolVar(&u.upstream.Private, "private", false, "the host in --upstream is a name with a private address")
}

// fields checks what the flags say, before anybody types a value.
func (u *usage) fields() (e *use.Expose, up *use.Upstream, err error) {
	if u.env != "" {
		e = &use.Expose{Env: u.env}
	}
	if t := u.upstream; t.Service != "" || t.URL != "" || t.Header != "" || t.Allow != nil || t.Private {
		up = &t
	}
	for _, err := range []error{e.Err(), up.Err()} {
		if err != nil {
			return nil, nil, usagef("url is --upstream here, header --header, allow --request, env --env; see keylease put --help, and keylease services for what is known", "%s", err)
		}
	}
	return e, up, nil
}

// usedAs is the variable in which a program gets a credential, and the commands that are fixed for it.
func usedAs(c lease.CredentialInfo) string {
	text := "$" + use.EnvName(c.Expose, c.Upstream, c.Name)
	if c.Expose != nil && len(c.Expose.Commands) > 0 {
		text += "; keylease run " + strings.Join(slices.Sorted(maps.Keys(c.Expose.Commands)), ", ")
	}
	return text
}

func upstreamText(u *use.Upstream) string {
	if u == nil {
		return "none: not for the proxy"
	}
	var parts []string
	for _, p := range []string{u.Service, u.URL, u.Header, u.Rate} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if len(u.Allow) > 0 {
		parts = append(parts, "allows "+strings.Join(u.Allow, "; "))
	}
	if len(u.Deny) > 0 {
		parts = append(parts, "denies "+strings.Join(u.Deny, "; "))
	}
	return strings.Join(parts, ", ")
}

func (a *app) servicesCommand() *cobra.Command {
	return &cobra.Command{Use: "services [NAME]", Short: "List the services whose keys agents can use without seeing them, or show one", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return a.print(map[string]any{"services": use.Services()}, func(w io.Writer) {
					rows := [][]string{}
					for _, s := range use.Services() {
						rows = append(rows, []string{s.Name, s.Title, s.Hosts[len(s.Hosts)-1].URL, s.KeyEnv()})
					}
					table(w, "", "NAME SERVICE ADDRESS KEY", rows)
				})
			case 1:
			default:
				return exactly("NAME")(cmd, args)
			}
			s := use.Lookup(args[0])
			if s == nil {
				return fail(exitNotFound, "keylease services lists them; for another see keylease put --help (--upstream, --header, --request)", "there is no such service in the catalogue")
			}
			return a.print(s, func(w io.Writer) { describeService(w, s) })
		}}
}

func describeService(w io.Writer, s *use.Service) {
	fmt.Fprintf(w, "%s: %s\n", s.Name, s.Title)
	list := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(w, "\n%s\n  %s\n", title, strings.Join(lines, "\n  "))
		}
	}
	var hosts []string
	for _, h := range s.Hosts {
		line := h.URL + "  (" + h.Header + ")"
		if h.Paths != nil {
			line += " for " + strings.Join(h.Paths, ", ")
		}
		hosts = append(hosts, line)
	}
	list("sent to", hosts)
	list("what its tools read", s.Env)
	list("allowed unless upstream.allow says otherwise", s.Allow)
	list("kept apart unless upstream.allow names it, with all that lies under it", s.Guarded)
	list("request headers dropped unless upstream.allowHeaders names them", s.Tenant)
	if s.Notes != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(s.Notes))
	}
}
