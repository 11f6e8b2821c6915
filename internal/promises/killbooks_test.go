//go:build linux

package promises

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// fewLeases is how many leases of one of the credentials may be live at a time.
const fewLeases = 3

// history is what the trail says of one lease.
type history struct {
	made      entry
	expires   string
	renewed   []string
	orphanEnd time.Time // zero while somebody holds it
	heldSince uint64    // seq since which somebody does
	bound     bool      // to a session, dead or alive
	cut       bool      // all that its holder had was ended
	end       entry     // the terminal one; Seq 0 without
}

// due is when it ends if nobody does anything.
func (h *history) due() time.Time {
	expires, err := time.Parse(time.RFC3339Nano, h.expires)
	if err == nil && !h.orphanEnd.IsZero() && h.orphanEnd.Before(expires) {
		return h.orphanEnd
	}
	return expires
}

// holder is whose an Entry is.
func holder(e entry) [4]string {
	return [...]string{e.Identity.Type, e.Identity.Name, e.Identity.Proof, e.Identity.By}
}

// histories goes through the trail, by lease. started is the seq of the last start.
func histories(all []entry) (of map[string]*history, started uint64) {
	of = map[string]*history{}
	for _, e := range all {
		h := of[e.LeaseID]
		switch {
		case e.Event == "server.started":
			started = e.Seq
		case e.Event == "lease.created":
			of[e.LeaseID] = &history{made: e, expires: e.Details["expires_at"], heldSince: e.Seq, bound: e.Identity.Session != "" && e.Details["keep_on_disconnect"] != "true"}
		case e.Event == "identity.leases_ended":
			for _, h := range of {
				h.cut = h.cut || h.end.Seq == 0 && h.made.Identity.Name == e.Details["identity"] &&
					(e.Details["token_id"] == "" || h.made.Identity.By == "token:"+e.Details["token_id"])
			}
		case e.Event == "leases.orphaned": // what nobody holds already stays as it is
			for _, h := range of {
				if h.bound && !h.cut && h.end.Seq == 0 && h.orphanEnd.IsZero() && h.due().After(e.Time) {
					h.orphanEnd, _ = time.Parse(time.RFC3339Nano, e.Details["ends_at"])
				}
			}
		case e.Event == "leases.adopted":
			for _, h := range of {
				if !h.cut && h.end.Seq == 0 && !h.orphanEnd.IsZero() && holder(h.made) == holder(e) && h.due().After(e.Time) {
					h.orphanEnd, h.heldSince = time.Time{}, e.Seq
				}
			}
		case h == nil:
		case e.Event == "lease.renewed":
			h.expires = e.Details["expires_at"]
			h.renewed = append(h.renewed, h.expires)
			if !h.orphanEnd.IsZero() {
				h.orphanEnd, h.heldSince, h.bound = time.Time{}, e.Seq, e.Identity.Session != ""
			}
		case e.Event == "lease.adopted":
			h.orphanEnd, h.heldSince = time.Time{}, e.Seq
		case e.Event == "lease.orphaned":
			h.orphanEnd, _ = time.Parse(time.RFC3339Nano, e.Details["ends_at"])
		case e.Event == "lease.released" || e.Event == "lease.expired" || e.Event == "lease.revoked":
			h.end = e
		}
	}
	return of, started
}

// check lets all calls end and holds what every caller noted against the trail and against what is live.
func (k *killed) check() {
	w := k.w
	w.t.Helper()
	k.gate.Lock()
	defer k.gate.Unlock()
	before := time.Now()
	live := w.leases()
	after := time.Now()
	all := w.audit()
	w.ok("audit", "verify", "--key", k.fingerprint)
	sums, err := reckon(all)
	if err != nil {
		w.t.Error(err)
		return
	}
	if most := sums.mostLive["few"]; most > fewLeases {
		w.t.Errorf("%d leases were live at a time where %d may be", most, fewLeases)
	}
	of, started := histories(all)
	made := map[string]*history{} // by purpose
	for id, h := range of {
		if p := h.made.Purpose; made[p] != nil {
			w.t.Errorf("%s and %s are both for %q", id, made[p].made.LeaseID, p)
		} else {
			made[p] = h
		}
	}
	k.created = len(of)
	var leases int
	for _, j := range k.callers {
		for _, n := range j.all {
			h := made[n.purpose]
			if h == nil {
				if n.told == granted {
					w.t.Errorf("%s: %s was lent, and the trail knows nothing of it", n.purpose, n.lease)
				}
				continue
			}
			leases++
			for _, wrong := range slices.Concat(j.lent(n, h), j.kept(n, h), k.ended(j, n, h), shown(h, live, before, after, started, j.bound)) {
				w.t.Errorf("%s (%s, bound: %v): %s", n.purpose, h.made.LeaseID, j.bound, wrong)
			}
		}
	}
	if leases+k.aside != len(of) {
		w.t.Errorf("%d leases were asked for, %d were made", leases+k.aside, len(of))
	}
	for id := range live {
		if of[id] == nil {
			w.t.Errorf("%s is live, and was never made", id)
		}
	}
}

// lent holds what was said when n was asked for against the trail.
func (j *journal) lent(n *noted, h *history) (wrong []string) {
	switch {
	case n.told == declined:
		wrong = append(wrong, fmt.Sprintf("was refused, and made with entry %d", h.made.Seq))
	case h.made.Credential != n.credential || h.made.Identity.Name != j.name:
		wrong = append(wrong, fmt.Sprintf("asked by %s for %s: made for %s of %s", j.name, n.credential, h.made.Identity.Name, h.made.Credential))
	case n.told == granted && (h.made.LeaseID != n.lease || h.made.Details["expires_at"] != n.expires):
		wrong = append(wrong, fmt.Sprintf("told: %s to %s; made: to %s", n.lease, n.expires, h.made.Details["expires_at"]))
	}
	return wrong
}

// kept holds the renewals against it.
func (j *journal) kept(n *noted, h *history) (wrong []string) {
	if told, got := len(n.renewed), len(h.renewed); got < told || got > told+n.maybe {
		wrong = append(wrong, fmt.Sprintf("%d renewals were told and %d may have been; %d were made", told, n.maybe, got))
	}
	for _, end := range n.renewed {
		if !slices.Contains(h.renewed, end) {
			wrong = append(wrong, fmt.Sprintf("the renewal to %s is lost; there are %v", end, h.renewed))
		}
	}
	if !n.refused.IsZero() && h.end.Seq == 0 && !h.cut && h.due().After(n.refused) {
		wrong = append(wrong, "was said to have ended, and has not")
	}
	return wrong
}

// ended holds how it ended, or did not, against who may have ended it.
func (k *killed) ended(j *journal, n *noted, h *history) (wrong []string) {
	how := strings.TrimPrefix(h.end.Event, "lease.")
	if n.ended != "" && how != n.ended {
		wrong = append(wrong, fmt.Sprintf("was told to be %s; in the trail: %q", n.ended, how))
	}
	could := false
	for _, r := range k.revoked {
		if r.name != j.name {
			continue
		}
		could = could || h.made.Time.Before(r.done)
		if r.told && n.told == granted && n.at.Before(r.sent) && how == "" && !h.cut {
			wrong = append(wrong, "its holder's leases were revoked, and it has not ended")
		}
	}
	switch {
	case how == "released" && !n.giving:
		wrong = append(wrong, "was released, and nobody asked for that")
	case how == "expired" && h.end.Time.Before(h.due()):
		wrong = append(wrong, fmt.Sprintf("expired at %s, before its end (%s; orphaned: to %s)", h.end.Time, h.expires, h.orphanEnd))
	case (how == "revoked" || h.cut) && !could:
		wrong = append(wrong, "was revoked, and nobody asked for that")
	}
	return wrong
}

// shown holds the list of live leases, which was made between before and after, against the trail.
func shown(h *history, live map[string]loan, before, after time.Time, started uint64, bound bool) (wrong []string) {
	l, is := live[h.made.LeaseID]
	over := h.cut || h.end.Seq != 0 && h.end.Time.Before(before)
	if !bound && !h.orphanEnd.IsZero() {
		wrong = append(wrong, "was orphaned without having had a session")
	}
	switch {
	case over && is:
		return append(wrong, fmt.Sprintf("%s by entry %d, and is live", h.end.Event, h.end.Seq))
	case over || !h.due().After(after):
		return wrong // or it ended while the list was made
	case !is:
		return append(wrong, fmt.Sprintf("is not live, and should be until %s", h.due()))
	case l.Orphaned != !h.orphanEnd.IsZero():
		wrong = append(wrong, fmt.Sprintf("orphaned: %v, in the trail: to %s", l.Orphaned, h.orphanEnd))
	case bound && h.orphanEnd.IsZero() && h.heldSince < started:
		wrong = append(wrong, "its session died with an earlier daemon, and it was not orphaned")
	}
	if !l.ExpiresAt.Equal(h.due()) {
		wrong = append(wrong, fmt.Sprintf("is live to %s, in the trail to %s", l.ExpiresAt, h.due()))
	}
	return wrong
}

// sum says what there was, for who reads the log of the tests.
func (k *killed) sum() string {
	var asked, told, lost, renewed, released, revoked int
	for _, j := range k.callers {
		for _, n := range j.all {
			asked++
			switch n.told {
			case granted:
				told++
			case unknown:
				lost++
			}
			renewed += len(n.renewed)
			if n.ended == "released" {
				released++
			}
		}
	}
	for _, r := range k.revoked {
		if r.told {
			revoked++
		}
	}
	return fmt.Sprintf("%d leases asked for, %d told, %d unknown, %d in the trail; %d renewals and %d releases told; %d of %d revocations told",
		asked, told, lost, k.created, renewed, released, revoked, len(k.revoked))
}
