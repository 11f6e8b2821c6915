package lease

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
)

// deliverable is what policy allows and the caller can use, least exposing first.
func deliverable(d policy.Decision, c *credential, caller identity.Caller) []policy.Delivery {
	open := make([]policy.Delivery, 0, len(d.Deliveries))
	for _, way := range d.Deliveries {
		if closed(d, c, caller, way) == "" {
			open = append(open, way)
		}
	}
	return open
}

// closed says why c can't be delivered to caller in this way; "": it can. The proxy is for credentials that have an
// upstream and, as commands are, for callers on this machine.
func closed(d policy.Decision, c *credential, caller identity.Caller, way policy.Delivery) string {
	switch {
	case !slices.Contains(d.Deliveries, way):
		return "the policy does not allow it"
	case way == policy.Proxy && c.plan == nil:
		return "the credential has no upstream, which says to which service it may go"
	case way == policy.Proxy && caller.Remote:
		return "the proxy listens on keylease's own machine, and you call from another"
	case way == policy.Exec && caller.Transport != "local":
		return "commands run with it on keylease's own machine, for clients of its local socket alone"
	}
	return ""
}

// undeliverable says what is closed, why, and what is open. It is for callers who may lease c.
func undeliverable(d policy.Decision, c *credential, caller identity.Caller, open []policy.Delivery, asked policy.Delivery) *Refusal {
	wanted, words := d.Deliveries, []string{}
	if asked != "" {
		wanted = []policy.Delivery{asked}
	}
	for _, way := range wanted {
		words = append(words, fmt.Sprintf("%s is not open to you here: %s", way, closed(d, c, caller, way)))
	}
	hint := "Ask the operator for another way; do not look for this key elsewhere."
	if len(open) > 0 {
		hint = fmt.Sprintf("Open to you: %s. Leave delivery out to get the least exposing one that it is set up for.", wayList(open))
	}
	if c.plan == nil && slices.Contains(wanted, policy.Proxy) && slices.Contains(d.Deliveries, policy.Proxy) {
		hint += " For proxy the operator says where it may go: keylease put … --service NAME (keylease services lists them), or upstream in a seed file."
	}
	return refuse(DeliveryUnavailable, strings.Join(words, "; "), hint)
}

func wayList(ways []policy.Delivery) string {
	words := make([]string, len(ways))
	for i, way := range ways {
		words[i] = string(way)
	}
	return strings.Join(words, ", ")
}

// usual is what a caller gets that does not say: the least exposing delivery that the admin set the credential up for.
// A command can get any credential, but one without an expose was made to be lent as it is.
func usual(open []policy.Delivery, c *credential) policy.Delivery {
	for _, way := range open {
		if way != policy.Exec || c.rec.Expose != nil {
			return way
		}
	}
	return open[0]
}

// newHandle is the bearer of a lease by proxy: 130 random bits in letters and digits, which every client takes for a key.
func newHandle() secret.Secret { return secret.New([]byte("klh_" + rand.Text())) }
