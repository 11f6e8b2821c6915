//go:build linux

package promises

import (
	"fmt"
	"strings"
	"time"
)

// entry is one line of the trail, as keylease audit --json prints it.
type entry struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Identity struct {
		Type       string `json:"type"`
		Name       string `json:"name"`
		Proof      string `json:"proof"`
		By         string `json:"by"`
		Session    string `json:"session"`
		ClientName string `json:"client_name"`
	} `json:"identity"`
	Credential   string            `json:"credential"`
	CredentialID string            `json:"credential_id"`
	LeaseID      string            `json:"lease_id"`
	Purpose      string            `json:"purpose"`
	Details      map[string]string `json:"details"`
}

// audit returns the whole trail.
func (w *world) audit() []entry {
	w.t.Helper()
	var out struct {
		Entries []entry `json:"entries"`
	}
	w.json(&out, "audit")
	for i, e := range out.Entries {
		if e.Seq != uint64(i+1) {
			w.t.Fatalf("entry %d of the trail has seq %d", i+1, e.Seq)
		}
	}
	return out.Entries
}

// verified fails the test unless keylease finds its trail sound.
func (w *world) verified() {
	w.t.Helper()
	w.ok("audit", "verify")
}

// find returns the entries of one event.
func find(all []entry, event string) (found []entry) {
	for _, e := range all {
		if e.Event == event {
			found = append(found, e)
		}
	}
	return found
}

// denied returns who was refused what about this lease or credential.
func denied(all []entry, about string) (found []entry) {
	for _, e := range find(all, "lease.denied") {
		if e.LeaseID == about || e.Credential == about {
			found = append(found, e)
		}
	}
	return found
}

// books is what the trail says of leases.
type books struct {
	live     map[string]entry  // lease → its creation
	ended    map[string]string // lease → the event that ended it
	mostLive map[string]int    // credential → the most that were live at a time
}

// reckon goes through the trail as an auditor would. A lease that is made twice, or ends twice, or ends without having
// been made, is an error.
func reckon(all []entry) (books, error) {
	b := books{map[string]entry{}, map[string]string{}, map[string]int{}}
	now, over := map[string]int{}, map[string]bool{}
	for _, e := range all {
		switch e.Event {
		case "lease.created":
			if _, twice := b.live[e.LeaseID]; twice || b.ended[e.LeaseID] != "" {
				return b, fmt.Errorf("entry %d makes the lease %s again", e.Seq, e.LeaseID)
			}
			b.live[e.LeaseID] = e
			now[e.Credential]++
			b.mostLive[e.Credential] = max(b.mostLive[e.Credential], now[e.Credential])
		case "lease.released", "lease.expired", "lease.revoked":
			if _, live := b.live[e.LeaseID]; !live {
				return b, fmt.Errorf("entry %d ends the lease %s, which is not live: it was %s", e.Seq, e.LeaseID, b.ended[e.LeaseID])
			}
			b.ended[e.LeaseID] = e.Event
			if !over[e.LeaseID] {
				now[b.live[e.LeaseID].Credential]--
			}
			delete(b.live, e.LeaseID)
		case "identity.leases_ended": // from here on they give nothing; each is still to have its own end
			token := e.Details["token_id"]
			for id, made := range b.live {
				if token != "" && made.Identity.By != "token:"+token {
					continue
				}
				if made.Identity.Name == e.Details["identity"] && made.Identity.Type == e.Details["identity_type"] && !over[id] {
					over[id] = true
					now[made.Credential]--
				}
			}
		}
	}
	return b, nil
}

func (w *world) books() books {
	w.t.Helper()
	b, err := reckon(w.audit())
	w.must(err)
	return b
}

// loan is one row of keylease leases --json.
type loan struct {
	LeaseID    string `json:"lease_id"`
	Credential string `json:"credential"`
	Version    int    `json:"version"`
	Identity   struct {
		Name  string `json:"name"`
		Proof string `json:"proof"`
		By    string `json:"by"`
	} `json:"identity"`
	ExpiresAt time.Time `json:"expires_at"`
	Orphaned  bool      `json:"orphaned"`
}

// leases returns the live leases by id.
func (w *world) leases() map[string]loan {
	w.t.Helper()
	var out struct {
		Leases []loan `json:"leases"`
	}
	w.json(&out, "leases")
	live := map[string]loan{}
	for _, l := range out.Leases {
		live[l.LeaseID] = l
	}
	return live
}

// token makes a bearer token for an agent of this name.
func (w *world) token(name string, more ...string) (text, id string) {
	w.t.Helper()
	var out struct {
		Token string `json:"token"`
		ID    string `json:"id"`
	}
	w.json(&out, append([]string{"token", "create", "--identity", name}, more...)...)
	if !strings.HasPrefix(out.Token, "kl_") || out.ID == "" {
		w.t.Fatalf("token create printed no token and id: %+v", out.ID)
	}
	return out.Token, out.ID
}
