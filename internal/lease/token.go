package lease

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/policy"
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
	if s.Uses < 0 {
		return "", TokenInfo{}, invalid("a token's uses can't be negative")
	}
	if err := (policy.Narrowing{Credentials: s.Credentials, MaxTTL: s.MaxTTL}).Check(); err != nil {
		return "", TokenInfo{}, invalid("%s", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return "", TokenInfo{}, err
	}
	now := b.now()
	rec := tokenRecord{ID: newID("tk_"), Type: s.Type, Identity: s.Identity, CreatedAt: now,
		Credentials: s.Credentials, MaxTTL: s.MaxTTL, Uses: s.Uses}
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
	return text, b.ix.tokens[rec.ID].info(b.now()), nil
}

func (b *Broker) writeToken(admin identity.Caller, event store.Event, rec tokenRecord) error {
	e := entry(event, admin)
	e.Details = store.DetailsOf("token_id", rec.ID, "token_identity", rec.Identity, "token_type", string(rec.Type))
	if !rec.ExpiresAt.IsZero() {
		e.Details.Set("expires_at", stamp(rec.ExpiresAt))
	}
	if !rec.PreviousUntil.IsZero() {
		e.Details.Set("previous_until", stamp(rec.PreviousUntil))
	}
	if rec.Credentials != nil {
		e.Details.Set("credentials", strings.Join(rec.Credentials, ","))
	}
	if rec.MaxTTL > 0 {
		e.Details.Set("max_ttl", ttl.Format(rec.MaxTTL))
	}
	if rec.Uses > 0 {
		e.Details.Set("uses", strconv.Itoa(rec.Uses))
	}
	_, err := b.change(store.Change{Entry: e, Records: []store.RecordWrite{tokenWrite(rec)}, Owed: event == store.EventTokenRevoked}, rec)
	return err
}

// MaxOverlap is how long a token's previous text goes on at most after a rotation.
const MaxOverlap = 30 * 24 * time.Hour

// RotateToken gives a token a new text. The one before goes on for overlap — 0 ends it at once, as after a leak; more
// than MaxOverlap is cut to that, and nothing outlasts the token — and one before that ends now. The record, and so
// the principal, its leases and what the token may do, stay.
func (b *Broker) RotateToken(_ context.Context, admin identity.Caller, id string, overlap time.Duration) (string, TokenInfo, error) {
	if overlap < 0 {
		return "", TokenInfo{}, invalid("an overlap can't be negative")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.token(id)
	if err != nil {
		return "", TokenInfo{}, err
	}
	now := b.now()
	if t.rec.Revoked || t.expired(now) {
		return "", TokenInfo{}, refuse(Conflict, "this token was revoked or has expired", "Create another with token create.")
	}
	if t.disabled {
		overlap = 0 // what was disabled does not come back
	}
	rec := t.rec
	rec.Previous, rec.PreviousUntil = [32]byte{}, time.Time{}
	if overlap > 0 {
		rec.Previous, rec.PreviousUntil = rec.Hash, now.Add(min(overlap, MaxOverlap))
		if !rec.ExpiresAt.IsZero() && rec.ExpiresAt.Before(rec.PreviousUntil) {
			rec.PreviousUntil = rec.ExpiresAt
		}
	}
	return b.issue(admin, store.EventTokenRotated, rec)
}

// RevokeToken ends a token, in each of its texts, and every lease taken with it.
func (b *Broker) RevokeToken(_ context.Context, admin identity.Caller, id string) (TokenInfo, error) {
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	const what = "the token is revoked, and what it leased has ended"
	if err := b.ends(); err != nil {
		return TokenInfo{}, err
	}
	t, err := b.findToken(id)
	if err != nil {
		return TokenInfo{}, err
	}
	if t.rec.Revoked {
		return t.info(b.now()), b.unrecorded(b.barrier(), what)
	}
	rec := t.rec
	rec.Revoked = true
	err = b.cutOffToken(admin, t, "token revoked")
	if err == nil || b.broken != nil || b.ix.tokens[id] != t { // recorded, owed, or both since
		err = b.writeToken(admin, store.EventTokenRevoked, rec)
	}
	if err != nil {
		return TokenInfo{}, b.unrecorded(err, what)
	}
	return b.ix.tokens[id].info(b.now()), nil
}

func (b *Broker) token(id string) (*token, error) {
	if err := b.ready(); err != nil {
		return nil, err
	}
	return b.findToken(id)
}

func (b *Broker) findToken(id string) (*token, error) {
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
		infos = append(infos, t.info(b.now()))
	}
	slices.SortFunc(infos, func(a, b TokenInfo) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return infos
}

func (t *token) info(now time.Time) TokenInfo {
	r := t.rec
	i := TokenInfo{ID: r.ID, Type: r.Type, Identity: r.Identity, State: stateActive, CreatedAt: r.CreatedAt,
		ExpiresAt: known(r.ExpiresAt), LastUsedAt: known(t.lastUsed), Credentials: slices.Clone(r.Credentials)}
	switch {
	case r.Revoked:
		i.State = stateRevoked
	case t.expired(now):
		i.State = stateExpired
	case t.disabled:
		i.State = stateDisabled
	case now.Before(r.PreviousUntil):
		i.PreviousUntil = known(r.PreviousUntil)
	}
	if r.MaxTTL > 0 {
		i.MaxTTL = ttl.Format(r.MaxTTL)
	}
	if left := max(r.Uses-t.grants, 0); r.Uses > 0 {
		i.Uses, i.UsesLeft = &r.Uses, &left
	}
	return i
}

// known is t as an answer has it: nil where it never was.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (t *token) expired(now time.Time) bool {
	return !t.rec.ExpiresAt.IsZero() && !now.Before(t.rec.ExpiresAt)
}

// problem says why t proves nothing at now; "" when it does.
func (t *token) problem(now time.Time) string {
	switch {
	case t.damaged:
		return "damaged token record"
	case t.rec.Revoked:
		return "revoked token"
	case t.expired(now):
		return "expired token"
	case t.disabled:
		return "disabled token"
	}
	return ""
}

// problem says why this text of the token proves nothing at now.
func (t tokenText) problem(now time.Time) string {
	if why := t.token.problem(now); why != "" || t.until.IsZero() || now.Before(t.until) {
		return why
	}
	return "replaced token"
}

// Authenticate returns whom text stands for. It does the same work whatever is wrong with it: one keyed hash and one
// look-up by that hash, which is the constant-time comparison. The error wraps ErrUnauthenticated and says why, for
// the log; source is where the caller sits, for the trail.
func (b *Broker) Authenticate(ctx context.Context, text, source string) (identity.Principal, error) {
	hash := b.store.MAC("tokens", []byte(text))
	b.mu.Lock()
	now := b.now()
	t, why := b.ix.secrets[hash], "unknown token"
	var p identity.Principal
	id := ""
	if t.token != nil {
		p, why, id = t.principal(), t.problem(now), t.token.rec.ID
	}
	if why == "" {
		t.use(now)
	}
	b.mu.Unlock()
	if why != "" {
		b.AuthFailed(ctx, AuthFailure{Source: source, Reason: why, TokenID: id})
		return identity.Principal{}, fmt.Errorf("%w: %s", ErrUnauthenticated, why)
	}
	return p, nil
}

// Misused records that somebody at source named a session that belongs to another principal.
func (b *Broker) Misused(ctx context.Context, _ identity.Caller, source string) {
	b.AuthFailed(ctx, AuthFailure{Source: source, Reason: "named another principal's session"})
}

func tokenWrite(rec tokenRecord) store.RecordWrite {
	plain, err := json.Marshal(rec)
	if err != nil {
		panic(err) // strings, times and numbers: cannot fail
	}
	return store.RecordWrite{Kind: store.KindToken, ID: rec.ID, Plain: plain}
}
