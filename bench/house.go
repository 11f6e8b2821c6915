//go:build linux

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

// house is the engine in this process, on a store that the shipped daemon could open.
type house struct {
	*lease.Broker
	store  *store.Store
	w      *world
	closed bool
	next   atomic.Int64
	end    context.CancelFunc
	ended  chan struct{}
}

var operator = identity.Caller{Principal: identity.Principal{Type: identity.Human, Name: "root", By: "uid:0"}}

// house opens the store of w, making it with so many credentials.
func (w *world) house(credentials int) (*house, error) { return w.houseAt(credentials, time.Now) }

// houseAt is house with another clock.
func (w *world) houseAt(credentials int, now func() time.Time) (*house, error) {
	rootKey := make([]byte, 32)
	copy(rootKey, "a fake key for benchmarks only")
	if err := w.write(filepath.Join(w.config(), "root.key"), hex.EncodeToString(rootKey)+"\n"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.data(), 0o700); err != nil {
		return nil, err
	}
	s, err := store.Open(store.Options{Dir: w.data(), AnchorDir: w.config(), RootKey: rootKey, KeySource: "file", Create: true, Log: zerolog.Nop(), Now: now})
	if err != nil {
		return nil, err
	}
	b, err := lease.Open(context.Background(), lease.Config{Store: s, PolicyFile: policyFile(w.policyFile()), Log: zerolog.Nop(), Now: now, KeySource: "file", Version: "bench"})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	h := &house{Broker: b, store: s, w: w, ended: make(chan struct{})}
	ctx, end := context.WithCancel(context.Background())
	h.end = end
	go func() { defer close(h.ended); _ = b.Run(ctx) }()
	w.r.later(func() { _ = h.close() })
	for i := range credentials {
		name := credential(i)
		_, err := b.Put(context.Background(), operator, lease.NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte(valueOf(name))),
			Metadata: map[string]string{"environment": "development"}, Policy: policy.CredentialPolicy{MaxLeases: 1_000_000}})
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

// close writes the snapshot that a daemon writes when it stops.
func (h *house) close() error {
	if h.closed {
		return nil
	}
	h.closed = true
	h.end()
	<-h.ended
	return errors.Join(h.Broker.Close(), h.store.Close())
}

// policyFile looks at the file for each decision, as the daemon does.
func policyFile(path string) func(string) lease.PolicyRead {
	return func(prev string) lease.PolicyRead {
		r := lease.PolicyRead{Name: path}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			r.Err = fs.ErrNotExist
			return r
		}
		var b [64]byte
		stamp := strconv.AppendInt(append(strconv.AppendInt(b[:0], st.Size, 36), ' '), st.Ctim.Nano(), 36)
		if string(stamp) == prev {
			r.Stamp = prev
			return r
		}
		r.Stamp = string(stamp)
		r.Data, r.Err = os.ReadFile(path)
		return r
	}
}

// filled is a world whose store holds so many credentials and live leases, made while the clock said now. It is filled in
// memory, where syncing takes no time, and then put on the disk that is measured.
func (r *run) filled(credentials, live int, ttl time.Duration, now func() time.Time) (*world, error) {
	const memory = "/dev/shm"
	w, err := r.world()
	if err != nil {
		return nil, err
	}
	first := w
	var fs unix.Statfs_t
	if unix.Statfs(memory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) > 4<<30 {
		since := r.begun()
		defer r.clean(since)
		if first, err = r.worldOn(memory); err != nil {
			return nil, err
		}
	}
	h, err := first.houseAt(credentials, now)
	if err != nil {
		return nil, err
	}
	if err := h.fill(live, credentials, ttl); err != nil {
		return nil, err
	}
	if err := h.close(); err != nil {
		return nil, err
	}
	if first != w {
		if out, err := exec.Command("cp", "-a", "--sparse=always", first.home+"/.", w.home).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("putting the store on the disk: %w: %s", err, out)
		}
		if out, err := exec.Command("sync", "-f", w.home).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("syncing the disk: %w: %s", err, out)
		}
	}
	return w, nil
}

// caller is an agent of the local socket with a session of its own.
func (h *house) caller(i int) identity.Caller {
	c := identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: fmt.Sprintf("agent-%d", i), By: "uid:1000"},
		Session: fmt.Sprintf("s_%d", i), Transport: "local", UID: "1000", ClientName: "bench", ClientVersion: "1"}
	h.Attach(context.Background(), c)
	return c
}

// fill lends so many leases that last, ten to an identity, over so many credentials.
func (h *house) fill(n, credentials int, ttl time.Duration) error {
	const at = 256
	left := atomic.Int64{}
	left.Store(int64(n))
	errs := make(chan error, at)
	for range at {
		go func() {
			for {
				i := int(left.Add(-1))
				if i < 0 {
					errs <- nil
					return
				}
				c := identity.Caller{Principal: identity.Principal{Type: identity.Agent, Name: fmt.Sprintf("holder-%d", i/10), By: "uid:1000"}, Transport: "http"}
				if _, err := h.Lease(context.Background(), c, lease.Request{Credential: credential(i % credentials), TTL: ttl, Purpose: "hold", Delivery: policy.Value}); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var err error
	for range at {
		err = errors.Join(err, <-errs)
	}
	return err
}

// turn has so many callers lease, take the value, and give back: two durable changes.
func (h *house) turn(callers, credentials int) func(time.Duration) (sample, error) {
	who, names := make([]identity.Caller, callers), make([]string, credentials)
	for i := range who {
		who[i] = h.caller(int(h.next.Add(1)))
	}
	for i := range names {
		names[i] = credential(i)
	}
	return func(d time.Duration) (sample, error) {
		return load(callers, d, func(i int, note func(time.Duration)) error {
			ctx, began := context.Background(), time.Now()
			g, err := h.Lease(ctx, who[i], lease.Request{Credential: names[int(h.next.Add(1))%credentials], TTL: 30 * time.Minute,
				Purpose: "run the integration tests", Delivery: policy.Value})
			if err != nil {
				return err
			}
			value, err := h.Reveal(ctx, who[i], g.LeaseID)
			if err != nil {
				return err
			}
			value.Wipe()
			lent := time.Now()
			note(lent.Sub(began))
			if _, err := h.Release(ctx, who[i], g.LeaseID); err != nil {
				return err
			}
			note(time.Since(lent))
			return nil
		})
	}
}
