package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/internal/wholefile"
	"keylease/server"
	"keylease/store"
)

// AuditConfig is about the trail.
type AuditConfig struct {
	Keep string `koanf:"keep" yaml:"keep"` // how long events stay in the store at least, as in 400d; what confirmed exports hold may go then. "": for ever
}

func (s *settings) understandAudit(from sources) (err error) {
	if s.Audit.Keep == "" {
		return nil
	}
	if s.keepTrail, err = ttl.Parse(s.Audit.Keep); err != nil {
		return from.fault("audit.keep", unitHint(s.Audit.Keep), "%s", err)
	}
	return nil
}

// sinceLast is the --since that goes on where the last confirmed export ended.
const sinceLast = "last"

func (a *app) auditExportCommand() *cobra.Command {
	var since string
	var unconfirmed bool
	c := &cobra.Command{Use: "export FILE", Short: "Write the trail into a file that verifies without the store; - is stdout", Args: exactly("a FILE"),
		Long: `Write the trail into a file, as lines of JSON with a signed end, that "keylease audit verify --file" checks anywhere.

The file is made whole or not at all, read back from the disk and verified. Then the daemon is told so: what confirmed
exports hold, without a gap, may be pruned where the configuration says audit: {keep: …}. With --unconfirmed, and with -,
nothing is confirmed: do so with "keylease audit confirm FILE" when the file is where it will last.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			x := export{file: args[0], confirm: !unconfirmed && args[0] != "-", rest: since == sinceLast}
			if !x.rest {
				var err error
				if x.since, err = sinceTime(since, time.Now()); err != nil {
					return err
				}
			}
			return a.withAdmin(func(c *server.AdminClient) error { return a.export(cmd.Context(), c, x) })
		}}
	c.Flags().StringVar(&since, "since", "", "from this time on (2026-11-23, 2h), or last: from where the last confirmed export ended")
	c.Flags().BoolVar(&unconfirmed, "unconfirmed", false, "do not tell the daemon that the file will last")
	return c
}

type export struct {
	file          string
	since         time.Time
	rest, confirm bool
}

func (a *app) export(ctx context.Context, c *server.AdminClient, x export) error {
	if x.file == "-" {
		out := bufio.NewWriter(a.out)
		err := c.Export(ctx, out, x.since, x.rest)
		return errors.Join(err, out.Flush())
	}
	path, err := absolute(x.file)
	if err != nil {
		return err
	}
	if err := a.placeFor(path); err != nil {
		return err
	}
	r, err := writeExport(ctx, path, func(w io.Writer) error { return c.Export(ctx, w, x.since, x.rest) })
	if err != nil {
		return err
	}
	if x.confirm {
		if _, err := c.Exported(ctx, r.Ends[0], path); err != nil {
			a.sayf("keylease: %s is whole, but not confirmed: run keylease audit confirm on it", terminal(path))
			return err
		}
	}
	return a.print(struct {
		File      string `json:"file"`
		Confirmed bool   `json:"confirmed"`
		store.ExportReport
	}{path, x.confirm, r}, func(w io.Writer) {
		fmt.Fprintf(w, "%s holds %s, signed by %s\n", terminal(path), events(r.From, r.Seq), r.Fingerprint)
		if !x.confirm {
			fmt.Fprintln(w, "not confirmed: keylease audit confirm it when it is where it will last")
		}
	})
}

func events(from, to uint64) string {
	switch {
	case to < from:
		return "no events"
	case to == from:
		return fmt.Sprintf("event %d", from)
	}
	return fmt.Sprintf("events %d to %d", from, to)
}

// writeExport makes path with what write writes, verified as it lies on the disk, or leaves nothing. It never replaces
// a file. If we crash, a hidden file beside it is left, or path is there and whole.
func writeExport(ctx context.Context, path string, write func(io.Writer) error) (store.ExportReport, error) {
	var none store.ExportReport
	if _, err := os.Lstat(path); err == nil {
		return none, fail(exitConflict, "name another file; an export never replaces one", "%s is there already", terminal(path))
	}
	var r store.ExportReport
	err := wholefile.NewAnywhere(path, func(f *os.File) error {
		out := bufio.NewWriterSize(f, 1<<20)
		err := write(out)
		if err == nil {
			err = errors.Join(out.Flush(), f.Sync())
		}
		if err == nil {
			r, err = store.VerifyExports(ctx, exportFiles(f.Name()), "", nil)
		}
		if err == nil && r.Problem != "" {
			err = fail(exitIntegrity, "is the disk of that file sound?", "what was written does not read back as it should: %s", r.Problem)
		}
		return err
	})
	if err != nil {
		return none, err
	}
	return r, nil
}

func exportFiles(paths ...string) (files []store.ExportFile) {
	for _, path := range paths {
		files = append(files, store.ExportFile{Name: path, Open: func() (io.ReadCloser, error) { return openExport(path) }})
	}
	return files
}

func openExport(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitNotFound, "", "there is no such file")
	}
	return f, err
}

func (a *app) auditConfirmCommand() *cobra.Command {
	return &cobra.Command{Use: "confirm FILE", Short: "Tell the daemon that an export is whole and where it will last", Args: exactly("a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := absolute(args[0])
			if err != nil {
				return err
			}
			r, err := store.VerifyExports(cmd.Context(), exportFiles(path), "", nil)
			if err != nil {
				return err
			}
			if r.Problem != "" {
				return fail(exitIntegrity, "export again: keylease audit export FILE", "%s is not a whole export: %s", terminal(path), r.Problem)
			}
			return a.withAdmin(func(c *server.AdminClient) error {
				s, err := c.Exported(cmd.Context(), r.Ends[0], path)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) {
					fmt.Fprintf(w, "confirmed %s of %s\n", events(r.From, r.Seq), terminal(path))
					if s.Exported == nil || s.Exported.Seq < r.Seq {
						done := uint64(0)
						if s.Exported != nil {
							done = s.Exported.Seq
						}
						fmt.Fprintf(w, "confirmed exports have a gap: they hold all up to event %d, and this one begins with %d\n", done, r.From)
					}
				})
			})
		}}
}

func (a *app) auditStatusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show how much trail there is, what was exported and pruned, and the disk it takes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(func(c *server.AdminClient) error {
				s, err := c.TrailStatus(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) {
					trailStatus(w, s)
					if own, err := a.settings(true); err == nil && a.flags.socket == "" && keepText(own.keepTrail) != s.Keep {
						fmt.Fprintf(w, "note      %s says audit.keep: %q; the daemon took what it said when it started, and takes this at its next start\n", terminal(own.configFile), keepText(own.keepTrail))
					}
				})
			})
		}}
}

// keepText is how a daemon tells what it keeps.
func keepText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return ttl.Format(d)
}

func trailStatus(w io.Writer, s lease.TrailStatus) {
	from := uint64(1)
	if s.Base != nil {
		from = s.Base.Seq + 1
	}
	fmt.Fprintf(w, "trail     %s\n", events(from, s.Head))
	if s.Base != nil {
		fmt.Fprintf(w, "pruned    up to event %d of %s, at %s\n", s.Base.Seq, moment(s.Base.Time), moment(s.Base.Pruned))
	}
	if s.Exported != nil {
		fmt.Fprintf(w, "exported  up to event %d, confirmed by %s at %s: %s\n", s.Exported.Seq, terminal(s.Exported.By), moment(s.Exported.Time), terminal(s.Exported.File))
	} else {
		fmt.Fprintln(w, "exported  nothing that was confirmed")
	}
	if s.Keep != "" {
		fmt.Fprintf(w, "kept      %s, and until an export of it is confirmed\n", s.Keep)
	} else {
		fmt.Fprintln(w, "kept      for ever (audit.keep in keylease.yaml says how long)")
	}
	fmt.Fprintf(w, "disk      %.1f MiB in %s, %d waiting to be merged\n", float64(s.Disk.Bytes)/(1<<20), plural(s.Disk.Tables, "table"), s.Disk.Waiting)
	if s.Disk.Problem != "" {
		fmt.Fprintf(w, "problem   %s\n", s.Disk.Problem)
	}
}

// verifyFiles checks exports: by themselves, without a daemon, or, with store, that they lead up to its trail, too.
func (a *app) verifyFiles(ctx context.Context, files []string, key string, withStore bool) error {
	if !withStore {
		return a.filesVerdict(ctx, files, key, nil)
	}
	return a.withAdmin(func(c *server.AdminClient) error {
		r, err := c.Verify(ctx, key)
		if err == nil {
			err = verdict(r, key)
		}
		if err != nil {
			return err
		}
		base := r.Base
		if base == nil {
			base = &store.Base{}
		}
		if key == "" {
			key = r.Fingerprint // one store's, at least
		}
		return a.filesVerdict(ctx, files, key, base)
	})
}

func (a *app) filesVerdict(ctx context.Context, files []string, key string, base *store.Base) error {
	paths := make([]string, len(files))
	for i, f := range files {
		var err error
		if paths[i], err = absolute(f); err != nil {
			return err
		}
	}
	r, err := store.VerifyExports(ctx, exportFiles(paths...), key, base)
	if err != nil {
		return err
	}
	err = a.print(struct {
		OK bool `json:"ok"`
		store.ExportReport
	}{r.Problem == "", r}, func(w io.Writer) {
		if r.Problem != "" {
			return
		}
		how := "consistent, not authenticated: give the fingerprint that you noted with --key"
		if r.Authenticated {
			how = "authenticated"
		}
		fmt.Fprintf(w, "the exports are %s\n%s, signed by %s\n", how, events(r.From, r.Seq), r.Fingerprint)
		if base != nil {
			fmt.Fprintf(w, "they lead up to the store's trail, which begins after event %d\n", base.Seq)
		}
	})
	if err != nil || r.Problem == "" {
		return err
	}
	where := ""
	if r.File != "" {
		where = " in " + terminal(r.File)
	}
	if r.FirstBad > 0 {
		return fail(exitIntegrity, "believe nothing from there on; take another copy of that file", "the exports do not hold at event %d%s: %s", r.FirstBad, where, r.Problem)
	}
	return fail(exitIntegrity, "name all files, of one store; take another copy of one that is damaged", "the exports do not hold%s: %s", where, r.Problem)
}
