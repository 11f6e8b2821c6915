package server

import (
	"fmt"
	"slices"
	"testing"
)

// seats is a crowd of numbered connections and which of them were asked to leave.
type seats struct {
	*crowd
	left []int
	by   map[int]*guest
}

func (s *seats) enterAs(party string, n int) bool {
	g := s.enter(party, func() { s.left = append(s.left, n) })
	s.by[n] = g
	return g != nil
}

func TestWhoHoldsTheMostMakesRoomWithItsLongestQuiet(t *testing.T) {
	s := &seats{crowd: newCrowd(5), by: map[int]*guest{}}
	s.enterAs("one", 1)
	for n := 2; n <= 5; n++ {
		s.enterAs("many", n)
	}
	s.by[2].begin()
	s.enterAs("other", 6)
	s.enterAs("many", 7)
	if !slices.Equal(s.left, []int{3, 4}) {
		t.Errorf("left: %v, want 3 and 4: 1 is somebody else's and 2 is at work", s.left)
	}
	s.by[2].end()
	s.enterAs("new", 8)
	s.enterAs("newer", 9)
	if !slices.Equal(s.left, []int{3, 4, 5, 7}) {
		t.Errorf("left: %v; 2 was used last", s.left)
	}
}

func TestAmongEqualsTheLongestQuietLeaves(t *testing.T) {
	s := &seats{crowd: newCrowd(9), by: map[int]*guest{}}
	for n := range 9 {
		s.enterAs(fmt.Sprint(n), n)
	}
	for n := range 5 {
		s.by[n].begin()
		s.by[n].end()
	}
	for n := 9; n < 12; n++ {
		s.enterAs(fmt.Sprint(n), n)
	}
	if !slices.Equal(s.left, []int{5, 6, 7}) {
		t.Errorf("left: %v", s.left)
	}
}

// A party that does nothing but wait, or has every connection at work, is the one that makes room: nobody else's.
func TestWhoHasMoreMakesRoomEvenAtWork(t *testing.T) {
	s := &seats{crowd: newCrowd(5), by: map[int]*guest{}}
	s.enterAs("one", 1)
	for n := 2; n <= 5; n++ {
		s.enterAs("many", n)
		s.by[n].begin()
	}
	if s.enterAs("many", 6) {
		t.Errorf("the one with the most put out %v", s.left)
	}
	s.enterAs("new", 7)
	s.enterAs("one", 8)
	if !slices.Equal(s.left, []int{2, 3}) {
		t.Errorf("left: %v, want those of many that were at work for longest, and not the one quiet of somebody else", s.left)
	}
	for _, n := range []int{8, 7, 1} {
		s.by[n].begin()
	}
	if s.enterAs("one", 9) || !s.enterAs("newest", 10) || !slices.Equal(s.left, []int{2, 3, 4}) {
		t.Errorf("left: %v; a newcomer must not have more than whom he puts out", s.left)
	}
}

// Admin connections count apart from agents', and one more always finds room.
func TestNobodyKeepsTheAdminOut(t *testing.T) {
	c := newCrowds(4)
	for range 4 {
		c.roomOf(kindMCP).enter("agent", func() {}).begin()
	}
	left := 0
	for range adminRoom {
		c.roomOf(kindAdmin).enter("admin", func() { left++ }).begin()
	}
	if left > 0 || c.roomOf(kindAdmin).enter("admin", func() {}) == nil || left != 1 {
		t.Errorf("%d admin connections were closed for one more than there is room for", left)
	}
	for range hallRoom + 10 {
		if c.hall.enter("flood", func() {}) == nil {
			t.Fatal("turned away before it said what it wants")
		}
	}
}

func TestWhereNothingIsQuietTheNewcomerIsTurnedAway(t *testing.T) {
	s := &seats{crowd: newCrowd(2), by: map[int]*guest{}}
	for n := 1; n <= 2; n++ {
		s.enterAs(fmt.Sprint(n), n)
		s.by[n].begin()
		s.by[n].begin()
		s.by[n].end()
	}
	if s.enterAs("x", 3) {
		t.Error("somebody at work was put out")
	}
	s.by[1].exit()
	s.by[1].exit()
	if !s.enterAs("x", 3) || s.here != 2 {
		t.Errorf("no room after one left: %d here", s.here)
	}
}

func TestAConnectionCountsForWhoItTurnedOutToBe(t *testing.T) {
	s := &seats{crowd: newCrowd(4), by: map[int]*guest{}}
	for n := 1; n <= 4; n++ {
		s.enterAs("nobody", n)
	}
	s.by[1].belong("a")
	s.by[2].begin()
	s.by[2].belong("b")
	s.by[2].end()
	s.enterAs("nobody", 5)
	if !slices.Equal(s.left, []int{3}) {
		t.Errorf("left: %v", s.left)
	}
	for _, g := range s.by {
		g.exit()
		g.begin()
		g.belong("z")
		g.end()
	}
	if s.here != 0 || len(s.parties) != 0 {
		t.Errorf("%d are here after all left: %v", s.here, s.parties)
	}
}
