package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"keylease/internal/credtype"
	"keylease/internal/lease"
	"keylease/internal/secret"
	"keylease/internal/seedfile"
	"keylease/internal/strictyaml"
	"keylease/server"
)

// seed is a seed file that was read whole, with every value in hand.
type seed struct {
	file  string
	real  string // where it lies once every link is followed: known where it is to be rewritten
	reach string // what a command line needs to reach the store that it is applied to, with a space before it
	data  []byte
	items []seedfile.Item
}

func (s seed) wipe() {
	for _, i := range s.items {
		i.Value.Wipe()
	}
	clear(s.data)
}

// readSeed reads and checks a seed file and fetches what its items point to. It is all or nothing, and every fault is
// in the error. No path: an empty seed.
func (a *app) readSeed(path string) (seed, error) {
	if path == "" {
		return seed{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return seed{}, usagef("", "reading the seed file: %s", err)
	}
	defer f.Close()
	data, err := readAll(f, path, strictyaml.MaxSize)
	if err != nil {
		return seed{}, usagef("", "%s", err)
	}
	s := seed{file: path, data: data}
	if s.items, err = seedfile.Parse(path, data); err != nil {
		return s, err
	}
	var faults strictyaml.Faults
	for i := range s.items {
		if err := a.fetch(&s.items[i], filepath.Dir(path)); err != nil {
			faults = append(faults, strictyaml.Fault{File: path, Line: s.items[i].Line, Message: err.Error()})
		}
	}
	if faults != nil {
		s.wipe()
		return s, faults
	}
	return s, nil
}

// fetch gets a value from where the item says that it is: a variable of this process, or a file named absolutely or
// from the seed file's own folder.
func (a *app) fetch(i *seedfile.Item, folder string) error {
	if i.ValueFrom == nil {
		return nil
	}
	if name := i.ValueFrom.Env; name != "" {
		if a.env(name) == "" {
			return fmt.Errorf("valueFrom.env: %s is not set or empty", name)
		}
		i.Value = secret.New([]byte(a.env(name)))
	} else {
		path := i.ValueFrom.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(folder, path)
		}
		data, err := readTrusted(path, server.MaxValue+2, 0o022)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("valueFrom.file: there is no %s", path)
		}
		if err != nil {
			return fmt.Errorf("valueFrom.file: %w", err)
		}
		i.Value = secret.New(oneLineLess(data))
	}
	if _, err := credtype.Check(i.Type, i.Value.Bytes(), i.Metadata); err != nil {
		return fmt.Errorf("valueFrom: %w", err)
	}
	return nil
}

// literals names the items whose value stands in the file.
func (s seed) literals() (names []string) {
	for _, i := range s.items {
		if i.Literal {
			names = append(names, i.Name)
		}
	}
	return names
}

func wireItem(i seedfile.Item) server.CredentialItem {
	return server.CredentialItem{Name: i.Name, Type: i.Type, Value: i.Value.Bytes(), HasValue: !i.Consumed,
		Metadata: i.Metadata, Policy: i.Policy, Expose: i.Expose, Upstream: i.Upstream, Line: i.Line}
}

// seedOwn applies the seed in the daemon itself, before it serves anybody, and says what became of each item.
func (a *app) seedOwn(ctx context.Context, b *lease.Broker, s seed, force bool) error {
	if s.file == "" {
		return nil
	}
	items := make([]lease.SeedItem, len(s.items))
	for i, item := range s.items {
		items[i] = wireItem(item).Seed()
	}
	results, err := b.Seed(ctx, self(), items, force)
	if err != nil {
		return err
	}
	seeded(a.err, results)
	a.hintLiterals(s)
	return nil
}

// hintLiterals says how the values get out of a file that holds some.
func (a *app) hintLiterals(s seed) {
	if names := s.literals(); names != nil {
		a.sayf("keylease: hint: %s still holds values (%s); if they are real ones, take them out with: %s seed %s --consume%s",
			s.file, strings.Join(names, ", "), program(), s.file, s.reach)
	}
}

func seeded(w io.Writer, results []lease.SeedResult) {
	for _, r := range results {
		fmt.Fprintf(w, "seed: %s: %s", terminal(r.Name), r.Action)
		if r.Reason != "" {
			fmt.Fprintf(w, ": %s", terminal(r.Reason))
		}
		fmt.Fprintln(w)
	}
}

func (a *app) seedCommand() *cobra.Command {
	var consume, force bool
	c := &cobra.Command{Use: "seed FILE", Short: "Apply a seed file: only what changed in it since it was last applied", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			if consume {
				var err error
				if path, err = rewritable(path); err != nil {
					return err
				}
			}
			s, err := a.readSeed(args[0])
			if err != nil {
				return err
			}
			defer s.wipe()
			config, err := a.settings(true)
			if err != nil {
				return err
			}
			s.real, s.reach, a.makes = path, config.reach(), true
			return a.withAdmin(func(c *server.AdminClient) error { return a.seed(cmd.Context(), c, s, consume, force) })
		}}
	c.Flags().BoolVar(&consume, "consume", false, "take the values out of the file once the store has them")
	c.Flags().BoolVar(&force, "force", false, "bring back what was rotated out, removed or revoked; recorded")
	return c
}

func (a *app) seed(ctx context.Context, c *server.AdminClient, s seed, consume, force bool) error {
	items := make([]server.CredentialItem, len(s.items))
	for i, item := range s.items {
		items[i] = wireItem(item)
	}
	results, err := c.Seed(ctx, items, force)
	if err != nil {
		return err
	}
	out := seedReport{Results: results, Literal: s.literals(), Consumed: []string{}}
	if out.Literal == nil {
		out.Literal = []string{}
	}
	if consume {
		if out.Consumed, err = s.consume(results); err != nil {
			return err
		}
	}
	if err := a.print(out, func(w io.Writer) { seeded(w, results) }); err != nil {
		return err
	}
	switch {
	case len(out.Consumed) > 0:
		a.sayf("keylease: the values of %s are in the store and no longer in %s", strings.Join(out.Consumed, ", "), s.file)
	default:
		a.hintLiterals(s)
	}
	if n := conflicts(results); n > 0 {
		return fail(exitConflict, s.remedy(results), "%s not applied", plural(n, "item"))
	}
	return nil
}

type seedReport struct {
	Results  []lease.SeedResult `json:"results"`
	Literal  []string           `json:"literal"`  // items whose value stood in the file
	Consumed []string           `json:"consumed"` // of these, the ones that it stands in no longer
}

// remedy says what to do about conflicts: --force has no value to bring back for an item whose value was consumed.
func (s seed) remedy(results []lease.SeedResult) string {
	var lost []string
	for i, r := range results {
		if r.Action == "conflict" && s.items[i].Consumed {
			lost = append(lost, r.Name)
		}
	}
	force := "what was rotated, removed or revoked stays so; --force overrides that and is recorded"
	switch {
	case len(lost) == 0:
		return force
	case len(lost) == conflicts(results):
		force = ""
	default:
		force = "; of the others, " + force
	}
	return "for " + strings.Join(lost, ", ") + " put the value back into the file, or use keylease put" + force
}

func conflicts(results []lease.SeedResult) (n int) {
	for _, r := range results {
		if r.Action == "conflict" {
			n++
		}
	}
	return n
}

// consume rewrites the file without the literal values that the store has now.
func (s seed) consume(results []lease.SeedResult) ([]string, error) {
	names := []string{}
	for i, item := range s.items {
		if item.Literal && results[i].Action != "conflict" {
			names = append(names, item.Name)
		}
	}
	if len(names) == 0 {
		return names, nil
	}
	now, err := os.ReadFile(s.real)
	if err != nil || string(now) != string(s.data) {
		return nil, fail(exitConflict, "seed it again", "%s changed while it was applied; its values were not taken out", s.file)
	}
	data, err := seedfile.Consume(s.file, s.data, names)
	if err != nil {
		return nil, err
	}
	return names, replace(s.real, data)
}

// rewritable follows path to the file that holds the text: to rewrite a link would leave the values where they are.
func rewritable(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", usagef("", "reading the seed file: %s", err)
	}
	if !info.Mode().IsRegular() {
		return "", usagef("name the file itself, or leave --consume out", "--consume rewrites a regular file, and %s is not one; nothing was seeded", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		var at os.FileInfo
		if at, err = os.Lstat(real); err == nil && !os.SameFile(info, at) {
			err = errors.New("it leads elsewhere by now")
		}
	}
	if err != nil {
		return "", usagef("name the file itself, or leave --consume out", "--consume can't find the file behind %s: %s; nothing was seeded", path, err)
	}
	return real, nil
}
