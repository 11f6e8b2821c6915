package store

import (
	"encoding/json"
	"testing"
)

func TestDetailsAreAsTheJSONOfAMap(t *testing.T) {
	d := DetailsOf("ttl", "1m", "delivery", "a<b", "rule", "")
	d.Set("uid", "1000")
	d.Set("ttl", "2m")
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(d.Map())
	if string(b) != string(want) || d.Get("ttl") != "2m" || d.Get("nothing") != "" || !d.inOrder() {
		t.Errorf("got %s, want %s", b, want)
	}
	var back Details
	if err := json.Unmarshal(b, &back); err != nil || len(back) != len(d) || !back.inOrder() || back.Get("delivery") != "a<b" {
		t.Errorf("read back as %v: %v", back, err)
	}
}

// TestDetailsOutOfOrderAreRefused: the trail has one encoding of an Entry.
func TestDetailsOutOfOrderAreRefused(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for _, d := range []Details{{{"held_for", "1m"}, {"by", "admin"}}, {{"by", "admin"}, {"by", "admin"}}} {
		if _, err := s.Submit(Change{Entry: Entry{Event: EventLeaseReleased, Details: d}}).Wait(); err == nil {
			t.Errorf("recorded %v", d)
		}
	}
}
