package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"keylease/internal/boottime"
)

// copied is o's store as a kill at this moment leaves it.
func copied(t *testing.T, o Options) Options {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []*string{&o.Dir, &o.AnchorDir} {
		from := *part
		*part = filepath.Join(dir, filepath.Base(from))
		err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(from, path)
			if to := filepath.Join(*part, name); err == nil && d.IsDir() {
				err = os.Mkdir(to, 0o700)
			} else if err == nil {
				_, err = copySparse(path, to)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// What one process leaves for the next: that it did not close the store, that something it did is not on disk, and how
// far its clock had come.
func TestMarksOutliveTheProcess(t *testing.T) {
	o := testOptions(t)
	s := mustOpen(t, o)
	if s.Unclean() || s.Owed() || !s.HighWater().IsZero() {
		t.Fatalf("a new store: unclean %v, owed %v, high-water %v", s.Unclean(), s.Owed(), s.HighWater())
	}
	late := day.Add(time.Hour)
	moment := Moment{Time: day, Boot: boottime.ID{1}, Up: time.Hour}
	for _, now := range []Moment{{Time: late}, moment} {
		if err := s.Observe(now); err != nil {
			t.Fatal(err)
		}
	}
	record(t, s, leaseCreated(1))
	if err := s.Owe(true); err != nil {
		t.Fatal(err)
	}
	killed := mustOpen(t, copied(t, o))
	if !killed.Unclean() || !killed.Owed() || !killed.HighWater().Equal(late) || killed.Seen() != moment {
		t.Errorf("after a kill: unclean %v, owed %v, high-water %v, seen %v", killed.Unclean(), killed.Owed(), killed.HighWater(), killed.Seen())
	}
	mustClose(t, s)
	s = mustOpen(t, o)
	if !s.Owed() {
		t.Error("an orderly end made it forget that something is owed")
	}
	if err := s.Owe(false); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = mustOpen(t, o)
	if s.Unclean() || s.Owed() || !s.HighWater().Equal(late) {
		t.Errorf("after an orderly end: unclean %v, owed %v, high-water %v", s.Unclean(), s.Owed(), s.HighWater())
	}
	if err := s.SetBack(moment); err != nil || !s.HighWater().Equal(day) {
		t.Errorf("set back to %v: %v, %v", day, s.HighWater(), err)
	}
}
