package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/child"
	"keylease/internal/mask"
	"keylease/internal/use"
	"keylease/server"
)

// childExit is the exit code of a command that ran. It is nobody's error: nothing is said about it.
type childExit int

func (c childExit) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(c)) }

// execFlags are those of exec and run.
type execFlags struct {
	lease, credential string
	ttl, purpose      string
	as, file          string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{Use: "exec (--lease ID | --credential NAME) [flags] -- COMMAND [ARGUMENT…]", Short: "Run a command with a credential in its environment, unseen",
		Long: `Runs a command with a credential in its environment. What the command prints is masked, and whoever runs it does
not see the value. The lease is renewed while the command runs, up to its longest time; when it ends, the command is
told to (SIGTERM) and 10 s later killed.

Exit codes: the command's own; 128+n where signal n ended it; 127 there is no such command; 126 it can't be run; 125
keylease could not run it. Of a command that keylease stopped: 143, 137 where it had to be killed, or its own, never 0.

Who is asking: the identity of the token in KEYLEASE_TOKEN; else --as or KEYLEASE_AS; else "local".`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.lease != "" && f.credential != "":
				return ours(usagef("leave one of them out: a lease is on one credential already", "--lease and --credential say the same thing twice"))
			case f.lease == "" && f.credential == "":
				return ours(usagef("name --lease ID or --credential NAME", "which credential?"))
			case len(args) == 0:
				return ours(usagef("put it behind --, as in keylease exec --credential github -- gh pr list", "which command?"))
			case f.lease != "" && f.ttl != "":
				return ours(usagef("leave it out: a lease has its time, and is renewed while the command runs", "--ttl goes with --credential"))
			}
			path, err := child.Find(args[0])
			if err != nil {
				return ours(fmt.Errorf("%w: %s", err, terminal(args[0])))
			}
			return a.exec(cmd.Context(), f, server.ExecRequest{LeaseID: f.lease, Credential: f.credential, Program: path}, path, args)
		}}
	c.Flags().SortFlags = false
	c.Flags().StringVar(&f.lease, "lease", "", "on this lease, which was granted for delivery by exec")
	c.Flags().StringVar(&f.credential, "credential", "", "on a live lease of yours on this credential, else on one that ends with the command")
	a.execFlags(c, &f)
	return c
}

func (a *app) runCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{Use: "run NAME", Short: "Run a command that the admin fixed, with its credential in its environment",
		Long: `Runs a command that the admin fixed in a credential's expose.commands, as keylease exec does. NAME may be
CREDENTIAL/NAME. It takes no arguments: what the admin wrote is what runs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactly("NAME")(cmd, args); err != nil {
				return ours(err)
			}
			return a.exec(cmd.Context(), f, server.ExecRequest{Command: args[0], Program: args[0]}, "", nil)
		}}
	c.Flags().SortFlags = false
	a.execFlags(c, &f)
	return c
}

func (a *app) execFlags(c *cobra.Command, f *execFlags) {
	c.Flags().StringVar(&f.ttl, "ttl", "", "how long the lease is at first, where one is opened, as in 10m")
	c.Flags().StringVar(&f.purpose, "purpose", "", "why, where a lease is opened")
	c.Flags().StringVar(&f.as, "as", "", "name of the agent, where no token says it")
	c.Flags().StringVar(&f.file, "file", "", "put the value into a file in memory, and its path into this variable")
	c.Flags().SetInterspersed(false)
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return ours(usagef("see "+cmd.CommandPath()+" --help", "%s", err))
	})
}

// ours gives an error of ours the exit code by which it is told from the command's own.
func ours(err error) error {
	err = spoken(err)
	_, hint := classify(err)
	if errors.As(err, new(*server.ApprovalError)) {
		hint = "tell the user; the same command again goes on waiting for the same answer"
	}
	code := child.Failed
	switch {
	case errors.Is(err, child.ErrNotFound):
		code = child.NotFound
	case errors.Is(err, child.ErrCannotRun):
		code = child.CannotRun
	}
	return fail(code, hint, "%w", err)
}

// exec runs one command on one lease. path and argv are the admin's where they are not given.
func (a *app) exec(ctx context.Context, f execFlags, q server.ExecRequest, path string, argv []string) error {
	if a.json {
		return ours(usagef("leave it out", "what the command prints is passed on; there is no --json"))
	}
	if f.file != "" {
		if err := use.CheckEnv(f.file); err != nil {
			return ours(usagef("", "--file: %s", err))
		}
	}
	var err error
	if q.TTL, err = optionalTTL("--ttl", f.ttl); err != nil {
		return ours(err)
	}
	q.Purpose = f.purpose
	code, err := a.withValue(ctx, f.as, q, func(e *server.Exec) (int, error) { return a.supervise(e, f.file, path, argv) })
	switch {
	case err != nil && ctx.Err() != nil:
		return fail(exitInterrupted, "", "interrupted before the command ran")
	case err != nil:
		return ours(err)
	}
	return childExit(code)
}

// supervise runs the command to its end.
func (a *app) supervise(e *server.Exec, file, path string, argv []string) (int, error) {
	if argv == nil {
		var err error
		if argv = e.Argv; len(argv) == 0 {
			return child.Failed, errors.New("the daemon named no command")
		}
		if path, err = child.Find(argv[0]); err != nil {
			return child.Failed, fmt.Errorf("%w: %s", err, terminal(argv[0]))
		}
	}
	m := mask.New(e.Value)
	defer m.Wipe()
	if m.Short() {
		a.sayf("keylease: warning: the value of %s is shorter than 8 bytes, so it is not masked in what the command prints", terminal(e.Credential))
	}
	env, remove, err := a.childEnv(e, file)
	if err != nil {
		return child.Failed, err
	}
	defer remove()
	clear(e.Value)
	end := "\n"
	if isTerminal(a.err) { // which the command may have set to anything
		end = "\r\n"
	}
	c := &child.Command{Path: path, Argv: argv, Env: env, Mask: m, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Stop: e.Ended(), Stopped: e.Stopping,
		Say: func(why string) {
			fmt.Fprintf(a.err, "keylease: the command is being stopped: %s%s", terminal(why), end)
		}}
	return c.Run()
}

// childEnv is the environment of the caller without anything of keylease's, and with the value, or the path of its file,
// under its name.
func (a *app) childEnv(e *server.Exec, file string) (env []string, remove func(), err error) {
	name, text := e.Env, ""
	remove = func() {}
	if file != "" {
		name = file
		if text, remove, err = child.File(a.env("XDG_RUNTIME_DIR"), e.Value); err != nil {
			return nil, nil, err
		}
	} else if bytes.IndexByte(e.Value, 0) >= 0 {
		return nil, nil, fail(child.Failed, "use --file VARIABLE", "the value of %s holds a NUL, which no variable can", terminal(e.Credential))
	} else {
		text = string(e.Value)
	}
	for _, pair := range a.environ() {
		if !strings.HasPrefix(pair, "KEYLEASE_") && !strings.HasPrefix(pair, name+"=") {
			env = append(env, pair)
		}
	}
	return append(env, name+"="+text), remove, nil
}

// withValue has the daemon lend a value, as exec does, to do, and tells it how that went. The lease lives at least until
// do returns an exit code; e.Ended says when it is over before. do must not keep e.Value.
func (a *app) withValue(ctx context.Context, as string, q server.ExecRequest, do func(e *server.Exec) (code int, err error)) (code int, err error) {
	undumpable() // before the token is read and the value comes. The command's own is not changed by it
	keep := inherited()
	o, err := a.execDoor(as)
	if err != nil {
		return 0, err
	}
	e, err := server.BeginExec(ctx, o, q)
	if err != nil {
		return 0, err
	}
	handOn(keep)
	code, err = do(e)
	clear(e.Value)
	e.Exit(code)
	return code, err
}

// approvalTime is how long a command that nobody looks at waits for a person: shorter than the shells of agents do.
const approvalTime = 40 * time.Second

// tellQuestion says that a person has to agree first, and how long that is waited for: at a terminal as long as it can be
// of use.
func (a *app) tellQuestion(q server.ExecApproval) time.Duration {
	a.sayf("keylease: a person has to agree to this first: keylease approve %s (until %s)", terminal(q.ID), moment(q.ExpiresAt))
	if isTerminal(a.err) {
		return time.Until(q.ExpiresAt)
	}
	a.sayf("keylease: tell the user, who runs that in a terminal of their own; do not approve it yourself")
	return approvalTime
}

// execDoor is where a command of an agent's finds the daemon, and who it is there. Nothing of the environment configures
// it: that is the agent's, or that of a project.
func (a *app) execDoor(as string) (server.ExecOptions, error) {
	o := server.ExecOptions{}
	var err error
	if o.As, o.Token, err = a.whoAsks(as); err != nil {
		return o, err
	}
	s, err := a.settings(false)
	if err != nil {
		return o, err
	}
	if s.paths.Socket, err = s.named(a.env, s.Socket.Path); err != nil {
		return o, err
	}
	start, err := a.daemonStart(s)
	if err != nil {
		return o, err
	}
	own := s.paths.Socket == ""
	if own && noStore(s) {
		return o, fail(child.Failed, "ask the operator; keylease init makes one", "there is no keylease store in %s", s.Data)
	}
	o.Approval = a.tellQuestion
	o.Dial = server.DialOptions{Paths: s.paths, Version: version(), Start: start, AutoStart: own}
	return o, nil
}
