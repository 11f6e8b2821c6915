package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"
)

// toolAnswer is what the demo looks at in an answer.
type toolAnswer struct {
	LeaseID string `json:"lease_id"`
	Use     struct {
		BaseURL       string   `json:"base_url"`
		APIKey        string   `json:"api_key"`
		CommandPrefix []string `json:"command_prefix"`
		EnvNames      []string `json:"env_names"`
	} `json:"use"`
}

// proxied has the agent use the key at the service. It never has it.
func (d *demo) proxied(ctx context.Context) error {
	d.chapter("An agent starts keylease mcp and looks at what it may lease.")
	if _, err := d.call("list_credentials", map[string]any{}); err != nil {
		return err
	}
	d.chapter("It asks for the key and gets the use of it: an address, and a stand-in for the key that is good nowhere else.")
	got, err := d.answer("lease_credential", map[string]any{"credential": demoName, "purpose": "count the models"})
	if err != nil {
		return err
	}
	if len(got.Use.APIKey) == 0 {
		return fmt.Errorf("the credential is not lent by the proxy")
	}
	if err := d.request(ctx, got, http.StatusOK); err != nil {
		return err
	}
	if _, err := d.call("release_lease", map[string]any{"lease_id": got.LeaseID}); err != nil {
		return err
	}
	d.note("What was lent is taken back: the same request, once more.")
	return d.request(ctx, got, http.StatusForbidden)
}

// request is what the agent's tool does with what the agent was given.
func (d *demo) request(ctx context.Context, got toolAnswer, want int) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, got.Use.BaseURL+"/v1/models", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+got.Use.APIKey)
	fmt.Fprintf(d.out, "  agent sends  GET %s/v1/models, Authorization: Bearer %s…\n", got.Use.BaseURL, got.Use.APIKey[:8])
	straight := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: demoTime} // by no proxy but ours
	answer, err := straight.Do(r)
	if err != nil {
		return fmt.Errorf("using the key through the proxy: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err != nil {
		return fmt.Errorf("using the key through the proxy: %w", err)
	}
	if answer.StatusCode == http.StatusOK {
		fmt.Fprintf(d.out, "  service sees Authorization: %s\n", <-d.service.seen)
	}
	fmt.Fprintf(d.out, "  agent sees   %d %s\n", answer.StatusCode, terminal(strings.TrimSpace(string(body))))
	if answer.StatusCode != want {
		return fmt.Errorf("the proxy answered %d, not %d", answer.StatusCode, want)
	}
	return nil
}

// demoService is a service on this machine that tells everybody what it was sent, as some do in their errors.
type demoService struct {
	URL  string
	seen chan string
	srv  *http.Server
}

func newDemoService() (*demoService, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the demo's service: %w", err)
	}
	s := &demoService{URL: "http://" + l.Addr().String(), seen: make(chan string, 1)}
	s.srv = &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Authorization")
		fmt.Fprintf(w, `{"models":["made-up-1"],"you_sent":%q}`, key)
		s.seen <- key
	})}
	go func() { _ = s.srv.Serve(l) }()
	return s, nil
}

func (s *demoService) Close() { _ = s.srv.Close() }

// unseen has the agent run a command with the key, which it never sees.
func (d *demo) unseen(ctx context.Context) error {
	d.chapter("Where a command needs the key itself, the agent asks for delivery by exec: the command gets it, and the agent does not.")
	got, err := d.answer("lease_credential", map[string]any{"credential": demoName, "purpose": "count the models", "delivery": "exec"})
	if err != nil {
		return err
	}
	if len(got.Use.CommandPrefix) == 0 || len(got.Use.EnvNames) == 0 {
		return fmt.Errorf("the credential is not lent by exec")
	}
	if err := d.run(ctx, got.Use.CommandPrefix, "echo \"the key is $"+got.Use.EnvNames[0]+"\""); err != nil {
		return err
	}
	_, err = d.call("release_lease", map[string]any{"lease_id": got.LeaseID})
	return err
}

// run is the agent's shell.
func (d *demo) run(ctx context.Context, prefix []string, script string) error {
	fmt.Fprintf(d.out, "  agent runs   keylease exec --lease … -- sh -c '%s'\n", script)
	cmd := exec.CommandContext(ctx, d.start.Exe, append(prefix[1:], "sh", "-c", script)...)
	cmd.Env, cmd.Stderr = append(d.start.Env, "PATH="+d.env("PATH")), d.err
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running a command with the key: %w", err)
	}
	fmt.Fprintf(d.out, "  agent sees   %s\n", terminal(strings.TrimSpace(string(out))))
	return nil
}
