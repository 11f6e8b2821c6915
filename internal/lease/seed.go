package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"keylease/internal/identity"
	"keylease/internal/use"
	"keylease/store"
)

// seedMarks remember what a seed file said, as keyed hashes, so that a file left in place is applied only where it
// changed since it was last applied.
type seedMarks struct{ value, rest []byte }

func (b *Broker) marks(i SeedItem) seedMarks {
	metadata := i.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	rest, err := json.Marshal(struct {
		Type     string
		Metadata map[string]string
		Policy   any
		Expose   *use.Expose
		Upstream *use.Upstream
	}{i.Type, metadata, i.Policy, i.Expose, i.Upstream})
	if err != nil {
		panic(err) // strings and numbers: cannot fail
	}
	mac := b.store.MAC("seed-values", append([]byte("item\x00"), rest...))
	m := seedMarks{rest: mac[:]}
	if i.HasValue {
		m.value = b.valueMAC(i.Value)
	}
	return m
}

// Seed applies a seed file. It is idempotent: an item is compared with what was last seeded, not with what is there,
// so that nothing edited, rotated, removed or revoked since is undone; such an item is a conflict, which force
// overrides, recorded. One faulty item and nothing of the file is applied.
func (b *Broker) Seed(_ context.Context, admin identity.Caller, items []SeedItem, force bool) ([]SeedResult, error) {
	var faults []error
	marks := make([]seedMarks, len(items))
	for i := range items {
		marks[i] = b.marks(items[i]) // of what the file says, before anything is merged into it
		checked, err := items[i].NewCredential, items[i].checkFields()
		if items[i].HasValue {
			checked, err = items[i].check()
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", items[i].Line, err))
			continue
		}
		items[i].NewCredential = checked
	}
	if err := errors.Join(faults...); err != nil {
		return nil, refuse(InvalidArgument, "nothing was seeded:\n"+err.Error(), "Correct these items and seed again.")
	}
	defer b.uses.gone() // without mu: a use may want it on its way out
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ready(); err != nil {
		return nil, err
	}
	results := []SeedResult{}
	for i, item := range items {
		r, err := b.seedOne(admin, item, marks[i], force)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

func (b *Broker) seedOne(admin identity.Caller, item SeedItem, marks seedMarks, force bool) (SeedResult, error) {
	c := b.ix.creds[item.Name]
	details := store.DetailsOf("source", "seed")
	if force {
		details.Set("forced", "true")
	}
	switch {
	case !item.HasValue:
		return b.seedConsumed(admin, item, c, marks)
	case c == nil && b.ix.removed[item.Name] && !force:
		return b.seedConflict(admin, item, "it was removed, and a seed file does not bring it back")
	case c == nil:
		_, err := b.create(admin, item.NewCredential, &marks, details)
		return SeedResult{Name: item.Name, Action: "created"}, err
	case c.damaged != "" || c.rec.State == stateRevoked:
		if !force {
			return b.seedConflict(admin, item, "it is "+c.state()+", and a seed file does not bring it back")
		}
		if err := b.remove(admin, c); err != nil {
			return SeedResult{}, err
		}
		_, err := b.create(admin, item.NewCredential, &marks, details)
		return SeedResult{Name: item.Name, Action: "created", Reason: "forced"}, err
	case bytes.Equal(c.rec.SeededValue, marks.value) && bytes.Equal(c.rec.SeededRest, marks.rest):
		return SeedResult{Name: item.Name, Action: "unchanged"}, nil
	case c.rec.Type != item.Type:
		return b.seedConflict(admin, item, "its type is "+c.rec.Type+", which can't change")
	}
	return b.seedChange(admin, item, c, marks, force, details)
}

// seedChange applies to a credential that is there what differs from what was last seeded.
func (b *Broker) seedChange(admin identity.Caller, item SeedItem, c *credential, marks seedMarks, force bool, details store.Details) (SeedResult, error) {
	action := "unchanged"
	if !bytes.Equal(c.rec.SeededValue, marks.value) && !bytes.Equal(c.latest().ValueMAC, marks.value) {
		if c.rec.SeededValue == nil && !force {
			return b.seedConflict(admin, item, "it was stored by hand with another value, which a seed file does not replace")
		}
		if c.had(marks.value) && !force {
			return b.seedConflict(admin, item, "the value is one that was rotated out, and a seed file does not bring it back")
		}
		if err := b.rotate(admin, c, item.Value, &marks, details); err != nil {
			return SeedResult{}, err
		}
		action = "rotated"
	}
	rec := c.rec.clone()
	rec.SeededValue, rec.UpdatedAt = marks.value, b.now()
	if !bytes.Equal(rec.SeededRest, marks.rest) {
		rec.Metadata, rec.Policy, rec.SeededRest = item.Metadata, item.Policy, marks.rest
		rec.Expose, rec.Upstream = item.Expose, item.Upstream
		if action == "unchanged" {
			action = "updated"
		}
	} else if action == "rotated" {
		return SeedResult{Name: item.Name, Action: action}, nil
	}
	err := b.write(admin, store.EventCredentialUpdated, rec, nil, details)
	return SeedResult{Name: item.Name, Action: action}, err
}

// seedConsumed is for an item whose value was moved into the store: all but the value may still change.
func (b *Broker) seedConsumed(admin identity.Caller, item SeedItem, c *credential, marks seedMarks) (SeedResult, error) {
	if c == nil || c.state() != stateActive {
		return b.seedConflict(admin, item, "it has no value in the file, and the store does not have it")
	}
	marks.value = c.rec.SeededValue
	item.Type = c.rec.Type
	if bytes.Equal(c.rec.SeededRest, marks.rest) {
		return SeedResult{Name: item.Name, Action: "unchanged"}, nil
	}
	return b.seedChange(admin, item, c, marks, false, store.DetailsOf("source", "seed"))
}

func (b *Broker) seedConflict(admin identity.Caller, item SeedItem, reason string) (SeedResult, error) {
	e := entry(store.EventSeedConflict, admin)
	e.Credential, e.Details = item.Name, store.DetailsOf("reason", reason, "line", strconv.Itoa(item.Line))
	_, err := b.change(store.Change{Entry: e}, nil)
	return SeedResult{Name: item.Name, Action: "conflict", Reason: reason}, err
}

func (c *credential) latest() versionRecord { return c.rec.Versions[len(c.rec.Versions)-1] }

func (c *credential) had(mac []byte) bool {
	for _, v := range c.rec.Versions {
		if bytes.Equal(v.ValueMAC, mac) {
			return true
		}
	}
	return false
}
