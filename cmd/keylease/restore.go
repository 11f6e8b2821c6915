package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/server"
	"keylease/store"
)

type restoreFlags struct{ leases, tokens, damage bool }

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{Use: "restore FILE", Short: "Bring back what keylease backup wrote, into an empty data folder", Args: exactly("FILE"),
		Long: `Bring back what keylease backup wrote, into a data folder that is empty or not there. - is stdin.

Everything is checked before anything is put in its place: each part of the file, each event of the trail, each record
and value. What happened after the backup is not in it: so all leases and open approvals end, tokens stop working
(keylease token rotate ID gives one a new text), and the trail says so. What no program can bring back is told at the end.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return spoken(a.restore(cmd.Context(), args[0], f))
		}}
	c.Flags().SortFlags = false
	c.Flags().BoolVar(&f.leases, "keep-leases", false, "leave leases and open approvals as they were when the backup was made")
	c.Flags().BoolVar(&f.tokens, "keep-tokens", false, "leave tokens as they were when the backup was made, those revoked since included")
	c.Flags().BoolVar(&f.damage, "accept-damage", false, "go on where records were damaged when the backup was made; those are lent to nobody")
	c.Flags().StringVar(&a.flags.rootKey, "root-key-file", "", "file that holds the root key that the backup was made under")
	return c
}

func (a *app) restore(ctx context.Context, from string, f restoreFlags) error {
	if runtime.GOOS == "windows" {
		return server.ErrUnsupported
	}
	s, err := a.settings(true)
	if err != nil {
		return err
	}
	harden()
	if s.system != nil && os.Geteuid() == 0 {
		return usagef("run it as the daemon's user, as in: runuser -u keylease -- keylease restore FILE --config "+s.configFile, "in system mode the store is the daemon's own; root's would not be")
	}
	in, err := a.openBackup(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := errors.Join(makeFolder(s.paths.Config), makeFolder(s.anchor())); err != nil {
		return err
	}
	find := func(source string) ([]byte, string, error) {
		if s.explicitKey {
			source = fileFrom + s.RootKeyFile
		}
		key, err := a.rootKey(s, source, false)
		return key, source, err
	}
	r, err := store.Unpack(ctx, in, store.Options{Dir: s.Data, AnchorDir: s.anchor(), Log: zerolog.Nop(), Now: time.Now}, find)
	if err != nil {
		return restoreRefused(err, s)
	}
	defer r.Discard()
	now := time.Now()
	stock, err := lease.TakeStock(r.Store, now)
	if err != nil {
		return fmt.Errorf("%w: the backup's trail does not tell a whole story: %w", store.ErrBackup, err)
	}
	if len(stock.Damaged) > 0 && !f.damage {
		return fail(exitIntegrity, "take an older backup, or restore all the rest: --accept-damage", "damaged when the backup was made: %s", strings.Join(stock.Damaged, "; "))
	}
	done := restored{Backup: r.Backup, Stock: stock, Known: r.Known, Missing: r.Missing(), KeptLeases: f.leases, KeptTokens: f.tokens, Data: s.Data}
	if err := r.Finish(done.entry(now)); err != nil {
		return restoreRefused(err, s)
	}
	return a.print(done, func(w io.Writer) { done.tell(w, s) })
}

func (a *app) openBackup(from string) (io.ReadCloser, error) {
	if from == "-" {
		return io.NopCloser(a.in), nil
	}
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitNotFound, "", "there is no backup at %s", terminal(from))
	}
	if err != nil {
		return nil, fmt.Errorf("opening the backup: %w", err)
	}
	if info, err := f.Stat(); err != nil || info.IsDir() {
		return nil, errors.Join(usagef("name the file that keylease backup wrote", "%s is a folder", terminal(from)), err, f.Close())
	}
	return f, nil
}

// restoreRefused says what to do about what stands in the way.
func restoreRefused(err error, s settings) error {
	switch {
	case errors.Is(err, store.ErrOccupied):
		return fail(exitConflict, fmt.Sprintf("stop the daemon, if one runs there, and move the folder away (mv %s %s.before); or restore elsewhere with --data and --config", s.Data, s.Data), "%w", err)
	case errors.Is(err, store.ErrWrongKey):
		return fail(exitSealed, "bring the root key that was in force when the backup was made (--root-key-file): rotate-key replaces it for later backups only", "%w; nothing was changed", err)
	case errors.Is(err, store.ErrBackup):
		return fail(exitIntegrity, "nothing was changed; take another copy of the backup, or an older one", "%w", err)
	case errors.Is(err, store.ErrLocked):
		return fail(exitConflict, "nothing was changed", "%w", err)
	}
	return err
}

// restored is what a restore did.
type restored struct {
	Backup     store.Backup `json:"backup"`
	Stock      lease.Stock  `json:"store"`
	Known      *store.Known `json:"known"` // what the anchor knew; null: there was none
	Missing    uint64       `json:"missing"`
	KeptLeases bool         `json:"kept_leases"`
	KeptTokens bool         `json:"kept_tokens"`
	Data       string       `json:"data"`
}

func (r restored) entry(now time.Time) store.Entry {
	by := self()
	e := store.Entry{Event: store.EventStoreRestored, Time: now, Identity: store.EntryIdentity{Type: string(by.Type), Name: by.Name, Proof: by.Proof.String(), By: by.By}}
	e.Details = store.DetailsOf("head", strconv.FormatUint(r.Backup.HeadSeq, 10), "made", r.Backup.Made.UTC().Format(time.RFC3339),
		"leases", strconv.Itoa(r.Stock.Leases), "approvals", strconv.Itoa(r.Stock.Approvals), "tokens", strconv.Itoa(r.Stock.Tokens))
	if r.Known == nil || r.Known.Epoch != r.Backup.Epoch {
		e.Details.Set("missing", "unknown")
	} else {
		e.Details.Set("missing", strconv.FormatUint(r.Missing, 10))
	}
	if r.Known != nil && r.Known.Until.After(r.Backup.Made) {
		e.Details.Set("until", r.Known.Until.UTC().Format(time.RFC3339))
	}
	var kept []string
	if r.KeptLeases {
		kept = append(kept, lease.KeptLeases)
	}
	if r.KeptTokens {
		kept = append(kept, lease.KeptTokens)
	}
	if len(kept) > 0 {
		e.Details.Set("kept", strings.Join(kept, ","))
	}
	return e
}

func (r restored) tell(w io.Writer, s settings) {
	fmt.Fprintf(w, "restored     %s, as of %s: %s, %s; the trail holds up to event %d\n", r.Data, moment(r.Backup.Made),
		plural(r.Stock.Credentials, "credential"), plural(r.Stock.Versions, "value"), r.Backup.HeadSeq)
	for _, d := range r.Stock.Damaged {
		fmt.Fprintf(w, "damaged      %s: lent to nobody\n", terminal(d))
	}
	switch {
	case r.KeptLeases && r.Stock.Overdue > 0:
		fmt.Fprintf(w, "leases       %d kept, as they were; the time of %d is up, unless they were renewed since: they end as expired\n", r.Stock.Leases, r.Stock.Overdue)
	case r.KeptLeases:
		fmt.Fprintf(w, "leases       %d kept, as they were\n", r.Stock.Leases)
	default:
		fmt.Fprintf(w, "leases       %d ended, %d open approvals too\n", r.Stock.Leases, r.Stock.Approvals)
	}
	if s.explicitKey {
		fmt.Fprintf(w, "root key     %s: keylease looks for it there from now on\n", terminal(s.RootKeyFile))
	}
	if r.KeptTokens {
		fmt.Fprintf(w, "tokens       %d kept, as they were: one that was revoked since works again\n", r.Stock.Tokens)
	} else {
		fmt.Fprintf(w, "tokens       %d disabled (keylease token rotate ID gives one a new text)\n", r.Stock.Tokens)
	}
	switch {
	case r.Known == nil:
		fmt.Fprintf(w, "missing      not known: there is no anchor of this store here, which would tell how many events came after the backup\n")
	case r.Known.Epoch != r.Backup.Epoch:
		fmt.Fprintf(w, "missing      not known: the store was restored, or a loss accepted, since the backup was made\n")
	case r.Missing > 0:
		fmt.Fprintf(w, "missing      %s that came after the backup, until about %s\n", plural(int(r.Missing), "event"), moment(r.Known.Until))
	default:
		fmt.Fprintf(w, "missing      nothing that the anchor beside the root key knows of\n")
	}
	if r.Known == nil || r.Known.Epoch != r.Backup.Epoch || r.Missing > 0 {
		fmt.Fprintf(w, "what keylease cannot know: which keys were stored, rotated or removed since, who leased, renewed or released, which tokens were\n"+
			"revoked. Check the keys that were rotated since (keylease rotate NAME), remove again what was removed, and look in the logs of the services.\n")
	}
	if _, err := os.Lstat(s.PolicyFile); r.Stock.Policy != "" && err != nil {
		fmt.Fprintf(w, "policy       not in a backup: put it back at %s; keylease does not start without the policy that governed\n", s.PolicyFile)
	}
	fmt.Fprintf(w, "next         keylease audit verify%s\n", s.reach())
}
