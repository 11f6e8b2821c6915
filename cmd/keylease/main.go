// Command keylease lends keys to AI agents: it is the daemon, the relay that MCP clients start, and the operator's
// tool. Its rule: it is the only place that reads flags, files and the environment; everything else is told.
// stdout is data (in mcp: the protocol), stderr is talk.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, environ: os.Environ}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// app is one run of the program: where it reads and writes, and what the flags that every command has said.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	environ  func() []string

	json  bool
	flags flags
	makes bool // this command may make the store: what it brings has to go somewhere
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	return a.exit(root.ExecuteContext(ctx))
}

func (a *app) command() *cobra.Command {
	root := group("keylease", "Lends keys to AI agents: every loan has a holder, a deadline, a purpose and a record.")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.Version = version()
	root.SetVersionTemplate("keylease {{.Version}}\n")
	root.SetHelpCommand(helpCommand(root))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		text, _, _ := strings.Cut(err.Error(), ": strconv.") // what follows speaks of Go
		return usagef("see "+cmd.CommandPath()+" --help", "%s", text)
	})
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.flags.data, "data", "", "folder that holds the store (default ~/.local/share/keylease)")
	f.StringVar(&a.flags.config, "config", "", "configuration file; policy.yaml and root.key lie beside it (default ~/.config/keylease/keylease.yaml)")
	f.StringVar(&a.flags.socket, "socket", "", "local socket of the daemon (default keylease.sock in the data folder)")
	f.BoolVar(&a.json, "json", false, "print one JSON object")
	root.AddCommand(
		a.initCommand(), a.serveCommand(), a.mcpCommand(),
		a.putCommand(), a.seedCommand(), a.lsCommand(), a.showCommand(), a.servicesCommand(), a.rotateCommand(), a.revokeCommand(), a.rmCommand(),
		a.execCommand(), a.runCommand(),
		a.leasesCommand(), a.releaseCommand(), a.revokeLeasesCommand(), a.freezeCommand(), a.thawCommand(),
		a.approvalsCommand(), a.approveCommand(), a.denyCommand(), a.tokenCommand(), a.policyCommand(), a.auditCommand(),
		a.backupCommand(), a.restoreCommand(), a.rotateKeyCommand(),
		a.helperCommand(), a.demoCommand(), a.trialCommand(), a.versionCommand())
	return root
}

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{Use: "help [COMMAND]", Short: "Say what a command does and takes", RunE: func(_ *cobra.Command, args []string) error {
		cmd, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return usagef("see keylease --help", "there is no command %q", "keylease "+strings.Join(args, " "))
		}
		return cmd.Help()
	}}
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		hint := "see " + cmd.CommandPath() + " --help"
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean " + cmd.CommandPath() + " " + near[0] + "?"
		}
		return usagef(hint, "there is no command %q", cmd.CommandPath()+" "+args[0])
	}}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(subs...)
	return c
}

// exactly makes a command refuse any other number of arguments. It does not repeat them: one may be a key that
// somebody put where it does not belong.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("see "+cmd.CommandPath()+" --help", "%s needs %s", cmd.CommandPath(), names[len(args)])
		case len(args) > len(names):
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("did you mean "+cmd.CommandPath()+" "+near[0]+"?", "%s has no such subcommand", cmd.CommandPath())
			}
			return usagef("see "+cmd.CommandPath()+" --help", "%s takes %d argument(s), not %d", cmd.CommandPath(), len(names), len(args))
		}
		return nil
	}
}
