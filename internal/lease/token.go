package lease

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"keylease/internal/identity"
	"keylease/store"
)

// A token is "kl_" + 32 random bytes (two ids) + 4 bytes of CRC-32 over what stands before, in base32: the prefix lets secret
// scanners find one that leaked, and the checksum lets them (and us) tell one from a word. Only its keyed hash is kept.
const tokenPrefix = "kl_"

func newToken() string {
	body := newID("") + newID("")
	return tokenPrefix + body + tokenSum(body)
}

func tokenSum(body string) string {
	return idEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(tokenPrefix+body))))
}

// CreateToken makes a bearer token for an identity. Its text is returned once and never stored.
func (b *Broker) CreateToken(_ context.Context, admin identity.Caller, s TokenSpec) (string, TokenInfo, error) {
	if s.Type == "" {
		s.Type = identity.Agent
	}
	if s.Type != identity.Agent && s.Type != identity.Human {
		return "", TokenInfo{}, invalid("identity type must be agent or human")
	}
	if err := identity.CheckName(s.Identity); err != nil {
		return "", TokenInfo{}, invalid("%s", err)
	}
	if s.TTL < 0 {
		return "", TokenInfo{}, invalid("a token's ttl can't be negative")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return "", TokenInfo{}, err
	}
	now := b.now()
	rec := tokenRecord{ID: newID("tk_"), Type: s.Type, Identity: s.Identity, CreatedAt: now}
	if s.TTL > 0 {
		rec.ExpiresAt = now.Add(s.TTL)
	}
	return b.issue(admin, store.EventTokenCreated, rec)
}

// issue gives rec a new text and writes it. Caller holds mu.
func (b *Broker) issue(admin identity.Caller, event store.Event, rec tokenRecord) (string, TokenInfo, error) {
	text := newToken()
	rec.Hash = b.store.MAC("tokens", []byte(text))
	if err := b.writeToken(admin, event, rec); err != nil {
		return "", TokenInfo{}, err
	}
	return text, rec.info(b.now()), nil
}

func (b *Broker) writeToken(admin identity.Caller, event store.Event, rec tokenRecord) error {
	plain, err := json.Marshal(rec)
	if err != nil {
		return b.fault(err)
	}
	e := entry(event, admin)
	e.Details = map[string]string{"token_id": rec.ID, "token_identity": rec.Identity, "token_type": string(rec.Type)}
	if !rec.ExpiresAt.IsZero() {
		e.Details["expires_at"] = stamp(rec.ExpiresAt)
	}
	_, err = b.change(store.Change{Entry: e, Records: []store.RecordWrite{{Kind: store.KindToken, ID: rec.ID, Plain: plain}}}, rec)
	return err
}

// RotateToken gives a token a new text; the old one stops working at once. The record, and so the principal and its
// leases, stay.
func (b *Broker) RotateToken(_ context.Context, admin identity.Caller, id string) (string, TokenInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.token(id)
	if err != nil {
		return "", TokenInfo{}, err
	}
	if t.rec.Revoked {
		return "", TokenInfo{}, refuse(Conflict, "this token was revoked", "Create another with token create.")
	}
	return b.issue(admin, store.EventTokenRotated, t.rec)
}

// RevokeToken ends a token and every lease taken with it.
func (b *Broker) RevokeToken(_ context.Context, admin identity.Caller, id string) (TokenInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.token(id)
	if err != nil {
		return TokenInfo{}, err
	}
	if !t.rec.Revoked {
		if _, err := b.revokeAll(admin, b.ix.owners[t.principal()], "token revoked"); err != nil {
			return TokenInfo{}, err
		}
		rec := t.rec
		rec.Revoked = true
		if err := b.writeToken(admin, store.EventTokenRevoked, rec); err != nil {
			return TokenInfo{}, err
		}
	}
	return b.ix.tokens[id].rec.info(b.now()), nil
}

func (b *Broker) token(id string) (*token, error) {
	if err := b.ready(); err != nil {
		return nil, err
	}
	t := b.ix.tokens[id]
	if t == nil || t.damaged {
		return nil, notFound("token", id)
	}
	return t, nil
}

// Tokens returns all token records, the oldest first.
func (b *Broker) Tokens() []TokenInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	infos := []TokenInfo{}
	for _, t := range b.ix.tokens {
		infos = append(infos, t.rec.info(b.now()))
	}
	slices.SortFunc(infos, func(a, b TokenInfo) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return infos
}

func (r tokenRecord) info(now time.Time) TokenInfo {
	i := TokenInfo{ID: r.ID, Type: r.Type, Identity: r.Identity, State: stateActive, CreatedAt: r.CreatedAt}
	if !r.ExpiresAt.IsZero() {
		i.ExpiresAt = &r.ExpiresAt
		if !now.Before(r.ExpiresAt) {
			i.State = stateExpired
		}
	}
	if r.Revoked {
		i.State = stateRevoked
	}
	return i
}

// problem says why t proves nothing at now; "" when it does.
func (t *token) problem(now time.Time) string {
	switch {
	case t.damaged:
		return "damaged token record"
	case t.rec.Revoked:
		return "revoked token"
	case !t.rec.ExpiresAt.IsZero() && !now.Before(t.rec.ExpiresAt):
		return "expired token"
	}
	return ""
}

// Authenticate returns whom text stands for. It does the same work whatever is wrong with it: one keyed hash and one
// look-up by that hash, which is the constant-time comparison. The error wraps ErrUnauthenticated and says why, for
// the log; source is where the caller sits, for the trail.
func (b *Broker) Authenticate(ctx context.Context, text, source string) (identity.Principal, error) {
	hash := b.store.MAC("tokens", []byte(text))
	b.mu.Lock()
	t, why := b.ix.secrets[hash], "unknown token"
	var p identity.Principal
	if t != nil {
		p, why = t.principal(), t.problem(b.now())
	}
	b.mu.Unlock()
	if why != "" {
		b.authFailed(ctx, source, why)
		return identity.Principal{}, fmt.Errorf("%w: %s", ErrUnauthenticated, why)
	}
	return p, nil
}

// AuthFailed records that somebody at source could not prove who they are, or what they may. reason has to be one of
// few: failures are summed up by it.
func (b *Broker) AuthFailed(ctx context.Context, source, reason string) {
	b.authFailed(ctx, source, reason)
}

// Misused records that somebody at source named a session that belongs to another principal.
func (b *Broker) Misused(ctx context.Context, _ identity.Caller, source string) {
	b.authFailed(ctx, source, "named another principal's session")
}
