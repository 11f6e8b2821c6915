package lease

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"keylease/internal/identity"
)

// E1: a token that is wrong by one character, a revoked one and one of nobody cost the same work. Measured in turn over
// 10^4 tries each, the medians differ by less than the tries of one kind scatter by themselves.
func TestAWrongTokenTakesTheSameTime(t *testing.T) {
	w := newWorld(t)
	good, _, err := w.CreateToken(context.Background(), operator, TokenSpec{Type: identity.Agent, Identity: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	revoked, info, err := w.CreateToken(context.Background(), operator, TokenSpec{Type: identity.Agent, Identity: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.RevokeToken(context.Background(), operator, info.ID); err != nil {
		t.Fatal(err)
	}
	wrong := good[:len(good)-1] + "a"
	if wrong == good {
		wrong = good[:len(good)-1] + "b"
	}
	kinds := []string{wrong, revoked, tokenPrefix + strings.Repeat("a", len(good)-3), "x" + good[1:]}
	took := make([][]time.Duration, len(kinds))
	for round := range 10_000 {
		for i := range kinds {
			kind := (i + round) % len(kinds)
			start := time.Now()
			_, err := w.Authenticate(context.Background(), kinds[kind], "192.0.2.1")
			took[kind] = append(took[kind], time.Since(start))
			if err == nil {
				t.Fatalf("kind %d was let in", kind)
			}
		}
	}
	for _, all := range took {
		slices.Sort(all)
	}
	quarter := func(kind, n int) time.Duration { return took[kind][n*len(took[kind])/4] }
	for kind := 1; kind < len(kinds); kind++ {
		gap := (quarter(0, 2) - quarter(kind, 2)).Abs()
		noise := max(quarter(0, 3)-quarter(0, 1), quarter(kind, 3)-quarter(kind, 1), 200*time.Nanosecond)
		if gap > noise {
			t.Errorf("kind %d: medians %s and %s are %s apart, beyond the scatter of %s", kind, quarter(0, 2), quarter(kind, 2), gap, noise)
		}
	}
}
