package pace

import (
	"fmt"
	"testing"
	"time"
)

func TestEachPartyHasItsOwnRate(t *testing.T) {
	p, now := New(10, 5), time.Unix(1000, 0)
	for i := range 5 {
		if wait := p.Take("a", now, 0); wait != 0 {
			t.Fatalf("take %d waits %v", i, wait)
		}
	}
	if wait := p.Take("a", now, 0); wait < 90*time.Millisecond || wait > 110*time.Millisecond {
		t.Errorf("an empty bucket that gets one in 100ms says %v", wait)
	}
	if p.Take("b", now, 0) != 0 {
		t.Error("b pays for a")
	}
	if p.Take("a", now.Add(101*time.Millisecond), 0) != 0 {
		t.Error("the bucket does not fill")
	}
}

func TestTheSpareIsLeftForOthers(t *testing.T) {
	p, now := New(10, 8), time.Unix(1000, 0)
	n := 0
	for p.Take("a", now, 2) == 0 {
		n++
	}
	if n != 6 {
		t.Errorf("took %d of 8 with 2 to spare", n)
	}
	if p.Take("a", now, 0) != 0 {
		t.Error("the spare is for whoever may have it")
	}
}

func TestNoLimitLetsEverythingThrough(t *testing.T) {
	p := New(0, 0)
	for range 1000 {
		if p.Take("a", time.Time{}, 0) != 0 {
			t.Fatal("it waits")
		}
	}
}

// However many strangers come, who has spent stays known, and memory has its bound.
func TestACrowdOfStrangersBuysNobodyAFreshRate(t *testing.T) {
	p, now := New(1, 10), time.Unix(1000, 0)
	for p.Take("flooder", now, 0) == 0 {
	}
	for i := range 3 * MaxParties {
		p.Take(fmt.Sprint(i), now, 0)
		if len(p.by) > MaxParties {
			t.Fatalf("%d parties are remembered", len(p.by))
		}
	}
	if p.Take("flooder", now, 0) == 0 {
		t.Error("the flooder was forgotten")
	}
}
