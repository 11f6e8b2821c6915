package lease

import (
	"slices"
	"strings"

	"keylease/internal/identity"
	"keylease/store"
)

// A store that was restored from a backup, or whose loss was accepted, has forgotten what it acknowledged since. A
// lease may have been renewed or given back, a token revoked, a question answered: none of it can be known. So the Entry
// that says it happened ends what there was, unless the operator asked for it to be kept.

// What the Entry's detail "kept" lists.
const (
	KeptLeases = "leases" // and approvals
	KeptTokens = "tokens"
)

// epochReason is the reason of the leases and approvals that such an Entry ends.
var epochReason = map[store.Event]string{
	store.EventStoreRestored: "the store was restored from a backup: what became of this since is not known",
	store.EventLossAccepted:  "events of the store are lost: what became of this since is not known",
}

// applyEpoch ends every lease and question, and disables every token that was written before. Each lease gives nothing
// from here on; its terminal Entry follows when the sweeper comes to it, as after a cutoff.
func (ix *index) applyEpoch(e *store.Entry) {
	kept := strings.Split(e.Details.Get("kept"), ",")
	reason := epochReason[e.Event]
	if !slices.Contains(kept, KeptLeases) {
		by := identity.Principal{Type: identity.Type(e.Identity.Type), Name: e.Identity.Name, By: e.Identity.By}
		for of, h := range ix.holders {
			h.cut = &cutoff{At: e.Time, By: by, Reason: reason}
			delete(ix.holders, of)
			ix.cut = append(ix.cut, h)
		}
		for _, a := range ix.asked {
			if a.State == Pending || a.State == Approved {
				a.Reason = reason
				ix.close(a, Lapsed, e.Time)
			}
		}
	}
	if !slices.Contains(kept, KeptTokens) {
		ix.tokensTo = e.Seq
	}
}
