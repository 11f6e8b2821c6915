package store

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// moment is what a kill leaves between two steps of writing.
type moment struct {
	after  string
	at     Options
	end    uint64 // the trail's
	known  uint64 // the anchor's
	told   uint64 // the last event that anybody was told of
	anchor []byte
}

// The anchor never knows more than the store: it is copied with the store, and earlier anchors with later stores as a
// power cut leaves them, between any two steps of writing groups, signing the head and syncing. Each opens, and has all
// that anybody was told of. A store that is older than its anchor does not.
func TestTheAnchorIsALowerBoundBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	var moments []moment
	told, live := uint64(0), false
	var s *Store
	take := func(after string) {
		if !live {
			return
		}
		at := copied(t, o)
		known, err := s.anchor.read(s.keys)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(anchorPath(at.AnchorDir, s.keys.store[:]))
		if err != nil {
			t.Fatal(err)
		}
		end, err := s.lastOnDisk()
		if err != nil {
			t.Fatal(err)
		}
		at.Fault = nil
		moments = append(moments, moment{after, at, end.seq, known.seq, told, data})
	}
	o.Fault = func(write func() error) error {
		take("nothing")
		err := write()
		take("the transaction")
		return err
	}
	s = mustOpen(t, o)
	live = true
	for n := range 2 {
		told = record(t, s, leaseCreated(n)).Seq
		take("the anchor")
	}
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	take("signing and syncing")
	live = false

	opens := func(m moment, known []byte) (uint64, error) {
		at := copied(t, m.at)
		if err := os.WriteFile(anchorPath(at.AnchorDir, s.keys.store[:]), known, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(at)
		if err != nil {
			return 0, err
		}
		defer mustClose(t, s)
		end, _ := s.Head()
		return end, nil
	}
	for i, m := range moments {
		if m.known > m.end || m.told > m.end {
			t.Errorf("%d, after %s: the trail ends at %d, the anchor knows %d, and %d was told", i, m.after, m.end, m.known, m.told)
		}
		for _, j := range []int{i, 0} { // as a kill leaves it, and as a power cut
			if end, err := opens(m, moments[j].anchor); err != nil || end < m.told {
				t.Errorf("%d, after %s, with the anchor of %d: it ends at %d of %d, %v", i, m.after, j, end, m.told, err)
			}
		}
	}
	last := moments[len(moments)-1]
	for i := range 1 {
		if _, err := opens(moments[i], last.anchor); moments[i].end < last.known && (!errors.Is(err, ErrIntegrity) || !strings.Contains(err.Error(), "missing")) {
			t.Errorf("the store of moment %d with the last anchor: %v", i, err)
		}
	}
}
