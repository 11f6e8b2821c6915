package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/boottime"
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

// admin is where the operator's commands find the daemon.
func (a *app) admin() (settings, error) {
	s, err := a.settings(true)
	if err != nil {
		return s, err
	}
	admin := ""
	if s.system != nil {
		admin = s.system.AdminSocket
	}
	if s.paths.Socket, err = s.named(a.env, admin); err != nil {
		return s, err
	}
	return s, nil
}

// withAdmin runs do with the daemon's admin API and puts refusals into words for a terminal. Where there is no store
// only a command that brings something to store may have one made: any other would ask, or stop, a daemon that nobody
// uses, and succeed.
func (a *app) withAdmin(do func(*server.AdminClient) error) error {
	s, err := a.admin()
	if err != nil {
		return err
	}
	start, err := a.daemonStart(s)
	if err != nil {
		return err
	}
	own := s.paths.Socket == "" // and so started where it sleeps
	absent := own && noStore(s)
	c := server.NewAdminClient(server.DialOptions{Paths: s.paths, Version: version(), Start: start,
		AutoStart: own && (!absent || a.makes)})
	defer c.Close()
	err = do(c)
	switch {
	case absent && !a.makes && errors.Is(err, server.ErrUnreachable):
		if stores := anchored(s); stores > 0 {
			return fail(exitNotFound, anchoredElsewhere(s)+"; keylease init makes a new, empty one", "there is no keylease store in %s", s.Data)
		}
		return fail(exitNotFound, "keylease init makes one; or name the daemon's socket: --socket "+adminSocket, "there is no keylease store in %s", s.Data)
	case absent && !noStore(s):
		a.tellMade(s)
	}
	return spoken(err)
}

// noStore says that there is nothing in the data folder that a daemon could open.
func noStore(s settings) bool {
	_, err := store.KeySource(s.Data)
	return errors.Is(err, store.ErrNoStore)
}

// anchored is how many stores have an anchor here.
func anchored(s settings) int {
	found, err := filepath.Glob(filepath.Join(s.anchor(), "anchor.????????"))
	if err != nil {
		return 0 // the folder has a name that reads as a bad pattern
	}
	return len(found)
}

// anchoredElsewhere is for who lost a data folder, or a disk that was not mounted: an empty store in its place is no loss
// that any check could find.
func anchoredElsewhere(s settings) string {
	return fmt.Sprintf("%s holds the anchor of another store: if that was here, stop keylease, mount its disk or put its folder back, or bring back a backup (keylease restore FILE)", terminal(s.anchor()))
}

// tellMade says that a store was made on the way: nobody asked for it by name, and without its key it is lost.
func (a *app) tellMade(s settings) {
	if anchored(s) > 1 { // its own is one
		a.sayf("keylease: warning: this store is new and empty; %s", anchoredElsewhere(s))
	}
	source, _, err := a.keySource(s)
	if err != nil {
		return
	}
	if path, ok := keyPath(source, s); ok {
		a.sayf("keylease: made a new store in %s; keep a copy of %s elsewhere", terminal(s.Data), terminal(path))
		return
	}
	a.sayf("keylease: made a new store in %s; its key comes from %s", terminal(s.Data), keyEnv)
}

// opening is what a daemon opens once the data folder is its own.
type opening struct {
	settings
	dropPolicy, acceptClock bool
	acceptLoss              bool
	log                     zerolog.Logger
	opened                  func(context.Context, *lease.Broker, *store.Store) error // before anybody is served
}

// policyMissing refuses to lend by no policy where one was meant: somebody named its file, or lends to the agents of
// other users. nil: it is there, or none is needed.
func (o opening) policyMissing() error {
	if _, err := os.Lstat(o.PolicyFile); !errors.Is(err, fs.ErrNotExist) || o.dropPolicy {
		return nil
	}
	const hint = "write it (keylease init writes a first one with the store), or start without one: keylease serve --no-policy"
	switch {
	case o.policyNamed != "":
		return usagef(hint+o.serveReach(), "%s: there is no %s", o.policyNamed, terminal(o.PolicyFile))
	case o.system != nil:
		return usagef("write it, or start without one: keylease serve --no-policy"+o.serveReach(), "system mode needs a policy, and there is no %s", terminal(o.PolicyFile))
	}
	return nil
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
	unpoliced := o.policyMissing()
	if create && unpoliced != nil {
		return nil, nil, unpoliced
	}
	var made func() (lease.NewKey, error)
	if path, ok := keyPath(source, o.settings); ok {
		made = newKey(path)
		if err := settleKey(o.Data, path); err != nil && !create {
			return nil, nil, err
		}
	}
	st, err := a.openStore(o, source, create, create && !o.explicitKey)
	if err != nil {
		return nil, nil, err
	}
	if create {
		a.tellMade(o.settings)
	}
	b, err := lease.Open(ctx, lease.Config{Store: st, PolicyFile: policyFile(o.PolicyFile), DropPolicy: o.dropPolicy,
		Log: o.log, Now: time.Now, Up: boottime.Up, Boot: boottime.Boot(), AcceptClock: o.acceptClock, Grace: o.grace, KeepTrail: o.keepTrail, KeySource: source, Version: version(),
		NewKey: made, DenyDeclared: o.Identities.Declared == deny,
		Asked: server.NewNotifier(ctx, o.Approvals.Notify, o.home, o.log).Notify})
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Lstat(o.PolicyFile); gone != nil {
			err = fail(exitError, "put it back, or start once without one: keylease serve --no-policy"+o.serveReach(), "the policy that governed this store is gone: there is no %s", o.PolicyFile)
		}
	}
	if err == nil && unpoliced != nil { // of a store that had a policy the words above say more
		err = errors.Join(unpoliced, b.Close())
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

func (a *app) openStore(o opening, source string, create, generate bool) (*store.Store, error) {
	s := o.settings
	if err := errors.Join(makeFolder(s.paths.Config), makeFolder(s.anchor())); err != nil {
		return nil, err
	}
	key, err := a.rootKey(s, source, generate)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	options := store.Options{Dir: s.Data, AnchorDir: s.anchor(), RootKey: key, KeySource: source,
		Create: create, Log: o.log, Now: time.Now, Trial: tryOut, Ballast: store.Ballast}
	if o.acceptLoss && !create {
		return a.openLosing(options)
	}
	return store.Open(options)
}

// openLosing opens what is left and says in clear words what that is.
func (a *app) openLosing(o store.Options) (*store.Store, error) {
	st, loss, err := store.OpenLosing(o)
	if err != nil {
		return nil, err
	}
	a.sayf("keylease: warning: the store was damaged: %s", terminal(loss.Reason))
	switch {
	case loss.Unknown:
		a.sayf("keylease: warning: accepted: its %s are kept; how many are missing nobody can tell, for the anchor was lost", plural(int(loss.Held), "event"))
	case loss.Missing() == 0:
		a.sayf("keylease: warning: accepted: all of its %s are there", plural(int(loss.Held), "event"))
	default:
		a.sayf("keylease: warning: accepted: its first %s are kept and %s lost", plural(int(loss.Held), "event"), plural(int(loss.Missing()), "event"))
	}
	if loss.Emptied {
		a.sayf("keylease: warning: no credential and no token is known any more: what told of them is lost; a backup may have them (keylease restore)")
	}
	a.sayf("keylease: warning: all leases and approvals ended and all tokens are disabled until each is rotated (keylease token rotate); keylease ls shows which credentials are gone or damaged")
	a.sayf("keylease: warning: what was found lies in %s, secrets sealed as before; remove it once nobody needs it", terminal(loss.Aside))
	return st, nil
}

func (a *app) logger(level zerolog.Level) zerolog.Logger {
	if isTerminal(a.err) {
		return zerolog.New(zerolog.ConsoleWriter{Out: a.err, TimeFormat: time.TimeOnly}).Level(level).With().Timestamp().Logger()
	}
	return zerolog.New(a.err).Level(level).With().Timestamp().Logger()
}

// self is the operator on whose behalf this process itself changes the store.
func self() identity.Caller { return server.LocalOperator(os.Getuid()) }
