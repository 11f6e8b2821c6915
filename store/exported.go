package store

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ExportFile is an export to be read. It is opened twice.
type ExportFile struct {
	Name string
	Open func() (io.ReadCloser, error)
}

// ExportReport is what VerifyExports found. Problem is empty when all holds.
type ExportReport struct {
	Store         string `json:"store"`         // its id
	Fingerprint   string `json:"fingerprint"`   // of the key that signed
	From          uint64 `json:"from"`          // the first event
	Prev          Digest `json:"prev"`          // what it follows
	Seq           uint64 `json:"seq"`           // the last event
	Hash          Digest `json:"hash"`          // of the last event
	Entries       uint64 `json:"entries"`       // that were recomputed and hold; what two files hold counts once
	Authenticated bool   `json:"authenticated"` // the fingerprint is the pinned one
	MeetsBase     bool   `json:"meets_base"`    // they hold the event after which the store's trail begins
	Problem       string `json:"problem,omitempty"`
	FirstBad      uint64 `json:"first_bad,omitempty"`
	File          string `json:"file,omitempty"` // where the problem is

	Ends []ExportEnd `json:"-"` // of each file, the oldest first
}

// maxLine is the longest line an export can have: an Entry of maxEntry bytes whose texts are all written as \u00xx, and
// the refs of its records.
const maxLine = 8 * maxEntry

// VerifyExports recomputes exports without the store, or its root key: every Entry's hash, the chain, the signatures,
// and that each file goes on where the one before ended. They may come in any order and overlap. pinned is the
// fingerprint that the operator noted, or "". base, where it is not nil, is where the store's trail begins now: the
// exports must hold the event it stands for, or end right before its trail. An error means that it could not look. It
// needs the memory of one line.
func VerifyExports(ctx context.Context, files []ExportFile, pinned string, base *Base) (ExportReport, error) {
	var r ExportReport
	all := make([]*exportReader, 0, len(files))
	for _, f := range files {
		x := &exportReader{ExportFile: f}
		if err := x.peek(); err != nil {
			return r.failed(x, err)
		}
		all = append(all, x)
	}
	slices.SortStableFunc(all, func(a, b *exportReader) int { return cmp.Compare(a.begin.From, b.begin.From) })
	for i, x := range all {
		if i == 0 {
			r.Store, r.From, r.Prev, r.Seq, r.Hash = x.begin.Store, x.begin.From, x.begin.Prev, x.begin.From-1, x.begin.Prev
			r.meet(base, head{r.Seq, r.Hash})
		}
		if err := x.follow(ctx, &r, base); err != nil {
			return r.failed(x, err)
		}
		r.Ends = append(r.Ends, x.end)
	}
	switch {
	case r.Problem != "":
	case pinned != "" && pinned != r.Fingerprint:
		r.Problem = fmt.Sprintf("the exports are signed by %s, not by the pinned %s", r.Fingerprint, pinned)
	case base != nil && base.Seq > 0 && !r.MeetsBase:
		r.Problem = fmt.Sprintf("the store's trail begins after event %d, and these exports hold events %d to %d: others are missing", base.Seq, r.From, r.Seq)
	}
	r.Authenticated = r.Problem == "" && pinned != ""
	return r, nil
}

// failed puts what was found into the report, and returns what could not be looked at.
func (r ExportReport) failed(x *exportReader, err error) (ExportReport, error) {
	var bad *fault
	r.File = x.Name
	switch {
	case errors.As(err, &bad):
		r.FirstBad, r.Problem = bad.seq, bad.problem
	case errors.Is(err, ErrIntegrity):
		r.Problem = strings.TrimPrefix(err.Error(), ErrIntegrity.Error()+": ") // it is about a file, not the store
	default:
		return r, fmt.Errorf("reading %s: %w", x.Name, err)
	}
	return r, nil
}

func (r *ExportReport) meet(base *Base, h head) {
	if base != nil && h == base.head() {
		r.MeetsBase = true
	}
}

// exportReader reads one export.
type exportReader struct {
	ExportFile
	begin ExportBegin
	end   ExportEnd
	buf   []byte
}

func integrity(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrIntegrity, fmt.Sprintf(format, args...))
}

// lines passes each line without its end.
func (x *exportReader) lines(fn func(line []byte) error) error {
	in, err := x.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		if err := fn(lines.Bytes()); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return integrity("it has a line that is longer than any can be")
	}
	return lines.Err()
}

// peek reads the first line.
func (x *exportReader) peek() error {
	err := x.lines(func(line []byte) error {
		var first struct {
			Begin *ExportBegin `json:"begin"`
		}
		if json.Unmarshal(line, &first) != nil || first.Begin == nil || first.Begin.From == 0 || !exactly(line, first) {
			return integrity("it does not begin as an export of keylease")
		}
		x.begin = *first.Begin
		return io.EOF
	})
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return integrity("it is empty")
	}
	return err
}

// exactly reports whether line is what v is written as: no member twice, none that is not known, none in another case —
// what a reader of the file sees is what was signed.
func exactly(line []byte, v any) bool {
	again, err := json.Marshal(v)
	return err == nil && bytes.Equal(again, line)
}

// follow checks one file behind those that r has seen.
func (x *exportReader) follow(ctx context.Context, r *ExportReport, base *Base) error {
	if x.begin.Store != r.Store {
		return integrity("it is of store %s, not of %s like the others", x.begin.Store, r.Store)
	}
	if x.begin.From > r.Seq+1 {
		return &fault{r.Seq + 1, fmt.Sprintf("no file holds it: this one begins with event %d", x.begin.From)}
	}
	at := head{x.begin.From - 1, x.begin.Prev}
	joined := false // it and those before have an event in common, or are neighbours
	join := func() error {
		if at.seq != r.Seq {
			return nil
		}
		if joined = true; at.hash != r.Hash {
			return &fault{at.seq, "it is another than in the file before"}
		}
		return nil
	}
	if err := join(); err != nil {
		return err
	}
	n, ended := 0, false
	err := x.lines(func(line []byte) error {
		n++
		switch {
		case n == 1:
			return nil
		case ended:
			return integrity("there is something after its end")
		case bytes.HasPrefix(line, []byte(`{"end":`)):
			ended = true
			return x.endsAt(line, at)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := x.entry(line, at)
		if err != nil {
			return &fault{at.seq + 1, err.Error()}
		}
		at = head{e.Seq, e.Hash}
		if at.seq > r.Seq && joined {
			r.Seq, r.Hash = at.seq, at.hash
			r.Entries++
		}
		r.meet(base, at)
		return join()
	})
	if err != nil {
		return err
	}
	if !ended {
		return integrity("it has no end after event %d: it was cut short", at.seq)
	}
	print := fingerprintOf(x.end.PublicKey)
	if r.Fingerprint == "" {
		r.Fingerprint = print
	}
	if print != r.Fingerprint {
		return integrity("it is signed by %s, the others by %s", print, r.Fingerprint)
	}
	return nil
}

func (x *exportReader) endsAt(line []byte, at head) error {
	var last endLine
	if json.Unmarshal(line, &last) != nil || !exactly(line, last) {
		return integrity("its end is not what was written")
	}
	x.end = last.End
	if x.end.ExportBegin != x.begin || x.end.Seq != at.seq || x.end.Hash != at.hash {
		return integrity("its end is of another export: it stops at event %d, and its end says %d", at.seq, x.end.Seq)
	}
	if err := x.end.verifies(); err != nil {
		return integrity("%s", err)
	}
	return nil
}

// entry reads the Entry that has to follow at.
func (x *exportReader) entry(line []byte, at head) (*Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil || !exactly(line, &e) {
		return nil, errors.New("it is not written as keylease does")
	}
	if e.Seq != at.seq+1 {
		return nil, fmt.Errorf("event %d stands in its place", e.Seq)
	}
	if e.Prev != at.hash {
		return nil, errors.New("it does not follow the event before it")
	}
	if x.buf = reencode(x.buf, &e); sha256.Sum256(x.buf) != e.Hash {
		return nil, errors.New("its hash is of something else")
	}
	return &e, nil
}

func fingerprintOf(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
