package lease

import (
	"errors"
	"fmt"
	"time"
)

// Code is the closed list of reasons a verb can be refused for.
type Code string

const (
	InvalidArgument     Code = "invalid_argument"
	NotAvailable        Code = "not_available" // unknown, forbidden, not yours: one answer
	LeaseLimit          Code = "lease_limit"
	ApprovalDenied      Code = "approval_denied"
	DeliveryUnavailable Code = "delivery_unavailable"
	LeaseEnded          Code = "lease_ended"
	RateLimited         Code = "rate_limited"
	Unavailable         Code = "unavailable"
	Unauthenticated     Code = "unauthenticated"
	Internal            Code = "internal"
	// The following two are for admin verbs only; an agent never sees them.
	NotFound Code = "not_found"
	Conflict Code = "conflict"
)

// Refusal is the error of every verb that was understood and not done. Message and Hint are written for whoever
// asked, hold nothing secret, and may be shown as they are.
type Refusal struct {
	Code       Code          `json:"code"`
	Message    string        `json:"message"`
	Hint       string        `json:"hint"`
	RetryAfter time.Duration `json:"-"`                     // lease_limit, rate_limited: in whole seconds on the wire
	YourLeases []OwnLease    `json:"your_leases,omitempty"` // lease_limit
	Reason     string        `json:"reason,omitempty"`      // unavailable: store_full, read_only, frozen, sealed
	ID         string        `json:"id,omitempty"`          // internal: the id that is in the log
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s", r.Code, r.Message) }

// AsRefusal returns the Refusal in err's chain, or nil.
func AsRefusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}

// codeOf is why err refuses; "" where it is no refusal.
func codeOf(err error) Code {
	if r := AsRefusal(err); r != nil {
		return r.Code
	}
	return ""
}

func refuse(code Code, message, hint string) *Refusal {
	return &Refusal{Code: code, Message: message, Hint: hint}
}

const (
	hintAskOperator = "Call list_credentials to see what you may lease. If what you need is not there, ask the operator for it; do not look for this key elsewhere."
	hintLookAtList  = "Call list_credentials: your_leases shows the leases that are yours and live."
	hintEnded       = "Lease the credential again if the work is not done, and stop using what the old one gave you."
)

// notAvailable is one value, so that unknown, forbidden and someone else's can't differ by a byte.
func notAvailable() *Refusal {
	return refuse(NotAvailable, "no such credential or lease is available to you", hintAskOperator)
}

func invalid(format string, args ...any) *Refusal {
	return refuse(InvalidArgument, fmt.Sprintf(format, args...), "Correct the argument and call again.")
}

func notFound(what, name string) *Refusal {
	return refuse(NotFound, fmt.Sprintf("there is no %s %q", what, name), "")
}

// unavailable is what every verb answers while changes can't be recorded: nothing is done that is not written down.
func unavailable() *Refusal {
	return &Refusal{Code: Unavailable, Reason: "read_only",
		Message: "the store cannot record changes right now, so nothing was changed",
		Hint:    "Wait and try again; if it goes on, tell the operator to look at the daemon's log and its disk."}
}

// storeFull is what new leases are refused with while the disk is nearly full; everything that ends one goes on.
func storeFull() *Refusal {
	return &Refusal{Code: Unavailable, Reason: "store_full",
		Message: "the disk that keylease records on is nearly full, so it lends nothing new",
		Hint:    "Go on with the leases you hold, release those you do not need, and tell the operator; do not look for this key elsewhere."}
}

// ErrUnauthenticated is what Authenticate wraps: the reason is for the log, never for the client.
var ErrUnauthenticated = errors.New("unauthenticated")
