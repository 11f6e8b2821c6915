package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"keylease/server"
	"keylease/store"
)

// firstPolicy is what init writes: one rule that is in force, and another to be taken as a pattern.
const firstPolicy = `# Who may lease what. Changes hold from the next call on; check them first: keylease policy check
version: 1
defaults: {defaultLeaseTTL: 15m}
rules:
  - name: agents on this machine use everything but production
    identities: ["*"]
    credentials: ["*"]
    maxLeases: 10 # held by one identity at a time
    maxLeaseTTL: 4h
  - name: nobody leases production keys
    credentials: ["*-prod"]
    effect: deny # deny beats allow, wherever it stands
`

func (a *app) initCommand() *cobra.Command {
	c := &cobra.Command{Use: "init", Short: "Make the root key, the store and a first policy file", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.init(cmd.Context()) }}
	c.Flags().StringVar(&a.flags.rootKey, "root-key-file", "", "where the root key is, or is to be made (default root.key beside the configuration)")
	return c
}

func (a *app) init(ctx context.Context) error {
	if runtime.GOOS == "windows" {
		return server.ErrUnsupported
	}
	s, err := a.settings(true)
	if err != nil {
		return err
	}
	harden()
	if s.system != nil && os.Geteuid() == 0 {
		return usagef("start the service: docs/system-mode.md", "in system mode the daemon makes its store itself, as its own user, at its first start; root's would not be its own")
	}
	if _, err := store.KeySource(s.Data); err == nil {
		if _, err := os.Lstat(s.PolicyFile); errors.Is(err, fs.ErrNotExist) {
			return a.withAdmin(func(c *server.AdminClient) error { return a.addPolicy(ctx, c, s) })
		}
		fingerprint := ""                                                              // what init would have shown; the refusal comes below
		if a.flags.socket == "" && a.env("KEYLEASE_SOCKET") == "" && s.system == nil { // else it may be another store's daemon
			_ = a.withAdmin(func(c *server.AdminClient) error { fingerprint = a.fingerprint(ctx, c); return nil })
		}
		a.tellKept(a.err, s, fingerprint)
	}
	made, err := a.makeStore(s)
	if err != nil {
		return err
	}
	return a.print(made, func(w io.Writer) { made.tell(w, s) })
}

// makeStore makes everything that a daemon needs, and refuses where any of it exists that could be meant to stay.
func (a *app) makeStore(s settings) (initialised, error) {
	source, create, err := a.keySource(s)
	if err != nil {
		return initialised{}, err
	}
	if !create {
		return initialised{}, fail(exitConflict, "use it, or choose another folder with --data and --config", "there is a store in %s already", s.Data)
	}
	if _, err := os.Lstat(s.PolicyFile); err == nil {
		return initialised{}, policyExists(s.PolicyFile)
	}
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return initialised{}, fmt.Errorf("making the data folder: %w", err)
	}
	st, err := a.openStore(opening{settings: s, log: zerolog.Nop()}, source, true, true)
	if err != nil {
		return initialised{}, err
	}
	made := initialised{Fingerprint: st.Fingerprint(), KeySource: source, Config: s.paths.Config, Data: s.Data, PolicyFile: s.PolicyFile}
	made.KeyFile, _ = keyPath(source, s)
	err = writeNew(s.PolicyFile, []byte(firstPolicy))
	if errors.Is(err, fs.ErrExist) {
		err = policyExists(s.PolicyFile)
	}
	return made, errors.Join(err, st.Close())
}

// addPolicy gives its first policy to a store that some other command made. The daemon knows whether it is the first:
// where one governed, its file is missing, and another in its place would change who may lease what.
func (a *app) addPolicy(ctx context.Context, c *server.AdminClient, s settings) error {
	status, err := c.Status(ctx)
	switch {
	case err != nil:
		return err
	case status.Policy.Present:
		return fail(exitConflict, "put it back; the one that was read last governs until then", "the policy of this store is gone from %s", s.PolicyFile)
	case status.Policy.File == "":
		return fail(exitConflict, fmt.Sprintf("stop it first (kill %d)", status.PID), "the daemon was started with --no-policy and reads no policy file")
	case status.Policy.File != s.PolicyFile:
		return fail(exitConflict, "name the same file to both", "the daemon looks for its policy at %s, not at %s", status.Policy.File, s.PolicyFile)
	}
	err = writeNew(s.PolicyFile, []byte(firstPolicy))
	if errors.Is(err, fs.ErrExist) {
		return policyExists(s.PolicyFile)
	}
	if err != nil {
		return err
	}
	fingerprint := a.fingerprint(ctx, c)
	return a.print(map[string]any{"data": s.Data, "config": s.paths.Config, "policy_file": s.PolicyFile, "store_existed": true, "fingerprint": fingerprint}, func(w io.Writer) {
		a.tellKept(w, s, fingerprint)
		fmt.Fprintf(w, "store        %s (there already, as it was)\n", s.Data)
		fmt.Fprintf(w, "policy       %s (new: the store had none; it holds from the next call on)\n", s.PolicyFile)
	})
}

// fingerprint asks a daemon for that of its store; "" where it has no answer.
func (a *app) fingerprint(ctx context.Context, c *server.AdminClient) string {
	r, err := c.Verify(ctx, "")
	if err != nil {
		return ""
	}
	return r.Fingerprint
}

// tellKept says what has to be kept of a store that is there already: put may have made it in passing.
func (a *app) tellKept(w io.Writer, s settings, fingerprint string) {
	if source, _, err := a.keySource(s); err == nil {
		path, _ := keyPath(source, s)
		tellKey(w, path)
	}
	if fingerprint != "" {
		tellFingerprint(w, fingerprint)
	}
}

func tellKey(w io.Writer, path string) {
	if path == "" {
		fmt.Fprintf(w, "root key     from %s\n", keyEnv)
		return
	}
	fmt.Fprintf(w, "root key     %s (keep a copy elsewhere: without it nothing can be read)\n", path)
}

func tellFingerprint(w io.Writer, fingerprint string) {
	fmt.Fprintf(w, "fingerprint  %s (note it: keylease audit verify --key … checks the trail against it)\n", fingerprint)
}

func policyExists(path string) error {
	return fail(exitConflict, "move it away, or run keylease serve, which takes it as it is", "there is a policy file %s already", path)
}

// initialised is what init made.
type initialised struct {
	Fingerprint string `json:"fingerprint"`
	KeySource   string `json:"key_source"`
	KeyFile     string `json:"key_file,omitempty"`
	Config      string `json:"config"`
	Data        string `json:"data"`
	PolicyFile  string `json:"policy_file"`
}

func (i initialised) tell(w io.Writer, s settings) {
	tellKey(w, i.KeyFile)
	fmt.Fprintf(w, "store        %s\n", i.Data)
	fmt.Fprintf(w, "policy       %s\n", i.PolicyFile)
	tellFingerprint(w, i.Fingerprint)
	fmt.Fprintf(w, "next:\n")
	fmt.Fprintf(w, "  %s put openai-dev --service openai%s\n", program(), s.reach())
	if program() != installed {
		fmt.Fprintln(w, "  go install ./cmd/keylease")
	}
	fmt.Fprintf(w, "  claude mcp add keylease -- keylease mcp%s\n", s.agentReach())
	fmt.Fprintf(w, "  %s leases%s\n", program(), s.reach())
}
