package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"keylease/internal/federation"
	"keylease/internal/lease"
	"keylease/server"
	"keylease/store"
)

type serveFlags struct {
	seed           string
	noPolicy, auto bool
	acceptClock    bool
	acceptLoss     bool
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{Use: "serve", Short: "Run the daemon", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		err := spoken(a.serve(cmd.Context(), f))
		if !f.auto && (errors.Is(err, server.ErrUntrusted) || errors.Is(err, store.ErrFolder)) { // it reaches for no daemon: it is one
			_, hint := classify(err)
			return fail(exitError, hint, "%w", err)
		}
		return err
	}}
	c.Flags().SortFlags = false
	c.Flags().StringVar(&a.flags.http, "http", "", "address for /mcp and /sse, or off (default 127.0.0.1:8700)")
	c.Flags().StringVar(&f.seed, "seed", "", "apply this seed file first; safe to leave in a unit file")
	c.Flags().StringVar(&a.flags.rootKey, "root-key-file", "", "file that holds the root key")
	c.Flags().BoolVar(&f.noPolicy, "no-policy", false, "start without the policy that governed this store before; recorded")
	c.Flags().BoolVar(&f.acceptClock, "accept-clock", false, "believe this system's clock though it is behind keylease's, which was ahead by mistake; ends all leases, recorded")
	c.Flags().BoolVar(&f.acceptLoss, "accept-loss", false, "open what is left of a damaged store: ends all leases and approvals, disables all tokens; recorded")
	c.Flags().BoolVar(&f.auto, "auto", false, "started by a relay or a command")
	_ = c.Flags().MarkHidden("auto")
	return c
}

func (a *app) serve(ctx context.Context, f serveFlags) error {
	if runtime.GOOS == "windows" {
		return server.ErrUnsupported
	}
	if a.json {
		return usagef("leave it out", "serve runs until it is stopped; it has no --json")
	}
	s, err := a.settings(!f.auto)
	if err != nil {
		return err
	}
	if f.auto && f.acceptLoss {
		return usagef("keylease serve --accept-loss", "only a person accepts a loss")
	}
	if f.auto { // the socket is all that whoever starts it needs
		s.HTTP = "off"
	}
	if s.system != nil {
		if f.auto {
			return usagef("", "a daemon of system mode is started by its service manager only")
		}
		s.paths.Socket = s.agentsAt()
		if s.system.Guarded, err = a.guarded(s); err != nil {
			return err
		}
	}
	seed, err := a.readSeed(f.seed)
	if err != nil {
		return err
	}
	defer seed.wipe()
	seed.reach = s.reach()
	harden()
	work := new(load)
	defer work.tend()()
	var up bulletin
	log := a.logger(s.level)
	reload, stop := reloads()
	defer stop()
	px, err := s.proxy()
	if err != nil {
		return err
	}
	foreign, err := a.foreign(s, f.auto, log)
	if err != nil {
		return err
	}
	if foreign != nil {
		defer foreign.Close()
	}
	return server.Serve(ctx, server.Options{
		Open: func(ctx context.Context) (*lease.Broker, func() error, error) {
			defer work.read()()
			return a.open(ctx, opening{settings: s, dropPolicy: f.noPolicy, acceptClock: f.acceptClock, acceptLoss: f.acceptLoss, log: log,
				opened: func(ctx context.Context, b *lease.Broker, st *store.Store) error {
					up = bulletin{broker: b, fingerprint: st.Fingerprint(), settings: s}
					work.of(b.Size)
					return a.seedOwn(ctx, b, seed, false)
				}})
		},
		Log: log, Version: version(), Paths: s.paths, Command: s.agentCommand(), HTTPAddr: httpAddr(s.HTTP), AllowedHosts: s.AllowedHosts, AllowedOrigins: s.AllowedOrigins,
		Resource: s.Resource, Foreign: foreign, TLS: s.tlsFiles(), System: s.system, Proxy: px,
		Auto: f.auto, IdleStop: s.idleStop, Reload: reload, Limits: server.Limits(s.Limits), Passphrase: s.passphrase,
		Ready: func(l server.Listening) {
			if !f.auto {
				a.announce(up, l)
			}
		},
	})
}

// foreign is who else vouches for callers over HTTP; nil where there is no HTTP.
func (a *app) foreign(s settings, auto bool, log zerolog.Logger) (*federation.Directory, error) {
	if s.HTTP == "off" {
		if !auto && len(s.Issuers)+len(s.Certificates) > 0 {
			a.sayf("keylease: warning: http is off, so issuers and certificates let nobody in")
		}
		return nil, nil
	}
	d, err := federation.New(s.federation(), federation.Options{ReadFile: readMaterial, Trouble: func(issuer string, err error) {
		log.Warn().Str("issuer", issuer).Err(err).Msg("the keys of an issuer can't be fetched; its tokens wait")
	}})
	if err != nil {
		return nil, usagef("correct issuers in "+s.configFile+", or the file", "%s", err)
	}
	return d, nil
}

// webAddress is what clients are given to call: the resource, or where HTTP listens, by the first of its names where
// that is every address of this machine.
func (s settings) webAddress(l server.Listening) string {
	if s.Resource != "" {
		return s.Resource
	}
	at := l.HTTP
	if host, port, err := net.SplitHostPort(at); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) && len(s.AllowedHosts) > 0 {
		at = s.AllowedHosts[0]
		if u, err := url.Parse("https://" + at); err == nil && u.Port() == "" {
			at += ":" + port
		}
	}
	if l.TLS {
		return "https://" + at + "/mcp"
	}
	return "http://" + at + "/mcp"
}

func httpAddr(s string) string {
	if s == "off" {
		return ""
	}
	return s
}

// reloads turns SIGHUP into what the server waits for.
func reloads() (<-chan struct{}, func()) {
	signals, stop := hangups()
	out := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-signals:
				select {
				case out <- struct{}{}:
				case <-ended:
					return
				}
			case <-ended:
				return
			}
		}
	}()
	return out, func() { stop(); close(ended) }
}

// bulletin is what a daemon that came up tells the person who started it.
type bulletin struct {
	settings
	broker      *lease.Broker
	fingerprint string
}

func (a *app) announce(up bulletin, l server.Listening) {
	var b strings.Builder
	fmt.Fprintf(&b, "keylease %s is up\n", version())
	fmt.Fprintf(&b, "  local    %s\n", l.Socket)
	if l.Admin != "" {
		fmt.Fprintf(&b, "  admin    %s\n", l.Admin)
	}
	if l.HTTP != "" {
		proof := map[bool]string{true: " or certificate"}[up.TLS.ClientCA != ""]
		called := up.webAddress(l)
		if strings.Contains(called, "//"+l.HTTP+"/") {
			fmt.Fprintf(&b, "  http     %s and /sse, with a token%s\n", called, proof)
		} else {
			fmt.Fprintf(&b, "  http     on %s, called as %s, and /sse, with a token%s\n", l.HTTP, called, proof)
		}
	}
	fmt.Fprintf(&b, "  proxy    %s, and a port of this machine from the first lease by proxy on\n", l.Proxy)
	act, pol := up.broker.Activity(), up.broker.PolicyStatus()
	fmt.Fprintf(&b, "  store    %s: %s, %s live\n", up.Data, plural(act.Credentials, "credential"), plural(act.LiveLeases, "lease"))
	if act.Frozen != nil {
		fmt.Fprintf(&b, "  lending  FROZEN: %s; keylease thaw ends it\n", terminal(frozen(*act.Frozen)))
	}
	if act.Skew >= time.Second {
		fmt.Fprintf(&b, "  clock    %s ahead of this system's, which was set back or was wrong before; leases end by it all the same\n", act.Skew.Round(time.Second))
	}
	if pol.Present {
		fmt.Fprintf(&b, "  policy   %s\n", pol.File)
	} else {
		fmt.Fprintf(&b, "  policy   no policy: local callers and your tokens may lease what a credential admits (allowed by default);\n           a file at %s changes that\n", up.PolicyFile)
	}
	fmt.Fprintf(&b, "  trail    signed by %s\n", up.fingerprint)
	fmt.Fprintf(&b, "next, in another terminal%s:\n", up.elsewhere())
	for _, line := range up.next(act.Credentials, l) {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprint(a.err, b.String())
}

// elsewhere reminds of the flags that reach this daemon.
func (up bulletin) elsewhere() string {
	flags := up.reach()
	if flags == "" {
		return ""
	}
	return " (with" + flags + ")"
}

// reach is what a command line needs to reach this daemon, with a space before it.
func (s settings) reach() string {
	if s.system != nil {
		return " --socket " + s.system.AdminSocket
	}
	return s.serveReach()
}

// serveReach is what a command line needs to start this daemon.
func (s settings) serveReach() string {
	out := ""
	for _, arg := range s.serveArgs() {
		out += " " + arg
	}
	return out
}

func (s settings) serveArgs() (args []string) {
	if base, err := configFile("", s.home); err != nil || base != s.configFile {
		args = append(args, "--config", s.configFile)
	}
	if s.Data != defaultData(s.home) {
		args = append(args, "--data", s.Data)
	}
	if s.paths.Socket != "" && s.system == nil { // in system mode it is the agents'
		args = append(args, "--socket", s.paths.Socket)
	}
	return args
}

// agentCommand is how an agent's shell starts this program so that it finds this daemon: by its name where that is what
// the name finds.
func (s settings) agentCommand() []string {
	exe, err := os.Executable()
	if err != nil {
		exe = installed
	}
	for _, dir := range usualPath {
		if there, err := os.Stat(filepath.Join(dir, installed)); err == nil {
			if our, err := os.Stat(exe); err == nil && os.SameFile(there, our) {
				exe = installed
			}
			break // what comes later is not found
		}
	}
	if s.system != nil {
		return []string{exe, "--socket", s.agentsAt()}
	}
	return append([]string{exe}, s.serveArgs()...)
}

// usualPath is where every shell looks.
var usualPath = [...]string{"/usr/local/bin", "/usr/bin", "/bin"}

// installed is how to call a program that go install, or a package, put on the PATH.
const installed = "keylease"

// program is how to call this one again: go run leaves nothing behind that could be called by its name.
func program() string {
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, string(os.PathSeparator)+"go-build") {
		return "go run ./cmd/keylease"
	}
	return installed
}

func (up bulletin) next(credentials int, l server.Listening) []string {
	reach, keylease := up.reach(), program()
	var lines []string
	if credentials == 0 {
		lines = append(lines, keylease+" put openai-dev"+reach+"   # store a key: it asks for the value")
	} else {
		lines = append(lines, keylease+" ls"+reach+"   # what is stored")
	}
	if up.Identities.Declared == deny { // without a token nothing would be lent
		lines = append(lines, keylease+" token create --identity claude-code"+reach+"   # for agents: a name alone is lent nothing here; it goes into their KEYLEASE_TOKEN")
		return lines
	}
	if keylease != installed {
		lines = append(lines, "go install ./cmd/keylease   # a client starts the program by its name")
	}
	lines = append(lines, "claude mcp add keylease -- keylease mcp"+up.agentReach()+"   # or in .mcp.json: {\"mcpServers\": {\"keylease\": {\"command\": \"keylease\", \"args\": ["+up.agentArgs()+"]}}}")
	if l.HTTP != "" {
		lines = append(lines, keylease+" token create --identity claude-code"+reach+"   # for clients of "+up.webAddress(l))
	}
	return lines
}
