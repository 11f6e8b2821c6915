package lease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"keylease/internal/secret"
	"keylease/policy"
)

// TestG3ALimitIsExactWhateverChanges: a rule's limit is kept as a count. Leases come, go, expire and are cut off,
// credentials change what the rule says of them and so does the policy; after each step the count is what counting says.
func TestG3ALimitIsExactWhateverChanges(t *testing.T) {
	w := newWorld(t)
	text := `version: 1
limits: {leaseRate: 0}
rules:
  - {name: few, identities: ["*"], credentials: ["*"], metadata: {%s: ["1"]}, maxLeases: 4}
  - {name: rest, identities: ["*"], credentials: ["*"], maxLeases: 9}
`
	key := "a"
	w.setPolicy(fmt.Sprintf(text, key))
	few := func(name string) bool {
		c, err := w.Credential(name)
		return err == nil && c.Metadata[key] == "1"
	}
	for i := range 6 {
		w.put(fmt.Sprint("c", i), "sk-fake", policy.CredentialPolicy{})
	}
	who := w.agent("coder")
	r := rand.New(rand.NewPCG(1, 2))
	refused, granted := 0, 0
	for step := range 3000 {
		name := fmt.Sprint("c", r.IntN(6))
		switch n := r.IntN(20); {
		case n < 13:
			held, max := w.Leases(Filter{}), 9
			if few(name) {
				held, max = slices.DeleteFunc(held, func(l Info) bool { return !few(l.Credential) }), 4
			}
			_, err := w.Lease(context.Background(), who, Request{Credential: name, TTL: time.Duration(1+r.IntN(40)) * time.Minute})
			if (err == nil) != (len(held) < max) {
				t.Fatalf("step %d: %s by one who holds %d of %d: %v", step, name, len(held), max, err)
			}
			if err == nil {
				granted++
			} else {
				refused++
			}
		case n < 15:
			if l := w.Leases(Filter{}); len(l) > 0 {
				_, _ = w.Release(context.Background(), who, l[r.IntN(len(l))].LeaseID)
			}
		case n < 17:
			w.pass(time.Duration(r.IntN(10)) * time.Minute)
		case n == 17:
			item := SeedItem{NewCredential: NewCredential{Name: name, Type: "api-key", Value: secret.New([]byte("sk-fake")),
				Metadata: map[string]string{"a": fmt.Sprint(r.IntN(2)), "b": fmt.Sprint(r.IntN(2))}}, HasValue: true}
			if _, err := w.Seed(context.Background(), operator, []SeedItem{item}, true); err != nil {
				t.Fatal(err)
			}
		case n == 18 && r.IntN(5) == 0:
			key = []string{"a", "b"}[r.IntN(2)]
			w.setPolicy(fmt.Sprintf(text, key))
		case n == 19 && r.IntN(10) == 0:
			if _, err := w.RevokeLeases(context.Background(), operator, Filter{Identity: "coder"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refused < 100 || granted < 100 {
		t.Errorf("%d granted, %d refused: the test shows little", granted, refused)
	}
}

// TestSoonestIsWhatSortingAllGives, however many are asked for.
func TestSoonestIsWhatSortingAllGives(t *testing.T) {
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	r := rand.New(rand.NewPCG(3, 4))
	var set leaseSet
	for i := range 3000 {
		set = append(set, &lease{id: fmt.Sprint(i), expires: now.Add(time.Duration(r.IntN(2000)-200) * time.Second), held: &holding{}})
	}
	all := byExpiry(set, now)
	for _, n := range []int{1, 7, ownShown, 1500, len(all), 5000} {
		if got := soonest(set, n, now, func(*lease) bool { return true }); !slices.Equal(got, all[:min(n, len(all))]) {
			t.Errorf("the first %d are not those that end first", n)
		}
	}
}
