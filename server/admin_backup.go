package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"keylease/internal/lease"
	"keylease/store"
)

// backupTrailer is the HTTP trailer that says what the backup holds. It comes when the backup is whole, and never
// otherwise.
const backupTrailer = "Keylease-Backup"

// backupStalled is how long a client may take to read one frame: its disk may be slow, or a line to another machine.
const backupStalled = time.Minute

// backup streams a backup. A fault in the middle breaks the connection off: what the client has is no backup, and it
// knows.
func (a admin) backup(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", backupTrailer)
	out := &backupWriter{ResponseWriter: w, within: http.NewResponseController(w)}
	is, err := a.Broker.Backup(r.Context(), operator(r), out)
	if err != nil && !out.begun {
		w.Header().Del("Trailer")
		a.refuse(w, err)
		return
	}
	if err == nil {
		var said []byte
		said, err = json.Marshal(is)
		w.Header().Set(backupTrailer, string(said))
	}
	if err != nil {
		if r.Context().Err() == nil {
			a.Log.Error().Err(err).Msg("a backup broke off")
		}
		panic(http.ErrAbortHandler)
	}
}

// backupWriter gives up on a client that does not read: the store keeps what is being read, and nothing destroyed
// meanwhile leaves its files.
type backupWriter struct {
	http.ResponseWriter
	within *http.ResponseController
	begun  bool
}

func (w *backupWriter) Write(b []byte) (int, error) {
	w.begun = true
	_ = w.within.SetWriteDeadline(time.Now().Add(backupStalled))
	return w.ResponseWriter.Write(b)
}

type rotateKeyRequest struct {
	Key []byte `json:"key"` // null: the daemon makes one
}

func (a admin) rotateKey(c call) (any, error) {
	var q rotateKeyRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	defer clear(q.Key)
	if q.Key != nil && len(q.Key) != 32 {
		return nil, &lease.Refusal{Code: lease.InvalidArgument, Message: "a root key is 32 bytes", Hint: "openssl rand -hex 32 makes one."}
	}
	return a.Broker.RotateKey(c.Context(), c.admin, q.Key)
}

// Backup has the daemon write everything to out, sealed. On an error what was written is no backup.
func (c *AdminClient) Backup(ctx context.Context, out io.Writer) (b store.Backup, err error) {
	resp, err := c.answer(ctx, "POST", "/v1/backup", nil)
	if err != nil {
		return b, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return b, errors.New("the daemon broke the backup off: its log says why")
		}
		return b, fmt.Errorf("writing the backup: %w", err)
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(backupTrailer)), &b); err != nil {
		return b, errors.New("the daemon did not end the backup as it should")
	}
	return b, nil
}

// RotateKey replaces the store's root key: by key, or where that is nil by one that the daemon makes.
func (c *AdminClient) RotateKey(ctx context.Context, key []byte) (r lease.KeyRotation, err error) {
	return r, c.call(ctx, "POST", "/v1/rotate-key", rotateKeyRequest{key}, &r)
}
