package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/strictyaml"
	"keylease/internal/ttl"
	"keylease/server"
	"keylease/store"
)

func (a *app) auditCommand() *cobra.Command {
	var q server.EntryQuery
	var since string
	c := &cobra.Command{Use: "audit", Short: "Show the trail: who had which key, when and why", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Since, err = sinceTime(since, time.Now()); err != nil {
				return err
			}
			if q.Limit < 0 {
				return usagef("", "--limit can't be negative")
			}
			if q.Event != "" && !slices.Contains(store.Events(), q.Event) {
				hint := "the events are " + strings.Join(store.Events(), ", ")
				if near := strictyaml.Nearest(q.Event, store.Events()); near != "" {
					hint = "did you mean " + near + "?"
				}
				return usagef(hint, "--event: there is no event %q", terminal(q.Event))
			}
			return a.withAdmin(func(c *server.AdminClient) error { return a.audit(cmd.Context(), c, q) })
		}}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&since, "since", "", "a time (2026-11-23, 2026-11-23T10:00:00Z) or how long ago (2h)")
	f.StringVar(&q.Identity, "identity", "", "only what this identity did")
	f.StringVar(&q.Credential, "credential", "", "only what is about this credential")
	f.StringVar(&q.Event, "event", "", "only this event, as in lease.created")
	f.StringVar(&q.LeaseID, "lease", "", "only what is about this lease")
	f.IntVar(&q.Limit, "limit", 0, "only the newest so many (default all)")
	f.BoolVar(&q.Follow, "follow", false, "go on with what happens from now on; with --json one object a line")
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(a.auditVerifyCommand(), a.auditExportCommand(), a.auditConfirmCommand(), a.auditStatusCommand())
	return c
}

func sinceTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	if d, err := ttl.Parse(s); err == nil {
		return now.Add(-d), nil
	}
	return time.Time{}, usagef("write 2026-11-23, 2026-11-23T10:00:00Z or 2h", "--since is neither a time nor a duration")
}

// audit prints entries as they come. With --json they are one object, written piece by piece.
func (a *app) audit(ctx context.Context, c *server.AdminClient, q server.EntryQuery) error {
	out := bufio.NewWriter(a.out)
	defer out.Flush()
	list := a.json && !q.Follow
	separator, found := "{\"entries\": [\n", false
	err := c.Entries(ctx, q, func(entry []byte) error {
		found = true
		switch {
		case list:
			fmt.Fprintf(out, "%s%s", separator, entry)
			separator = ",\n"
		case a.json:
			fmt.Fprintf(out, "%s\n", entry)
		default:
			if err := writeEntry(out, entry); err != nil {
				return err
			}
		}
		if q.Follow {
			return out.Flush()
		}
		return nil
	})
	if list && err == nil {
		if !found {
			fmt.Fprint(out, `{"entries": [`)
		}
		fmt.Fprintln(out, "\n]}")
	}
	if err == nil && !found && !a.json {
		a.sayf("keylease: no entries match")
	}
	if q.Follow && ctx.Err() != nil {
		return nil // the person who watched has seen enough
	}
	return err
}

func writeEntry(w io.Writer, data []byte) error {
	var e store.Entry
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("reading an entry of the trail: %w", err)
	}
	line := fmt.Sprintf("%s  #%d  %-18s", moment(e.Time), e.Seq, e.Event)
	if e.Identity.Name != "" {
		line += "  " + whoIs(e.Identity.Name, e.Identity.Proof, e.Identity.By)
	}
	if e.Credential != "" {
		line += "  " + e.Credential
		if e.Version > 0 {
			line += fmt.Sprintf(" v%d", e.Version)
		}
	}
	if e.LeaseID != "" {
		line += "  " + e.LeaseID
	}
	if e.Purpose != "" {
		line += fmt.Sprintf("  %q", e.Purpose)
	}
	if details := pairs(e.Details.Map()); details != "" {
		line += "  " + details
	}
	_, err := fmt.Fprintln(w, terminal(line))
	return err
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var key string
	var files []string
	var withStore bool
	c := &cobra.Command{Use: "verify", Short: "Recompute the whole trail and say whether anything in it was changed", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("key") && !isFingerprint(key) {
				return usagef("copy it whole, as init and serve print it", "--key is not a fingerprint: that is SHA256: and 43 characters")
			}
			if len(files) > 0 {
				return a.verifyFiles(cmd.Context(), files, key, withStore)
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				r, err := c.Verify(cmd.Context(), key)
				if err != nil {
					return err
				}
				if err := a.print(r, func(w io.Writer) { verified(w, r) }); err != nil {
					return err
				}
				return verdict(r, key)
			})
		}}
	c.Flags().StringVar(&key, "key", "", "fingerprint that init or serve printed; without it the trail is consistent, but not authenticated")
	c.Flags().StringArrayVar(&files, "file", nil, "verify this export instead, without store or daemon; once for each file, in any order")
	c.Flags().BoolVar(&withStore, "with-store", false, "with --file: verify the store too, and that the files lead up to its trail")
	return c
}

func isFingerprint(s string) bool {
	text, ok := strings.CutPrefix(s, "SHA256:")
	sum, err := base64.RawStdEncoding.DecodeString(text)
	return ok && err == nil && len(sum) == sha256.Size
}

func verified(w io.Writer, r server.VerifyReport) {
	if !r.OK {
		return
	}
	how := "consistent, not authenticated: give the fingerprint that you noted with --key"
	if r.Authenticated {
		how = "authenticated"
	}
	fmt.Fprintf(w, "the trail is %s\n%s, signed by %s\n", how, plural(int(r.Entries), "event"), r.Fingerprint)
	if b := r.Base; b != nil {
		fmt.Fprintf(w, "from event %d on: those before were pruned at %s, exported up to event %d; the base is signed\n", b.Seq+1, moment(b.Pruned), b.Exported)
	}
}

func verdict(r server.VerifyReport, key string) error {
	switch {
	case key != "" && r.Fingerprint != key:
		return fail(exitIntegrity, "compare it with the one you noted; it may be another store's (--data). If it is right, this store was replaced", "the trail is signed by %s, not by the key you gave", r.Fingerprint)
	case !r.OK && r.FirstBad > 0:
		return fail(exitIntegrity, "believe nothing from there on; restore the data folder from a backup", "the trail was changed at event %d: %s", r.FirstBad, r.Problem)
	case !r.OK:
		return fail(exitIntegrity, "restore the data folder from a backup", "the trail does not hold: %s", r.Problem)
	}
	return nil
}
