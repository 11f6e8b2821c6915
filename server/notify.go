package server

import (
	"bytes"
	"context"
	"os/exec"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/lease"
)

// Notifier tells people of new questions by a program of the operator's: approvals.notify. It gets the question as JSON
// on stdin and nothing of the daemon's environment. Its answer is not asked for: it can approve nothing.
type Notifier struct {
	ctx   context.Context
	argv  []string
	home  string
	log   zerolog.Logger
	slots chan struct{} // those that run
	limit time.Duration
}

const (
	notifyTime  = 10 * time.Second
	notifyMost  = 4 // at a time
	notifyPath  = "/usr/local/bin:/usr/bin:/bin"
	notifyWords = 2 << 10 // bytes of its output that are kept for the log, at level debug
)

// NewNotifier runs argv, whose first is an absolute path, until ctx ends. nil argv: nobody is told.
func NewNotifier(ctx context.Context, argv []string, home string, log zerolog.Logger) *Notifier {
	return &Notifier{ctx: ctx, argv: argv, home: home, log: log, slots: make(chan struct{}, notifyMost), limit: notifyTime}
}

// Notify starts the program and does not wait for it.
func (n *Notifier) Notify(q lease.ApprovalInfo) {
	if len(n.argv) == 0 {
		return
	}
	select {
	case n.slots <- struct{}{}:
		go func() { // ends within notifyTime
			defer func() { <-n.slots }()
			n.run(q)
		}()
	default:
		n.log.Warn().Str("approval_id", q.ID).Msg("approvals.notify is still busy with earlier questions; this one is not announced")
	}
}

func (n *Notifier) run(q lease.ApprovalInfo) {
	ctx, cancel := context.WithTimeout(n.ctx, n.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.argv[0], n.argv[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + notifyPath, "HOME=" + n.home}
	cmd.Stdin = bytes.NewReader(append(mustJSON(q), '\n'))
	said := &firstBytes{most: notifyWords}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second // for children of its own that hold its output open
	ownGroup(cmd)
	err := cmd.Run()
	if err != nil {
		n.log.Warn().Err(err).Str("approval_id", q.ID).Msg("approvals.notify failed; the question waits all the same")
	}
	n.log.Debug().Str("approval_id", q.ID).Str("said", cleanText(said.String(), notifyWords)).Msg("approvals.notify ended")
}

// firstBytes keeps the beginning of what is written and takes the rest.
type firstBytes struct {
	bytes.Buffer
	most int
}

func (f *firstBytes) Write(p []byte) (int, error) {
	f.Buffer.Write(p[:min(len(p), f.most-f.Len())])
	return len(p), nil
}
