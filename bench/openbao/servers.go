package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
)

// bao is an OpenBao server.
type bao struct {
	*process
	url, root string
}

// startBao starts a server, makes its store, opens it, and puts one secret and a policy to read it there.
func startBao(ctx context.Context, binary, dir string) (*bao, error) {
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "raft"), 0o700)); err != nil {
		return nil, err
	}
	api, cluster, err := twoPorts()
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`storage "raft" {
  path = %q
  node_id = "bench"
}
listener "tcp" {
  address = %q
  cluster_address = %q
  tls_disable = true
}
audit "file" "bench" {
  options {
    file_path = %q
  }
}
api_addr = "http://%s"
cluster_addr = "http://%s"
disable_mlock = true
log_level = "error"
`, filepath.Join(dir, "raft"), api, cluster, filepath.Join(dir, "audit.log"), api, cluster)
	path := filepath.Join(dir, "bao.hcl")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, "server", "-config="+path)
	cmd.Env, cmd.Dir = []string{"HOME=" + dir, "PATH=/usr/local/bin:/usr/bin:/bin"}, dir
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	b := &bao{process: p, url: "http://" + api}
	if err := b.setUp(ctx); err != nil {
		p.stop()
		return nil, err
	}
	return b, nil
}

func (b *bao) setUp(ctx context.Context) error {
	if err := b.until(ctx, func() bool {
		_, err := ask(ctx, "GET", b.url+"/v1/sys/seal-status", nil, nil)
		return err == nil
	}); err != nil {
		return err
	}
	var made struct {
		Keys []string `json:"keys_base64"`
		Root string   `json:"root_token"`
	}
	if _, err := ask(ctx, "PUT", b.url+"/v1/sys/init", map[string]int{"secret_shares": 1, "secret_threshold": 1}, &made); err != nil {
		return err
	}
	if len(made.Keys) != 1 {
		return errors.New("init gave no key")
	}
	b.root = made.Root
	if _, err := ask(ctx, "PUT", b.url+"/v1/sys/unseal", map[string]string{"key": made.Keys[0]}, nil); err != nil {
		return err
	}
	const rule = `path "bench/*" { capabilities = ["read"] }`
	steps := []struct {
		method, path string
		in           any
	}{
		{"POST", "/v1/sys/mounts/bench", map[string]string{"type": "kv"}},
		{"PUT", "/v1/sys/policies/acl/bench", map[string]string{"policy": rule}},
		{"PUT", "/v1/bench/key", map[string]string{"value": "sk-fake-0123456789abcdef"}},
	}
	return b.until(ctx, func() bool { // the single node takes a moment to elect itself
		for _, s := range steps {
			if _, err := ask(ctx, s.method, b.url+s.path, s.in, nil, "X-Vault-Token", b.root); err != nil && !strings.Contains(err.Error(), "in use") {
				return false
			}
		}
		return true
	})
}

func (b *bao) lend(ctx context.Context) error {
	var made struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	_, err := ask(ctx, "POST", b.url+"/v1/auth/token/create", map[string]any{"policies": []string{"bench"}, "ttl": "1h"}, &made, "X-Vault-Token", b.root)
	if err != nil {
		return err
	}
	var read struct {
		Data map[string]string `json:"data"`
	}
	if _, err := ask(ctx, "GET", b.url+"/v1/bench/key", nil, &read, "X-Vault-Token", made.Auth.Token); err != nil {
		return err
	}
	if read.Data["value"] == "" {
		return errors.New("it read no secret")
	}
	return nil
}

// keylease is a keylease daemon.
type keylease struct {
	*process
	url, token string
	next       atomic.Int64
}

const revision = "2026-07-28"

func startKeylease(ctx context.Context, binary, home string) (*keylease, error) {
	config := filepath.Join(home, ".config", "keylease")
	err := os.MkdirAll(config, 0o700)
	for name, text := range map[string]string{
		"keylease.yaml": "grace: 1h\nlimits: {callRate: 0}\n",
		"policy.yaml":   "version: 1\nlimits: {leaseRate: 0, useRate: 0}\nrules:\n  - {name: agents, identities: [\"*\"], credentials: [\"*\"]}\n",
		"seed.yaml":     "credentials:\n  - {name: key, type: api-key, value: sk-fake-0123456789abcdef, policy: {maxLeases: 1000000}}\n",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(config, name), []byte(text), 0o600))
	}
	if err != nil {
		return nil, err
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Env, cmd.Dir = []string{"HOME=" + home, "PATH=/usr/local/bin:/usr/bin:/bin"}, home
		return cmd
	}
	p, err := start(command("serve", "--http", "127.0.0.1:0"))
	if err != nil {
		return nil, err
	}
	k := &keylease{process: p}
	listens := regexp.MustCompile(`http://127\.0\.0\.1:[1-9]\d*/mcp`)
	err = p.until(ctx, func() bool { k.url = listens.FindString(p.log.String()); return k.url != "" })
	if err == nil {
		err = command("seed", filepath.Join(config, "seed.yaml")).Run()
	}
	if err == nil {
		var text []byte
		var made struct {
			Token string `json:"token"`
		}
		if text, err = command("token", "create", "--identity", "bench", "--json").Output(); err == nil {
			err = json.Unmarshal(text, &made)
		}
		k.token = made.Token
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return k, nil
}

func (k *keylease) lend(ctx context.Context) error {
	request := map[string]any{"jsonrpc": "2.0", "id": k.next.Add(1), "method": "tools/call", "params": map[string]any{
		"name":      "lease_credential",
		"arguments": map[string]string{"credential": "key", "ttl": "1h", "purpose": "bench", "delivery": "value"},
		"_meta": map[string]any{"io.modelcontextprotocol/protocolVersion": revision, "io.modelcontextprotocol/clientCapabilities": map[string]any{},
			"io.modelcontextprotocol/clientInfo": map[string]string{"name": "bench", "version": "1"}}}}
	var answer struct {
		Result struct {
			IsError    bool `json:"isError"`
			Structured struct {
				Value string `json:"value"`
			} `json:"structuredContent"`
		} `json:"result"`
	}
	_, err := ask(ctx, "POST", k.url, request, &answer, "Authorization", "Bearer "+k.token, "Accept", "application/json, text/event-stream",
		"Mcp-Protocol-Version", revision, "Mcp-Method", "tools/call", "Mcp-Name", "lease_credential")
	if err == nil && (answer.Result.IsError || answer.Result.Structured.Value == "") {
		err = errors.New("it lent nothing")
	}
	return err
}

// twoPorts finds two that are free.
func twoPorts() (a, b string, err error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer first.Close()
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer second.Close()
	return first.Addr().String(), second.Addr().String(), nil
}
