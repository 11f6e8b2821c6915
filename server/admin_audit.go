package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"keylease/internal/lease"
	"keylease/store"
)

// audit streams entries, one JSON object a line, oldest first. The status is sent before the first of them, so a fault
// in the middle is a last line of the shape of every error.
func (a admin) audit(w http.ResponseWriter, r *http.Request) {
	q, err := entryQuery(r.URL.Query())
	if err != nil {
		a.refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	s := entryStream{json.NewEncoder(w), http.NewResponseController(w)}
	if err := a.stream(r.Context(), q, s); err != nil && r.Context().Err() == nil {
		ref := lease.AsRefusal(err)
		if ref == nil {
			ref = a.fault(err)
		}
		_ = s.out.Encode(wireFrom(ref))
	}
}

// stalled is how long a client may take to read one entry.
const stalled = 10 * time.Second

type entryStream struct {
	out   *json.Encoder
	flush *http.ResponseController
}

// stream writes what is there, then, when asked to follow, waits for more and writes that, until the client leaves.
func (a admin) stream(ctx context.Context, q EntryQuery, s entryStream) error {
	f := lease.EntryFilter{Since: q.Since, Identity: q.Identity, Credential: q.Credential, Event: q.Event, LeaseID: q.LeaseID}
	next := uint64(1)
	write := func(e *store.Entry) error {
		next = max(next, e.Seq+1)
		_ = s.flush.SetWriteDeadline(time.Now().Add(stalled)) // the trail is being read: it must not wait for a client
		return s.out.Encode(e)
	}
	if err := a.newest(ctx, f, q.Limit, write); err != nil || !q.Follow {
		return err
	}
	for {
		if err := s.flush.Flush(); err != nil {
			return err
		}
		if err := a.Broker.Follow(ctx, next); err != nil {
			return err
		}
		from := next
		if err := a.Broker.Entries(ctx, lease.EntryFilter{From: from}, func(e *store.Entry) error {
			next = e.Seq + 1 // past what the filter leaves out, too
			return nil
		}); err != nil {
			return err
		}
		f.From = from
		if err := a.Broker.Entries(ctx, f, write); err != nil {
			return err
		}
	}
}

// newest passes the last limit entries to fn; all of them for 0.
func (a admin) newest(ctx context.Context, f lease.EntryFilter, limit int, fn func(*store.Entry) error) error {
	if limit == 0 {
		return a.Broker.Entries(ctx, f, fn)
	}
	ring := make([]store.Entry, 0, min(limit, 1024))
	seen := 0
	err := a.Broker.Entries(ctx, f, func(e *store.Entry) error {
		if len(ring) < limit {
			ring = append(ring, *e)
		} else {
			ring[seen%limit] = *e
		}
		seen++
		return nil
	})
	for i := 0; err == nil && i < len(ring); i++ {
		at := i
		if len(ring) == limit {
			at = (seen + i) % limit
		}
		err = fn(&ring[at])
	}
	return err
}

func entryQuery(v url.Values) (EntryQuery, error) {
	q := EntryQuery{Identity: v.Get("identity"), Credential: v.Get("credential"), Event: v.Get("event"), LeaseID: v.Get("lease"),
		Follow: v.Get("follow") == "true"}
	bad := &lease.Refusal{Code: lease.InvalidArgument, Message: "since must be a time as in RFC 3339, limit a number from 0 to 1000000"}
	if s := v.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return q, bad
		}
		q.Since = t
	}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 1_000_000 {
			return q, bad
		}
		q.Limit = n
	}
	return q, nil
}

func (a admin) verify(c call) (any, error) {
	var q struct {
		Key string `json:"key"`
	}
	if err := c.read(&q); err != nil {
		return nil, err
	}
	r, err := a.Broker.Verify(c.Context(), q.Key)
	if err != nil {
		return nil, err
	}
	return VerifyReport{r.Problem == "", r}, nil
}
