package store

import (
	"encoding/hex"
	"fmt"
	"time"

	"keylease/internal/secret"
)

// Digest is a SHA-256; in text it is hex.
type Digest [32]byte

// MarshalText writes hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(b []byte) error { return unhex(d[:], b) }

// Salt keeps the hash of an Entry from being guessed from its content; in text it is hex.
type Salt [16]byte

// MarshalText writes hex.
func (s Salt) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Salt) UnmarshalText(b []byte) error { return unhex(s[:], b) }

func unhex(into, text []byte) error {
	if hex.DecodedLen(len(text)) != len(into) {
		return fmt.Errorf("%d hex digits where %d belong", len(text), hex.EncodedLen(len(into)))
	}
	_, err := hex.Decode(into, text)
	return err
}

// Kind is what a sealed record is about.
type Kind string

const (
	KindCredential Kind = "credential"
	KindToken      Kind = "token"
	KindValue      Kind = "value" // of one credential version; only in a RecordRef
)

// RecordRef is what an Entry says of a record that was written with it: whoever rebuilds the index from the trail
// knows by it which record is the newest, so an older one put back is refused though it was once valid.
type RecordRef struct {
	Kind    Kind   `json:"kind"`
	ID      string `json:"id"`
	Version int    `json:"version,omitempty"` // of a value; 0 for all else
	Seq     uint64 `json:"seq"`               // of the Entry that wrote it
	Digest  Digest `json:"digest"`            // of the sealed bytes
}

// EntryIdentity is who did it, as the transport established it. ClientName and ClientVersion are only claimed.
type EntryIdentity struct {
	Type          string `json:"type,omitempty"`
	Name          string `json:"name,omitempty"`
	Proof         string `json:"proof,omitempty"`
	By            string `json:"by,omitempty"`
	Session       string `json:"session,omitempty"`
	ClientName    string `json:"client_name,omitempty"`
	ClientVersion string `json:"client_version,omitempty"`
}

// Entry is one event of the trail. The caller of Submit fills in what happened; Seq, Records, Salt, Prev and Hash
// are the committer's.
type Entry struct {
	Seq          uint64        `json:"seq"` // from 1, without gaps
	Time         time.Time     `json:"time"`
	Event        Event         `json:"event"`
	Identity     EntryIdentity `json:"identity,omitzero"`
	Credential   string        `json:"credential,omitempty"`
	CredentialID string        `json:"credential_id,omitempty"`
	Version      int           `json:"version,omitempty"`
	LeaseID      string        `json:"lease_id,omitempty"`
	Purpose      string        `json:"purpose,omitempty"`
	Details      Details       `json:"details,omitempty"` // only what the event's row in events.go allows
	Records      []RecordRef   `json:"records,omitempty"`
	Salt         Salt          `json:"salt"`
	Prev         Digest        `json:"prev"` // Hash of Seq-1; zero in the first
	Hash         Digest        `json:"hash"` // over all of the above: see encode.go
}

// Change is one event and what has to be on disk with it, or not at all.
type Change struct {
	Entry   Entry
	Records []RecordWrite
	Values  []ValueWrite
	Deletes []RecordDelete
	// Owed: it takes effect whether or not it can be written, so one that could not is handed back: see Store.Lost.
	Owed bool
}

// RecordWrite is a record to be sealed.
type RecordWrite struct {
	Kind  Kind
	ID    string
	Plain []byte
}

// ValueWrite is a credential version to be sealed under a key of its own. The caller wipes Value after Wait.
type ValueWrite struct {
	CredentialID string
	Version      int
	Value        secret.Secret
}

// RecordDelete is a record that goes.
type RecordDelete struct {
	Kind Kind
	ID   string
}

// ValueRef names one credential version.
type ValueRef struct {
	CredentialID string
	Version      int
}

// Report is what Verify found. Problem is empty when all holds.
type Report struct {
	Entries       uint64 `json:"entries"`       // that were recomputed and hold
	Head          Digest `json:"head"`          // hash of the last of them
	HeadSeq       uint64 `json:"head_seq"`      // its number
	Fingerprint   string `json:"fingerprint"`   // of the key that signs this store's heads
	Authenticated bool   `json:"authenticated"` // the fingerprint is the pinned one and signed the head
	FirstBad      uint64 `json:"first_bad,omitempty"`
	Problem       string `json:"problem,omitempty"`
	Base          *Base  `json:"base,omitempty"` // what the first of them follows; nil: nothing was pruned
}
