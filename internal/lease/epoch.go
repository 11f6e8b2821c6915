package lease

import "keylease/store"

// applyNewEpoch ends what went on before e, which says that the store lost events or was put back to an earlier state:
// nobody can tell which leases ended, which answers were used and which tokens were revoked in what is missing. e is
// the end of each of them; no other Entry follows. Tokens are revoked where their records are read: see loadRecords.
func (ix *index) applyNewEpoch(e *store.Entry) {
	for _, l := range ix.leases {
		ix.endLease(l, Revoked, e.Time)
	}
	for _, a := range ix.asked {
		if a.State == Pending || a.State == Approved {
			a.Reason = "events of the trail were lost"
			ix.close(a, Lapsed, e.Time)
		}
	}
	ix.tokensFrom = e.Seq
}
