package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/server"
	"keylease/store"
)

// daemonStart is how this program starts its own daemon: fixed words, and an environment that holds nothing of ours
// but, where the store says that its key comes from there, the root key. It listens where everybody looks: who names
// another socket joins the daemon there and starts none, or one project could take the daemon away from the others.
func (a *app) daemonStart(s settings) (server.Start, error) {
	exe, err := os.Executable()
	if err != nil {
		return server.Start{}, fmt.Errorf("finding this program: %w", err)
	}
	args := []string{"serve", "--auto", "--data", s.paths.Data, "--config", s.configFile}
	var extra []string
	if recorded, err := store.KeySource(s.Data); err == nil && recorded == sourceEnv {
		extra = append(extra, keyEnv+"="+a.env(keyEnv))
	}
	return server.Start{Exe: exe, Args: args, Env: server.StartEnv(s.home, userName(), extra...)}, nil
}

// admin is how the operator's commands reach the daemon, starting it where none runs.
func (a *app) admin() (*server.AdminClient, error) {
	s, err := a.settings(true)
	if err != nil {
		return nil, err
	}
	admin := ""
	if s.system != nil {
		admin = s.system.AdminSocket
	}
	if s.paths.Socket, err = s.named(a.env, admin); err != nil {
		return nil, err
	}
	return a.adminOf(s)
}

func (a *app) adminOf(s settings) (*server.AdminClient, error) {
	start, err := a.daemonStart(s)
	if err != nil {
		return nil, err
	}
	return server.NewAdminClient(server.DialOptions{Paths: s.paths, Version: version(), AutoStart: s.paths.Socket == "", Start: start}), nil
}

// withAdmin runs do with the daemon's admin API and puts refusals into words for a terminal.
func (a *app) withAdmin(do func(*server.AdminClient) error) error {
	c, err := a.admin()
	if err != nil {
		return err
	}
	defer c.Close()
	return spoken(do(c))
}

// opening is what a daemon opens once the data folder is its own.
type opening struct {
	settings
	dropPolicy bool
	log        zerolog.Logger
	opened     func(context.Context, *lease.Broker, *store.Store) error // before anybody is served
}

// open opens the store, making it with its key where there is none, and the broker over it.
func (a *app) open(ctx context.Context, o opening) (*lease.Broker, func() error, error) {
	source, create, err := a.keySource(o.settings)
	if err != nil {
		return nil, nil, err
	}
	if source != sourceEnv && a.env(keyEnv) != "" {
		a.sayf("keylease: warning: %s is not used: the key of this store is in a file", keyEnv)
	}
	st, err := a.openStore(o.settings, source, create, create && !o.explicitKey, o.log)
	if err != nil {
		return nil, nil, err
	}
	b, err := lease.Open(ctx, lease.Config{Store: st, PolicyFile: policyFile(o.PolicyFile), DropPolicy: o.dropPolicy,
		Log: o.log, Now: time.Now, Grace: o.grace, KeySource: source, Version: version(),
		DenyDeclared: o.Identities.Declared == deny})
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Lstat(o.PolicyFile); gone != nil {
			err = fail(exitError, "put it back, or start once without one: keylease serve --no-policy"+o.serveReach(), "the policy that governed this store is gone: there is no %s", o.PolicyFile)
		}
	}
	if err == nil && o.opened != nil {
		err = o.opened(ctx, b, st)
	}
	if err != nil {
		_ = st.Close()
		return nil, nil, err
	}
	return b, func() error {
		if err := b.Close(); err != nil {
			o.log.Warn().Err(err).Msg("no snapshot: the next start reads the whole trail")
		}
		return st.Close()
	}, nil
}

func (a *app) openStore(s settings, source string, create, generate bool, log zerolog.Logger) (*store.Store, error) {
	if err := errors.Join(makeFolder(s.paths.Config), makeFolder(s.anchor())); err != nil {
		return nil, err
	}
	key, err := a.rootKey(s, source, generate)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return store.Open(store.Options{Dir: s.Data, AnchorDir: s.anchor(), RootKey: key, KeySource: source,
		Create: create, Log: log, Now: time.Now})
}

func (a *app) logger(level zerolog.Level) zerolog.Logger {
	if isTerminal(a.err) {
		return zerolog.New(zerolog.ConsoleWriter{Out: a.err, TimeFormat: time.TimeOnly}).Level(level).With().Timestamp().Logger()
	}
	return zerolog.New(a.err).Level(level).With().Timestamp().Logger()
}

// self is the operator on whose behalf this process itself changes the store.
func self() identity.Caller { return server.LocalOperator(os.Getuid()) }
