package main

import (
	"context"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"keylease/internal/lease"
	"keylease/server"
)

func (a *app) mcpCommand() *cobra.Command {
	var as string
	var standalone bool
	c := &cobra.Command{Use: "mcp", Short: "Speak MCP on stdin and stdout: this is what an MCP client starts", Args: exactly(),
		Long: `Speaks MCP on stdin and stdout for one client, and passes it on to the daemon, which it starts where none runs.

Who is asking: the identity of the token in KEYLEASE_TOKEN; else --as or KEYLEASE_AS; else the name that the
client gives itself. KEYLEASE_SOCKET names another socket, as does --socket: a daemon in system mode is joined that
way. Nothing else is taken from the environment.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return spoken(a.mcp(cmd.Context(), as, standalone)) }}
	c.Flags().StringVar(&as, "as", "", "name of the agent, where no token says it")
	c.Flags().BoolVar(&standalone, "standalone", false, "be the daemon too, until the client leaves")
	c.Flags().StringVar(&a.flags.rootKey, "root-key-file", "", "with --standalone: file that holds the root key")
	return c
}

func (a *app) mcp(ctx context.Context, as string, standalone bool) error {
	harden() // first of all: until then another process of this user could read our environment, token and all
	if a.flags.rootKey != "" && !standalone {
		return usagef("leave it out: the daemon knows where its key is; or add --standalone", "--root-key-file goes with --standalone only")
	}
	as, token, err := a.whoAsks(as)
	if err != nil {
		return err
	}
	s, err := a.settings(false)
	if err != nil {
		return err
	}
	if s.paths.Socket, err = s.named(a.env, s.Socket.Path); err != nil {
		return err
	}
	start, err := a.daemonStart(s)
	if err != nil {
		return err
	}
	relay := server.RelayOptions{Paths: s.paths, In: a.in, Out: a.out, Log: a.logger(s.level), As: as, Token: token,
		Version: version(), AutoStart: s.paths.Socket == "", Start: start}
	if !standalone {
		if relay.AutoStart && noStore(s) {
			path := filepath.Join(s.paths.Config, "root.key")
			if s.explicitKey {
				path = s.RootKeyFile
			}
			if anchored(s) > 0 {
				a.sayf("keylease: warning: there is no store in %s, and %s", terminal(s.Data), anchoredElsewhere(s))
			}
			a.sayf("keylease: there is no store in %s yet: the first request makes one; keep a copy of %s elsewhere", terminal(s.Data), terminal(path))
		}
		defer slim()()
		return server.Relay(ctx, relay)
	}
	if runtime.GOOS == "windows" {
		return server.ErrUnsupported
	}
	if s.system != nil {
		return usagef("leave --standalone out", "--standalone is a daemon of one's own, and socket.allow makes this one a system's")
	}
	px, err := s.proxy()
	if err != nil {
		return err
	}
	return server.Standalone(ctx, server.Options{
		Open: func(ctx context.Context) (*lease.Broker, func() error, error) {
			return a.open(ctx, opening{settings: s, log: relay.Log})
		},
		Log: relay.Log, Version: version(), Paths: s.paths, Command: s.agentCommand(), IdleStop: s.idleStop, Proxy: px, Passphrase: s.passphrase}, relay)
}
