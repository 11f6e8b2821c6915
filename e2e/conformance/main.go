// Conformance is keylease's real transport stack for the official MCP conformance suite, which can't send a token and
// wants tools of its own. It is for tests alone: no release holds it. Its rule: what the suite meets is what clients of
// keylease meet, in the same order and with the same limits; only the tools behind it are fixtures.
//
//	conformance fixtures COMMAND…     a whole daemon with fixture tools, on a new store in a temporary folder
//	conformance front URL COMMAND…    a daemon that runs already; its token is in E2E_TOKEN
//
// Either runs COMMAND with the address for the suite in CONFORMANCE_URL, and ends as it ends.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/lease"
	"keylease/server"
	"keylease/store"
)

func main() {
	err := run(context.Background(), os.Args[1:])
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		os.Exit(ended.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) > 1 && args[0] == "fixtures":
		return withFixtures(ctx, args[1:])
	case len(args) > 2 && args[0] == "front":
		return withFront(ctx, args[1], os.Getenv("E2E_TOKEN"), args[2:])
	}
	return errors.New("usage: conformance fixtures COMMAND… | conformance front URL COMMAND…")
}

// withFixtures runs command while a daemon runs that is made as cmd/keylease makes one, but for its tools.
func withFixtures(ctx context.Context, command []string) error {
	dir, err := os.MkdirTemp("", "keylease-conformance-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log := zerolog.New(os.Stderr).Level(zerolog.InfoLevel)
	paths := server.Paths{Data: filepath.Join(dir, "data"), Config: filepath.Join(dir, "config")}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var token string
	var running sync.WaitGroup
	var ended error
	err = server.Serve(ctx, server.Options{
		MCP: fixtures(), Log: log, Version: "conformance", Paths: paths, HTTPAddr: "127.0.0.1:0",
		Open: func(ctx context.Context) (b *lease.Broker, closeAll func() error, err error) {
			if b, closeAll, err = openBroker(ctx, paths, log); err == nil {
				token, _, err = b.CreateToken(ctx, server.LocalOperator(os.Getuid()), lease.TokenSpec{Identity: "conformance"})
			}
			return b, closeAll, err
		},
		Ready: func(l server.Listening) {
			running.Go(func() {
				defer cancel()
				ended = withFront(ctx, "http://"+l.HTTP, token, command)
			})
		},
	})
	running.Wait()
	return errors.Join(err, ended)
}

func openBroker(ctx context.Context, paths server.Paths, log zerolog.Logger) (*lease.Broker, func() error, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	if err := os.MkdirAll(paths.Config, 0o700); err != nil {
		return nil, nil, err
	}
	st, err := store.Open(store.Options{Dir: paths.Data, AnchorDir: paths.Config, RootKey: key, KeySource: "file",
		Create: true, Log: log, Now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	b, err := lease.Open(ctx, lease.Config{Store: st, Log: log, Now: time.Now, KeySource: "file", Version: "conformance"})
	if err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}
	return b, func() error { return errors.Join(b.Close(), st.Close()) }, nil
}

// withFront runs command while a proxy adds the token to every request. It changes nothing else: Host, Origin and all
// other headers reach the daemon as the suite sent them, and streams flow.
func withFront(ctx context.Context, to, token string, command []string) error {
	target, err := url.Parse(to)
	if err != nil {
		return err
	}
	if token == "" {
		return errors.New("there is no token to send")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.Header.Set("Authorization", "Bearer "+token)
		},
	}
	front := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Read whole first: an answer that begins early ends the reading of its request, and would cut its own stream.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "the front could not read the request", http.StatusBadGateway)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = front.Serve(l) })
	defer serving.Wait()
	defer front.Close()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "CONFORMANCE_URL=http://"+l.Addr().String()+"/mcp")
	return c.Run()
}
