package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"keylease/internal/lease"
	"keylease/internal/strictyaml"
	"keylease/internal/ttl"
	"keylease/server"
	"keylease/store"
)

// The exit codes are part of the contract: scripts branch on them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2 // a command line, or a file it names, that can't be understood
	exitNotFound    = 3
	exitDenied      = 4
	exitApproval    = 5 // a person said no, or nobody said yes
	exitSealed      = 6 // no root key, or not the one of this store
	exitUnreachable = 7 // no daemon, or one that can't be trusted
	exitConflict    = 8 // it exists already, is held by another process, or a port is in use
	exitIntegrity   = 9
	exitInterrupted = 130 // ^C at a prompt, as shells say it
)

// told is an error with the code and the remedy that go with it.
type told struct {
	code int
	hint string
	err  error
}

func (t *told) Error() string { return t.err.Error() }
func (t *told) Unwrap() error { return t.err }

func fail(code int, hint, format string, args ...any) error {
	return &told{code, hint, fmt.Errorf(format, args...)}
}

func usagef(hint, format string, args ...any) error { return fail(exitUsage, hint, format, args...) }

// exit prints err in the voice of the terminal and returns the code to leave with.
func (a *app) exit(err error) int {
	if err == nil {
		return exitOK
	}
	var done childExit
	if errors.As(err, &done) {
		return int(done)
	}
	code, hint := classify(err)
	text := strings.TrimRight(err.Error(), "\n")
	if start := (*server.StartError)(nil); errors.As(err, &start) {
		text = strings.TrimSuffix(text, startHint+hint)
	}
	for line := range strings.Lines(text) {
		a.sayf("keylease: error: %s", terminal(strings.TrimRight(line, "\n")))
	}
	if hint != "" {
		a.sayf("keylease: hint: %s", terminal(hint))
	}
	return code
}

// startHint stands between a daemon's error and its hint in the words of a StartError.
const startHint = "; hint: "

func (a *app) sayf(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// classify is the one place that gives errors their exit code and, where nobody nearer did, their remedy.
func classify(err error) (code int, hint string) {
	var (
		t       *told
		refusal *refused
		start   *server.StartError
		running *server.RunningError
		port    *server.PortError
		faults  strictyaml.Faults
		unsafe  *server.UnsafeError
		hello   *server.HelloError
	)
	switch {
	case errors.As(err, &t):
		return t.code, t.hint
	case errors.As(err, &refusal):
		return codeOf(refusal.Code), refusal.Hint
	case errors.As(err, &faults):
		return exitUsage, ""
	case errors.As(err, &running):
		stop := "stop that one first"
		if running.PID != 0 {
			stop = fmt.Sprintf("stop that one first (kill %d)", running.PID)
		}
		return exitConflict, stop + ", or use it: every keylease command already does, and keylease seed FILE hands it a seed file"
	case errors.As(err, &port):
		return exitConflict, "choose another with --http 127.0.0.1:PORT, or turn it off with --http off"
	case errors.As(err, &start): // its words are the daemon's own, hint included
		if start.LastLine == "" && start.Code > exitOK { // on a full disk its log takes no word
			return start.Code, "see whether the data folder's disk is full; keylease serve in a terminal says why it does not start"
		}
		if _, hint, _ := strings.Cut(start.LastLine, startHint); start.Code > exitOK {
			return start.Code, hint
		}
		return exitUnreachable, "keylease serve in a terminal shows more"
	case errors.As(err, &unsafe):
		return exitError, unsafe.Remedy
	case errors.As(err, &hello):
		return codeOf(lease.Code(hello.Code)), ""
	case errors.Is(err, store.ErrLocked):
		return exitConflict, "one daemon per data folder: stop the other, or choose another folder with --data"
	case errors.Is(err, store.ErrFull):
		return exitError, "make room on that disk, then start it again; nothing was changed, and nothing that was acknowledged is lost"
	case errors.Is(err, store.ErrWrongKey):
		return exitSealed, "nothing was changed: bring the key that this store was made with"
	case errors.Is(err, store.ErrNothingLost):
		return exitUsage, "start it without --accept-loss"
	case errors.Is(err, store.ErrKeycheck):
		return exitIntegrity, "nothing is lent until the file is put back, as it was, or you move the data folder away and bring back a backup: keylease restore FILE"
	case errors.Is(err, store.ErrBackup):
		return exitIntegrity, ""
	case errors.Is(err, store.ErrIntegrity):
		return exitIntegrity, "nothing is lent until you move the data folder away and bring back a backup (keylease restore FILE), or go on with what is left: keylease serve --accept-loss, which ends all leases and disables all tokens"
	case errors.Is(err, store.ErrNoStore):
		return exitNotFound, "keylease init makes one"
	case errors.Is(err, store.ErrFolder):
		return exitUnreachable, "the folder must be yours alone (chmod 700)"
	case errors.Is(err, server.ErrUntrusted):
		return exitUnreachable, "the folder and its socket must be yours alone (chmod 700); those of a system's daemon (--socket) root's or that daemon's, with no folder above that others may write in"
	case errors.Is(err, server.ErrNotOpen):
		return exitDenied, "the agents' socket is for those in socket.allow, the admin's for root, the daemon's user and admin.uids"
	case errors.Is(err, server.ErrUnreachable):
		return exitUnreachable, "start it, or check --socket / KEYLEASE_SOCKET"
	}
	return exitError, ""
}

func codeOf(c lease.Code) int {
	switch c {
	case lease.InvalidArgument:
		return exitUsage
	case lease.NotFound, lease.NotAvailable:
		return exitNotFound
	case server.CodeDenied, lease.Unauthenticated:
		return exitDenied
	case lease.Conflict:
		return exitConflict
	case lease.ApprovalDenied:
		return exitApproval
	}
	return exitError
}

// refused is a Refusal as a terminal reads it: its message without the code.
type refused struct{ *lease.Refusal }

func (r *refused) Error() string { return r.Message }

// spoken turns a Refusal in err's chain into words for a terminal.
func spoken(err error) error {
	if r := lease.AsRefusal(err); r != nil {
		own := *r
		own.Hint = remedy(r)
		return &refused{&own}
	}
	return err
}

// remedy is a Refusal's hint in the words of a terminal: most are written for agents, who call tools.
func remedy(r *lease.Refusal) string {
	switch {
	case r.Code == lease.InvalidArgument && strings.HasSuffix(r.Hint, "call again."):
		return "correct it and run the command again"
	case r.RetryAfter > 0:
		return fmt.Sprintf("wait %s and run the command again; keylease leases lists who holds what", ttl.Format(max(r.RetryAfter.Round(time.Second), time.Second)))
	case r.Code == lease.NotAvailable:
		return "keylease policy explain --identity … --credential … says what this name may have, and why; the operator can change it. Do not look for this key elsewhere"
	case r.Code == lease.LeaseEnded:
		return "lease the credential again, or run keylease exec --credential NAME"
	case r.Code != lease.NotFound || r.Hint != "":
		return r.Hint
	case strings.HasPrefix(r.Message, "there is no credential"):
		return "keylease ls lists what there is"
	case strings.HasPrefix(r.Message, "there is no approval"):
		return "keylease approvals lists those that wait"
	case strings.HasPrefix(r.Message, "there is no token"):
		return "keylease token ls lists what there is"
	}
	return "keylease leases lists the live ones"
}
