package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"keylease/internal/federation"
	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/tools"
)

const (
	maxBearer    = 512 // bytes; a token of ours is far shorter
	metadataPath = "/.well-known/oauth-protected-resource"
)

// identify says who sends r. An Authorization header decides, whatever it holds; without one, the certificate of the
// connection does. A client that sends a bad token is not let in by its certificate: it meant to be somebody else.
func (h *httpHandler) identify(r *http.Request) (federation.Entrant, error) {
	sent := r.Header["Authorization"]
	token := bearer(sent)
	switch {
	case h.Foreign == nil:
	case len(sent) == 0 && r.TLS != nil && len(r.TLS.PeerCertificates) > 0:
		e, err := h.Foreign.Certificate(r.TLS.PeerCertificates, h.TLS.clientCAs())
		return e, h.foreignFailed(r, err)
	case federation.IsJWT(token):
		e, err := h.Foreign.Bearer(r.Context(), token)
		return e, h.foreignFailed(r, err)
	}
	p, err := h.Authenticate(r.Context(), token, network(r.RemoteAddr)) // "" too: the attempt is counted
	if err == nil && token == "" {
		err = lease.ErrUnauthenticated
	}
	return federation.Entrant{Principal: p, Scopes: identity.AllScopes}, err
}

// foreignFailed records why a foreign proof was not taken, and makes of it what the caller is told: nothing of why.
func (h *httpHandler) foreignFailed(r *http.Request, err error) error {
	var refused *federation.Refused
	switch {
	case errors.As(err, &refused):
		h.AuthFailed(r.Context(), lease.AuthFailure{Source: network(r.RemoteAddr), Reason: refused.Why,
			Issuer: refused.Issuer, Subject: refused.Subject, SAN: refused.SAN})
		return fmt.Errorf("%w: %w", lease.ErrUnauthenticated, err)
	case errors.Is(err, federation.ErrUnavailable):
		h.AuthFailed(r.Context(), lease.AuthFailure{Source: network(r.RemoteAddr), Reason: "token of an issuer that can't be reached"})
		return &lease.Refusal{Code: lease.Unavailable, RetryAfter: federation.FetchPause,
			Message: "the issuer of this token can't be reached, so nobody can say whom it stands for",
			Hint:    "Wait as long as retry_after says, then try again; tell the operator if it goes on."}
	case err != nil && r.Context().Err() != nil:
		return lease.ErrUnauthenticated // the client left
	}
	return err
}

// bearer returns the token of the one Authorization header, or "" if there is no such thing.
func bearer(sent []string) string {
	if len(sent) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(sent[0], " ")
	token = strings.Trim(token, " ")
	limit := maxBearer
	if federation.IsJWT(token) {
		limit = federation.MaxToken
	}
	if !strings.EqualFold(scheme, "Bearer") || len(token) > limit || strings.ContainsAny(token, " \t,") {
		return ""
	}
	return token
}

type entrantKey struct{}

func withEntrant(r *http.Request, e federation.Entrant) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), entrantKey{}, e))
}

// entrantOf returns who authenticate found to have sent a request.
func entrantOf(ctx context.Context) federation.Entrant {
	e, _ := ctx.Value(entrantKey{}).(federation.Entrant)
	return e
}

// timeLeft is how long the proof that r came with is good for; a token of ours is asked about again instead.
func (h *httpHandler) timeLeft(r *http.Request) time.Duration {
	if ends := entrantOf(r.Context()).Until; !ends.IsZero() {
		return ends.Sub(h.Now())
	}
	return math.MaxInt64
}

// stillGood reports whether a stream's proof is what it was when the stream was opened: who lost it loses the stream
// with it. An issuer that can't be reached takes nothing away.
func (h *httpHandler) stillGood(r *http.Request, p identity.Principal) bool {
	again, err := h.identify(r)
	if refusal := lease.AsRefusal(err); refusal != nil && refusal.Code == lease.Unavailable {
		return p.Proof == identity.OIDC
	}
	return err == nil && again.Principal == p
}

// outOfScope refuses a call for which p's token lacks the scope. The broker would refuse it too; this is so that an
// OAuth client sees the answer by which it can ask its issuer for more.
func (h *httpHandler) outOfScope(r *http.Request, p identity.Principal, m *httpMessage) *fault {
	need, scope := tools.ScopeOf(m.tool) // none of what is no tool call
	if (identity.Caller{Principal: p, Scopes: entrantOf(r.Context()).Scopes}).May(need) {
		return nil
	}
	h.AuthFailed(r.Context(), lease.AuthFailure{Source: network(r.RemoteAddr), Reason: "token without the scope " + scope})
	f := forbidden("the token does not carry the scope "+scope, "Ask for a token with this scope, or tell the operator; there is nothing to retry with this one.")
	f.header = [2]string{"WWW-Authenticate", h.challenge("insufficient_scope", scope)}
	return f
}

// challenge is what a WWW-Authenticate header says. Where issuers are configured it leads an OAuth client to them.
func (h *httpHandler) challenge(fault, scope string) string {
	var parts []string
	if fault != "" {
		parts = append(parts, `error="`+fault+`"`)
	}
	if h.describesItself() {
		parts = append(parts, `scope="`+scope+`"`, `resource_metadata="`+h.metadataURL()+`"`)
	}
	return strings.TrimSuffix("Bearer "+strings.Join(parts, ", "), " ")
}

// challenged is unauthenticated with the way to the issuers.
func (h *httpHandler) challenged(tried bool) *fault {
	f, fault := unauthenticated(tried), ""
	if tried {
		fault = "invalid_token"
	}
	f.header[1] = h.challenge(fault, identity.LeaseScope+" "+identity.ListScope)
	return f
}

func (h *httpHandler) describesItself() bool { return h.Resource != "" && h.Foreign.AcceptsTokens() }

// resourceURL is the resource as the configuration gives it, which checked it.
func (h *httpHandler) resourceURL() *url.URL {
	u, err := url.Parse(h.Resource)
	if err != nil || h.Resource == "" {
		return &url.URL{}
	}
	return u
}

// metadataURL is where RFC 9728 has clients look: the well-known path between the resource's host and its path.
func (h *httpHandler) metadataURL() string {
	u := h.resourceURL()
	return u.Scheme + "://" + u.Host + metadataPath + strings.TrimSuffix(u.Path, "/")
}

// routeMetadata serves what RFC 9728 says of a protected resource, to anybody.
func (h *httpHandler) routeMetadata() {
	if !h.describesItself() {
		return
	}
	serve := h.getOnly(func(w http.ResponseWriter, _ *http.Request) {
		about := struct {
			Resource string   `json:"resource"`
			Name     string   `json:"resource_name"`
			Servers  []string `json:"authorization_servers,omitempty"`
			Scopes   []string `json:"scopes_supported"`
			Methods  []string `json:"bearer_methods_supported"`
		}{h.Resource, "keylease", h.Foreign.AuthorizationServers(), []string{identity.LeaseScope, identity.ListScope}, []string{"header"}}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(about)
	})
	h.routes.HandleFunc(metadataPath, serve)
	if path := strings.TrimSuffix(h.resourceURL().Path, "/"); path != "" {
		h.routes.HandleFunc(metadataPath+path, serve)
	}
}
