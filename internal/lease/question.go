package lease

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/internal/ttl"
	"keylease/policy"
)

// Question is all that a person is asked about: may this principal have this, in this way, for so long? A yes is good
// for exactly this question and no other.
type Question struct {
	Identity      identity.Principal `json:"identity"`
	ClientName    string             `json:"client_name,omitempty"`    // as the client claims
	ClientVersion string             `json:"client_version,omitempty"` // as the client claims
	Credential    string             `json:"credential"`
	CredentialID  string             `json:"credential_id"`
	Version       int                `json:"version"`
	Delivery      policy.Delivery    `json:"delivery"`
	TTL           time.Duration      `json:"ttl"`      // as it would be granted; renewals never go past it
	Approval      policy.Approval    `json:"approval"` // who is asked: user or operator
	PolicyHash    string             `json:"policy_hash,omitempty"`
	Terms         string             `json:"terms"` // hash of the credential's record without its values: an edit asks anew
	Purpose       string             `json:"purpose,omitempty"`
}

// Hash is what is kept beside an answer and compared again when the answer is spent: SHA-256 over the fields, each with
// its length in front, so that no two questions have the same bytes.
func (q Question) Hash() string {
	h := sha256.New()
	for _, field := range []string{"keylease question 1", string(q.Identity.Type), q.Identity.Name, q.Identity.Proof.String(),
		q.Identity.By, q.ClientName, q.ClientVersion, q.Credential, q.CredentialID, strconv.Itoa(q.Version), string(q.Delivery),
		strconv.FormatInt(int64(q.TTL), 10), string(q.Approval), q.PolicyHash, q.Terms, q.Purpose} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(field)))
		h.Write(n[:])
		h.Write([]byte(field))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// String is the question in words for a person, without control characters: every line but the last two is what
// keylease itself knows, and what the agent says of itself stands last and in quotes.
func (q Question) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "May %s %s lease %s?\n", q.Identity.Type, q.Identity.Name, q.Credential)
	fmt.Fprintf(&b, "  who:        %s\n", proofWords(q.Identity))
	fmt.Fprintf(&b, "  credential: %s, version %d\n", q.Credential, q.Version)
	fmt.Fprintf(&b, "  delivery:   %s\n", deliveryWords(q.Delivery))
	fmt.Fprintf(&b, "  for:        %s at most, renewals included\n", ttl.Format(q.TTL))
	if q.ClientName != "" {
		fmt.Fprintf(&b, "  the client calls itself: %s\n", strconv.Quote(strings.TrimSpace(q.ClientName+" "+q.ClientVersion)))
	}
	if q.Purpose == "" {
		b.WriteString("  the agent says: nothing about its purpose")
	} else {
		fmt.Fprintf(&b, "  the agent says: %s", strconv.Quote(q.Purpose))
	}
	return b.String()
}

func proofWords(p identity.Principal) string {
	name := string(p.Type) + " " + p.Name
	switch p.Proof {
	case identity.Declared:
		return name + ", by its own word only (" + p.By + ")"
	case identity.Token:
		return name + ", proved by a token (" + p.By + ")"
	}
	return name + ", proved by " + p.Proof.String() + " (" + strconv.Quote(p.By) + ")"
}

func deliveryWords(d policy.Delivery) string {
	switch d {
	case policy.Proxy:
		return "proxy: calls go through keylease, the agent does not see the secret"
	case policy.Exec:
		return "exec: a command that the agent chooses gets the secret"
	case policy.Value:
		return "value: the agent sees the secret itself"
	}
	return string(d)
}

// terms is a hash of what c is apart from its values. It is asked for at each look at a question. Caller holds mu.
func (c *credential) terms() string {
	if c.hash != "" {
		return c.hash
	}
	r := c.rec
	r.Versions, r.UpdatedAt, r.SeededValue, r.SeededRest = nil, time.Time{}, nil, nil
	plain, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings, times and numbers: cannot fail
	}
	sum := sha256.Sum256(plain)
	c.hash = hex.EncodeToString(sum[:])
	return c.hash
}

// questionFor is what a person is asked where d wants an approval. Caller holds mu.
func (b *Broker) questionFor(caller identity.Caller, c *credential, d policy.Decision, way policy.Delivery, purpose string) Question {
	return Question{Identity: caller.Principal, ClientName: CleanText(caller.ClientName, 100), ClientVersion: CleanText(caller.ClientVersion, 100),
		Credential: c.rec.Name, CredentialID: c.rec.ID, Version: c.current(), Delivery: way, TTL: d.TTL, Approval: d.Approval,
		PolicyHash: b.policy.current.Hash(), Terms: c.terms(), Purpose: CleanText(purpose, MaxPurpose)}
}
