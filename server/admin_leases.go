package server

import (
	"time"

	"keylease/internal/identity"
	"keylease/internal/lease"
	"keylease/internal/ttl"
	"keylease/policy"
)

func (a admin) leases(c call) (any, error) {
	q := c.URL.Query()
	list := a.Broker.Leases(lease.Filter{Identity: q.Get("identity"), Credential: q.Get("credential")})
	if list == nil {
		list = []lease.Info{}
	}
	return map[string]any{"leases": list}, nil
}

func (a admin) endLease(c call) (any, error) {
	e, err := a.Broker.EndLease(c.Context(), c.admin, c.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return EndedLease{e.LeaseID, e.Status, e.EndedAt.UTC(), ttl.Format(e.HeldFor)}, nil
}

func (a admin) revokeLeases(c call) (any, error) {
	var f LeaseFilter
	if err := c.read(&f); err != nil {
		return nil, err
	}
	if f.All == (f.Identity != "" || f.Credential != "") {
		return nil, &lease.Refusal{Code: lease.InvalidArgument, Message: "say which leases: of an identity, on a credential, or all"}
	}
	if f.Type != "" && (f.Identity == "" || f.Type != identity.Agent && f.Type != identity.Human) {
		return nil, &lease.Refusal{Code: lease.InvalidArgument, Message: "the type of an identity is agent or human, and goes with an identity"}
	}
	n, err := a.Broker.RevokeLeases(c.Context(), c.admin, lease.Filter{Identity: f.Identity, Type: f.Type, Credential: f.Credential})
	return map[string]any{"revoked": n}, err
}

func (a admin) tokens(call) (any, error) {
	list := a.Broker.Tokens()
	if list == nil {
		list = []lease.TokenInfo{}
	}
	return map[string]any{"tokens": list}, nil
}

func (a admin) createToken(c call) (any, error) {
	var q TokenRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	token, info, err := a.Broker.CreateToken(c.Context(), c.admin, lease.TokenSpec{Type: q.Type, Identity: q.Identity, TTL: q.TTL,
		Credentials: q.Credentials, MaxTTL: q.MaxTTL, Uses: q.Uses})
	return NewToken{token, info}, err
}

func (a admin) rotateToken(c call) (any, error) {
	var q rotateTokenRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	token, info, err := a.Broker.RotateToken(c.Context(), c.admin, c.PathValue("id"), q.Overlap)
	return NewToken{token, info}, err
}

func (a admin) revokeToken(c call) (any, error) {
	return a.Broker.RevokeToken(c.Context(), c.admin, c.PathValue("id"))
}

func (a admin) freeze(c call) (any, error) {
	var q freezeRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	return a.Broker.Freeze(c.Context(), c.admin, q.Reason)
}

func (a admin) thaw(c call) (any, error) {
	was, err := a.Broker.Thaw(c.Context(), c.admin)
	return map[string]bool{"was_frozen": was}, err
}

func (a admin) explain(c call) (any, error) {
	var q Question
	if err := c.read(&q); err != nil {
		return nil, err
	}
	p, err := a.asker(q)
	if err != nil {
		return nil, err
	}
	d, steps, err := a.Broker.Explain(c.Context(), p, q.Credential)
	if err != nil {
		return nil, err
	}
	answer := answerOf(d, steps)
	answer.Identity = p.Name
	return answer, nil
}

// asker is whom a question is about.
func (a admin) asker(q Question) (identity.Principal, error) {
	if q.Token != "" {
		return a.Broker.TokenPrincipal(q.Token)
	}
	if err := identity.CheckName(q.Identity); err != nil {
		return identity.Principal{}, &lease.Refusal{Code: lease.InvalidArgument, Message: err.Error()}
	}
	return identity.Principal{Type: q.Type, Name: q.Identity, Proof: q.Proof}, nil
}

func answerOf(d policy.Decision, steps []policy.Step) Answer {
	if steps == nil {
		steps = []policy.Step{}
	}
	out := Answer{Allow: d.Allow, Reason: d.Reason, Rule: d.Rule, Approval: d.Approval, PurposeRequired: d.PurposeRequired,
		Deliveries: d.Deliveries, Steps: steps}
	if !d.Allow {
		out.Deliveries, out.Approval = []policy.Delivery{}, policy.None
		return out
	}
	out.DefaultTTL, out.MaxTTL = formatTTL(d.TTL), formatTTL(d.MaxTTL)
	if d.MaxLeases > 0 {
		out.MaxLeases = &d.MaxLeases
	}
	if d.Limit != nil {
		out.RuleMaxLeases = &d.Limit.Max
	}
	return out
}

func formatTTL(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return ttl.Format(d)
}
