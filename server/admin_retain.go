package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"keylease/internal/lease"
	"keylease/store"
)

// exportedRequest confirms an export. File is for people: the daemon does not look for it.
type exportedRequest struct {
	End  store.ExportEnd `json:"end"`
	File string          `json:"file"`
}

// export streams an export of the trail (see store.Export). The status is sent before its first line, so after a fault it
// has no end, and the last line has the shape of every error.
func (a admin) export(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q, err := entryQuery(v)
	if err != nil {
		a.refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := bufio.NewWriterSize(hastyWriter{w, http.NewResponseController(w)}, 64<<10)
	_, err = a.Broker.Export(r.Context(), out, q.Since, v.Get("rest") == "true")
	if err != nil && r.Context().Err() == nil {
		ref := lease.AsRefusal(err)
		if ref == nil {
			ref = a.fault(err)
		}
		_, _ = out.WriteString("\n")
		_ = json.NewEncoder(out).Encode(wireFrom(ref))
	}
	_ = out.Flush()
}

// hastyWriter gives each write stalled to be taken: the trail is being read, and must not wait for a client for ever.
type hastyWriter struct {
	io.Writer
	control *http.ResponseController
}

func (w hastyWriter) Write(b []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(stalled))
	return w.Writer.Write(b)
}

func (a admin) exported(c call) (any, error) {
	var q exportedRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	return a.Broker.Exported(c.Context(), c.admin, q.End, q.File)
}

func (a admin) trailStatus(call) (any, error) { return a.Broker.TrailStatus() }

// Export writes an export of the trail to w: all of it, from the first entry of since on, or only what no confirmed
// export holds. Where it returns an error, what was written has no end.
func (c *AdminClient) Export(ctx context.Context, w io.Writer, since time.Time, rest bool) error {
	v := url.Values{}
	if !since.IsZero() {
		v.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if rest {
		v.Set("rest", "true")
	}
	body, err := c.do(ctx, "GET", "/v1/audit/export?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines, ended := bufio.NewReaderSize(body, 64<<10), false
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if bytes.HasPrefix(line, []byte(`{"error":`)) {
				if r := refusal(line); r != nil {
					return r
				}
			}
			ended = bytes.HasPrefix(line, []byte(`{"end":`))
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && !ended:
			return fmt.Errorf("the daemon stopped in the middle of the export")
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("reading the export: %w", err)
		}
	}
}

// Exported confirms that an export is whole, verified, and in a file that will last.
func (c *AdminClient) Exported(ctx context.Context, end store.ExportEnd, file string) (s lease.TrailStatus, err error) {
	return s, c.call(ctx, "POST", "/v1/audit/exported", exportedRequest{end, file}, &s)
}

// TrailStatus tells how much trail there is.
func (c *AdminClient) TrailStatus(ctx context.Context) (s lease.TrailStatus, err error) {
	return s, c.call(ctx, "GET", "/v1/audit/status", nil, &s)
}
