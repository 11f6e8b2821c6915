package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/pace"
	"keylease/internal/passphrase"
)

// adminOptions is what the admin verbs work with. Peers, Handover and Listening may be nil.
type adminOptions struct {
	Broker    *lease.Broker
	Log       zerolog.Logger
	Version   string
	Peers     *mcpPeers
	Auto      bool
	Handover  func() // drain and exit, after the answer
	Listening func() Listening
	Now       func() time.Time

	Passphrase passphrase.Hash // what approve wants to be given; zero: nothing
}

// admin answers the operator's verbs. Who may reach it was decided by the socket: the peer has the daemon's uid or, in
// system mode, another that administers. What is decided here is that it does not come from an MCP client. That is a hurdle, not a wall: a process can
// leave its parents behind, and a shell under this uid can do worse.
type admin struct {
	adminOptions
	tries  *pace.Paces // of the passphrase
	trying *sync.Mutex
}

func newAdminHandler(o adminOptions) http.Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := admin{o, pace.New(passphraseRate, passphraseBurst), new(sync.Mutex)}
	mux := http.NewServeMux()
	for pattern, do := range map[string]verb{
		"GET /v1/status":                     a.status,
		"GET /v1/credentials":                a.credentials,
		"POST /v1/credentials":               a.put,
		"GET /v1/credentials/{name}":         a.credential,
		"DELETE /v1/credentials/{name}":      a.remove,
		"POST /v1/credentials/{name}/rotate": a.rotate,
		"POST /v1/credentials/{name}/revoke": a.revoke,
		"POST /v1/seed":                      a.seed,
		"GET /v1/leases":                     a.leases,
		"POST /v1/leases/revoke":             a.revokeLeases,
		"DELETE /v1/leases/{id}":             a.endLease,
		"GET /v1/tokens":                     a.tokens,
		"POST /v1/tokens":                    a.createToken,
		"POST /v1/tokens/{id}/rotate":        a.rotateToken,
		"POST /v1/tokens/{id}/revoke":        a.revokeToken,
		"GET /v1/approvals":                  a.approvals,
		"POST /v1/approvals/{id}/approve":    a.approve,
		"POST /v1/approvals/{id}/deny":       a.deny,
		"POST /v1/freeze":                    a.freeze,
		"POST /v1/thaw":                      a.thaw,
		"POST /v1/policy/explain":            a.explain,
		"POST /v1/audit/verify":              a.verify,
		"POST /v1/rotate-key":                a.rotateKey,
		"POST /v1/audit/exported":            a.exported,
		"GET /v1/audit/status":               a.trailStatus,
	} {
		mux.Handle(pattern, a.handle(do))
	}
	mux.HandleFunc("GET /v1/audit", a.audit)
	mux.HandleFunc("POST /v1/backup", a.backup)
	mux.HandleFunc("GET /v1/audit/export", a.export)
	root := http.NewServeMux()
	root.HandleFunc("POST /v1/handover", a.handover)
	root.Handle("/", a.notFromAgents(mux))
	return a.recovering(root)
}

// verb does one thing for the operator who is in the call and returns what is answered as JSON.
type verb func(call) (any, error)

type call struct {
	*http.Request
	admin identity.Caller
}

// read fills into from the body. What it says about a fault holds nothing of the body.
func (c call) read(into any) error {
	d := json.NewDecoder(c.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &lease.Refusal{Code: lease.InvalidArgument, Message: "the daemon does not understand this request",
			Hint: "The daemon may be of another version, or the request over 16 MiB: compare keylease version with what keylease serve printed."}
	}
	return nil
}

func (a admin) handle(do verb) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
		answer, err := do(call{r, operator(r)})
		if err != nil {
			a.refuse(w, err)
			return
		}
		a.write(w, http.StatusOK, answer)
	})
}

// notFromAgents refuses whoever descends from an MCP client that is connected now.
func (a admin) notFromAgents(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer := peerFrom(r.Context()); peer != nil && a.Peers != nil {
			why, yes := a.Peers.descends(peer.PID)
			if peer.gone() { // so what was looked up may be about another process, which has its number now
				a.refuse(w, &lease.Refusal{Code: CodeDenied, Message: "the process that connected is gone: who asks now can't be known",
					Hint: "Run the command again; a connection is not to be handed on."})
				return
			}
			if yes {
				a.Log.Warn().Int("pid", peer.PID).Str("why", why).Str("verb", r.Method+" "+r.URL.Path).Msg("an admin verb was refused to a process of an MCP client")
				a.refuse(w, &lease.Refusal{Code: CodeDenied, Message: "admin commands are refused to a process that an MCP client started: " + why,
					Hint: "Run this yourself in a terminal that the agent did not open."})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// recovering keeps a fault of one verb from the others and its words from the client.
func (a admin) recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch fault := recover(); fault {
			case nil:
			case http.ErrAbortHandler:
				panic(fault)
			default:
				a.refuse(w, fmt.Errorf("panic in %s %s: %T", r.Method, r.URL.Path, fault))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// handover lets go of the store for a newer daemon. It is open to relays, which ask for it: all it does is a restart.
func (a admin) handover(w http.ResponseWriter, _ *http.Request) {
	if !a.Auto || a.Handover == nil {
		a.refuse(w, &lease.Refusal{Code: lease.Conflict, Message: fmt.Sprintf("this daemon was started by hand (pid %d) and stays", os.Getpid()),
			Hint: "Stop it where it was started."})
		return
	}
	a.write(w, http.StatusOK, struct{}{})
	_ = http.NewResponseController(w).Flush()
	a.Handover()
}

func (a admin) status(c call) (any, error) {
	a.Broker.ReloadPolicy(c.Context()) // so that what is said of the file is so
	act := a.Broker.Activity()
	s := Status{Version: a.Version, PID: os.Getpid(), Auto: a.Auto, Credentials: act.Credentials, LiveLeases: act.LiveLeases,
		Healthy: act.Healthy, Problem: act.Problem, Frozen: act.Frozen, Policy: a.Broker.PolicyStatus(), ClockBehind: act.Skew.Seconds()}
	if a.Listening != nil {
		s.HTTP = a.Listening().HTTP
	}
	return s, nil
}

// operator is whom the trail names: the peer's uid, and the name that the system knows it by.
func operator(r *http.Request) identity.Caller {
	uid := os.Getuid()
	peer := peerFrom(r.Context())
	if peer == nil {
		return LocalOperator(uid)
	}
	c := LocalOperator(peer.UID)
	c.PID = peer.PID
	return c
}

// LocalOperator is the person who has this uid on this machine, as callers of admin verbs are known.
func LocalOperator(uid int) identity.Caller {
	id := strconv.Itoa(uid)
	name := "uid:" + id
	if u, err := user.LookupId(id); err == nil && identity.CheckName(strings.ToLower(u.Username)) == nil {
		name = strings.ToLower(u.Username)
	}
	return identity.Caller{Transport: "local", Principal: identity.Principal{
		Type: identity.Human, Name: name, Proof: identity.Declared, By: "uid:" + id}}
}

// statusOf gives every refusal its HTTP status. The CLI goes by the code; this is for whoever looks with curl.
func statusOf(code lease.Code) int {
	switch code {
	case lease.InvalidArgument:
		return http.StatusBadRequest
	case lease.NotFound, lease.NotAvailable:
		return http.StatusNotFound
	case lease.Conflict, lease.LeaseEnded, lease.LeaseLimit, lease.ApprovalDenied:
		return http.StatusConflict
	case CodeDenied:
		return http.StatusForbidden
	case lease.Unavailable:
		return http.StatusServiceUnavailable
	case lease.RateLimited:
		return http.StatusTooManyRequests
	}
	return http.StatusInternalServerError
}

// refuse answers err. What is no Refusal is logged under an id and told by that id alone.
func (a admin) refuse(w http.ResponseWriter, err error) {
	r := lease.AsRefusal(err)
	if r == nil {
		r = a.fault(err)
	}
	a.write(w, statusOf(r.Code), wireFrom(r))
}

func (a admin) fault(err error) *lease.Refusal {
	id := newSessionID()
	a.Log.Error().Err(err).Str("id", id).Msg("an admin verb failed")
	return &lease.Refusal{Code: lease.Internal, ID: id, Message: "keylease hit an internal fault (" + id + ")",
		Hint: "The daemon's log has the details under this id."}
}

func (a admin) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.Log.Debug().Err(err).Msg("an admin client left before its answer")
	}
}
