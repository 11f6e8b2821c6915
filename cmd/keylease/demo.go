package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keylease/internal/use"
	"keylease/policy"
	"keylease/server"
)

const (
	demoTime  = 30 * time.Second // far more than it takes
	demoName  = "openai-demo"
	demoFirst = "sk-fake-demo-first"
	demoNext  = "sk-fake-demo-second"
)

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{Use: "demo", Short: "Tell the whole story with a fake key in a temporary folder", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if runtime.GOOS == "windows" {
				return server.ErrUnsupported
			}
			if a.json {
				return usagef("keylease demo", "demo tells a story; it has no --json")
			}
			// a reader or a terminal that goes away ends the story, not the cleaning up after it
			heard, stop := signal.NotifyContext(cmd.Context(), syscall.SIGPIPE, syscall.SIGHUP)
			defer stop()
			ctx, cancel := context.WithTimeout(heard, demoTime)
			defer cancel()
			err := a.demo(ctx)
			if heard.Err() != nil {
				err = fail(exitError, "", "the demo was cut off%s", leftBehind(err))
			}
			return spoken(err)
		}}
}

// demo plays both the operator and an agent against a daemon and a relay of its own, which are the real ones.
func (a *app) demo(ctx context.Context) (err error) {
	home, err := os.MkdirTemp("", "keylease-demo-")
	if err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	defer func() { err = cleaned(err, os.RemoveAll(home)) }()
	s := settings{home: home, configFile: filepath.Join(home, "config", "keylease.yaml"),
		paths: server.Paths{Data: filepath.Join(home, "data"), Config: filepath.Join(home, "config")}}
	s.Data, s.PolicyFile = s.paths.Data, filepath.Join(s.paths.Config, "policy.yaml")
	start, err := a.daemonStart(s)
	if err != nil {
		return err
	}
	admin := server.NewAdminClient(server.DialOptions{Paths: s.paths, Version: version(), AutoStart: true, Start: start})
	d := &demo{app: a, admin: admin, start: start, s: s}
	defer func() { err = cleaned(err, d.stop()) }()
	return d.tell(ctx)
}

// messError is what the demo could not clean up.
type messError struct{ error }

func (m messError) Unwrap() error { return m.error }

func cleaned(err, mess error) error {
	if mess == nil {
		return err
	}
	return errors.Join(err, messError{mess})
}

func leftBehind(err error) string {
	if mess := (messError{}); errors.As(err, &mess) {
		return ", and not all of it is gone: " + mess.Error()
	}
	return "; its daemon and its folder are gone"
}

type demo struct {
	*app
	admin *server.AdminClient
	start server.Start
	s     settings
	agent *agent
	made  initialised

	service *demoService
	started bool // there is a daemon, or was
}

func (d *demo) tell(ctx context.Context) error {
	var err error
	d.chapter("You begin. (Everything here is made up, the keys too, and lives in a temporary folder.)")
	d.operator("keylease init")
	if d.made, err = d.makeStore(d.s); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "  a root key, a store, a policy file with two rules; the trail is signed by %s\n", d.made.Fingerprint)
	if d.service, err = newDemoService(); err != nil {
		return err
	}
	defer d.service.Close()
	d.chapter("You store a key, and say where it may be sent, and for what. (The service is made up too: it answers with the key that it was sent.)")
	d.operator("keylease put " + demoName + " --upstream " + d.service.URL + " --header 'Authorization: Bearer {value}' --request 'GET /v1/models' --ttl 15m --max-ttl 4h --max-leases 2")
	if err := ctx.Err(); err != nil {
		return err
	}
	// this starts the daemon: one that is half up can't be told to stop
	d.started = true
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), demoTime)
	defer cancel()
	_, err = d.admin.Put(starting, server.CredentialItem{Name: demoName, Type: "api-key", Value: []byte(demoFirst), HasValue: true,
		Metadata: map[string]string{"environment": "development"},
		Upstream: &use.Upstream{URL: d.service.URL, Header: "Authorization: Bearer {value}", Allow: []string{"GET /v1/models"}},
		Policy:   policy.CredentialPolicy{DefaultLeaseTTL: 15 * time.Minute, MaxLeaseTTL: 4 * time.Hour, MaxLeases: 2}})
	if err != nil {
		return err
	}
	relay := exec.CommandContext(ctx, d.start.Exe, "mcp", "--as", "demo-agent", "--data", d.s.Data, "--config", d.s.configFile)
	relay.Env = d.start.Env
	if d.agent, err = newAgent(relay); err != nil {
		return err
	}
	defer d.agent.leave()
	for _, act := range []func(context.Context) error{d.proxied, d.unseen, d.lend, d.limits, d.rotation, d.goodbye} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) lend(ctx context.Context) error {
	d.chapter("Then it leases the key itself, for a day. A day is too long, so it gets four hours.")
	d.note("The value is in the answer, and so in the model's context: that is what delivery value means. delivery: [proxy, exec] in the policy rules it out.")
	if _, err := d.lease("24h", "summarise the test failures"); err != nil {
		return err
	}
	d.chapter("You can see who holds it.")
	d.operator("keylease leases")
	leases, err := d.admin.Leases(ctx, "", "")
	if err != nil {
		return err
	}
	leaseTable(d.out, leases, time.Now())
	return nil
}

func (d *demo) limits(context.Context) error {
	d.chapter("A second lease is the last there is; the third is refused, and the agent is told which ones are its own.")
	second, err := d.lease("10m", "second thoughts")
	if err != nil {
		return err
	}
	if _, err := d.lease("10m", "third time lucky"); err == nil {
		return errors.New("the third lease should have been refused")
	}
	d.chapter("So it renews the one it has, then gives it back.")
	if _, err := d.call("lease_credential", map[string]any{"lease_id": second, "ttl": "30m"}); err != nil {
		return err
	}
	_, err = d.call("release_lease", map[string]any{"lease_id": second})
	return err
}

func (d *demo) rotation(ctx context.Context) error {
	d.chapter("You rotate the key while it is on loan: the old lease keeps the old value, a new one gets the new.")
	d.operator("keylease rotate " + demoName)
	info, err := d.admin.Rotate(ctx, demoName, []byte(demoNext), false)
	if err != nil {
		return err
	}
	for _, v := range info.Versions {
		fmt.Fprintf(d.out, "  version %d: %s\n", v.Version, v.State)
	}
	_, err = d.lease("15m", "go on with the new key")
	return err
}

func (d *demo) goodbye(ctx context.Context) error {
	d.chapter("You take everything back. (What an agent was shown, only rotation at the service takes back.)")
	d.operator("keylease revoke-leases --all")
	n, err := d.admin.RevokeLeases(ctx, server.LeaseFilter{All: true})
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "  revoked %s\n", plural(n, "lease"))
	if err := d.requestRecorded(ctx); err != nil {
		return err
	}
	d.chapter("All of it is in the trail, which nobody can edit unseen.")
	d.operator("keylease audit")
	if err := d.admin.Entries(ctx, server.EntryQuery{}, func(e []byte) error { return writeEntry(d.out, e) }); err != nil {
		return err
	}
	d.operator("keylease audit verify --key " + d.made.Fingerprint)
	r, err := d.admin.Verify(ctx, d.made.Fingerprint)
	if err != nil {
		return err
	}
	verified(d.out, r)
	if err := verdict(r, d.made.Fingerprint); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "\nThat is all. To begin: "+program()+" init")
	return nil
}

// requestRecorded waits until the request that went through the proxy is in the trail: that takes up to a second, and
// the whole story no more than a fifth of one.
func (d *demo) requestRecorded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for found := false; ; {
		err := d.admin.Entries(ctx, server.EntryQuery{Event: "lease.used"}, func(e []byte) error {
			found = found || bytes.Contains(e, []byte(`"path":"/v1/models"`))
			return nil
		})
		if err != nil || found {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("the request through the proxy is not in the trail")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) lease(howLong, purpose string) (id string, err error) {
	return d.call("lease_credential", map[string]any{"credential": demoName, "ttl": howLong, "purpose": purpose, "delivery": "value"})
}

// call is one tool call. It returns the lease that the answer is about.
func (d *demo) call(tool string, args map[string]any) (leaseID string, err error) {
	got, err := d.answer(tool, args)
	return got.LeaseID, err
}

// answer is one tool call, shown as the agent sends and sees it.
func (d *demo) answer(tool string, args map[string]any) (got toolAnswer, err error) {
	sent, err := json.Marshal(args)
	if err != nil {
		return got, err
	}
	fmt.Fprintf(d.out, "  agent sends  %s %s\n", tool, sent)
	answer, failed, err := d.agent.call(tool, args)
	if err != nil {
		return got, err
	}
	fmt.Fprintf(d.out, "  agent sees   %s\n", terminal(string(answer)))
	if err := json.Unmarshal(answer, &got); err != nil {
		return got, fmt.Errorf("reading the answer of %s: %w", tool, err)
	}
	if failed {
		return got, fmt.Errorf("%s was refused", tool)
	}
	return got, nil
}

func (d *demo) chapter(text string)  { fmt.Fprintf(d.out, "\n%s\n", text) }
func (d *demo) note(text string)     { fmt.Fprintf(d.out, "  (%s)\n", text) }
func (d *demo) operator(line string) { fmt.Fprintf(d.out, "  $ %s\n", line) }

// stop ends the daemon that was started here and waits until its folder is free.
func (d *demo) stop() error {
	defer d.admin.Close()
	if !d.started {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	status, err := d.admin.Status(ctx)
	if err != nil {
		return err
	}
	if err := d.admin.Handover(ctx); err != nil {
		return err
	}
	d.admin.Close()
	for ctx.Err() == nil {
		if !alive(status.PID) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("the daemon (process %d) did not stop in time", status.PID)
}
