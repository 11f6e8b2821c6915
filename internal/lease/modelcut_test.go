package lease

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"pgregory.net/rapid"

	"keylease/store"
)

// powerCut takes the machine's power away in the middle of a verb: the disk has what was synced before, and of what
// was being written some pages and not others. The machine starts again at some time, which its clock may not know.
func (d *driven) powerCut(t *rapid.T) {
	if d.m.broken || rapid.IntRange(0, 2).Draw(t, "rarely") > 0 {
		t.Skip("it opens a store")
	}
	u := d.someUndecided(t)
	before, after := d.newDir(t), d.newDir(t)
	var failed error
	d.disk.is(func(write func() error) error { // of the verb, or of the store's checkpoint, which comes each second
		d.disk.is(func(func() error) error { return errDisk })
		failed = copyTree(d.dir, before)
		err := write()
		failed = errors.Join(failed, copyTree(d.dir, after))
		return errors.Join(err, errDisk)
	})
	err := u.do()
	if failed != nil {
		t.Fatal(failed)
	}
	wantAnswer(t, "at a power cut", err, Unavailable)
	d.lastUses()
	_ = d.store.Close() // of the machine that is gone
	d.disk.heal()
	keep := rapid.SampledFrom([]string{"none of it", "all of it", "some pages"}).Draw(t, "kept")
	if keep == "none of it" {
		after = before
	} else if keep == "some pages" {
		if err := tear(before, after, func() bool { return rapid.Bool().Draw(t, "kept") }); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.RemoveAll(d.dir)
	d.dir = after
	d.reboot()
	if rapid.IntRange(0, 3).Draw(t, "dead clock") == 0 {
		d.restartLost(t, u)
		return
	}
	down := rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(t, "down") // what u made or ended has not expired meanwhile
	d.turnClocks(d.m.now.Add(down).Sub(d.clock()), 0)
	d.open()
	d.begun(t, d.m.now)
	if happened := d.learn(u); happened && keep == "none of it" {
		t.Fatalf("the disk has %s, and it happened: %v", keep, happened)
	}
}

// restartLost starts on a machine whose clock begins anew: all leases have ended.
func (d *driven) restartLost(t *rapid.T, u undecided) {
	d.turnClocks(mStart.Add(-1000*time.Hour).Sub(d.clock()), 0)
	d.open()
	now := d.Broker.now()
	if now.After(d.m.now) || now.Before(mStart) {
		t.Fatalf("started at %v after %v", now, d.m.now)
	}
	for session := range d.m.attached {
		d.m.leave(session)
	}
	d.m.end(Revoked, func(string, *mLease) bool { return true })
	d.m.now = now
	err := d.Entries(ctx, EntryFilter{}, func(e *store.Entry) error {
		switch {
		case e.Event == store.EventLeaseCreated && d.m.over[e.LeaseID] == nil && u.as == Active:
			d.ids = append(d.ids, e.LeaseID)
			d.m.over[e.LeaseID] = &mEnded{owner: u.c.Principal, state: Revoked}
		case e.Event == store.EventLeaseReleased && e.LeaseID == u.id && u.as == Released:
			d.m.over[e.LeaseID].state = Released
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (d *driven) newDir(t *rapid.T) string {
	dir, err := os.MkdirTemp(filepath.Dir(d.dir), "keylease-model-")
	if err != nil {
		t.Fatal(err)
	}
	d.dirs = append(d.dirs, dir)
	return dir
}

// copyTree copies what is there in one instant: where files come or go meanwhile, once more.
func copyTree(from, to string) error {
	for range 20 {
		was := listing(from)
		err := errors.Join(os.RemoveAll(to), os.MkdirAll(to, 0o700), copyOnce(from, to))
		if err == nil && listing(from) == was {
			return nil
		}
	}
	return errors.New("it would not hold still")
}

// listing is the files and how large they are.
func listing(dir string) (all string) {
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if info, err := e.Info(); err == nil {
				all += path + info.ModTime().String() + "\n"
			}
		}
		return nil
	})
	return all
}

func copyOnce(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copySparse(path, filepath.Join(to, rel))
	})
}

// page is what a disk writes at once.
const page = 4096

// copySparse copies a file without its holes: Badger's logs are mostly one.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	const seekData, seekHole = 3, 4 // lseek(2), on Linux
	for at := int64(0); at < info.Size(); {
		begin, err := in.Seek(at, seekData)
		if err != nil {
			break // nothing but a hole
		}
		end, err := in.Seek(begin, seekHole)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, end-begin)); err != nil {
			return err
		}
		at = end
	}
	return out.Truncate(info.Size())
}

// tear puts pages of before back into after, where they differ, unless keep says otherwise. Both are trees of the same
// files, but for those that are new.
func tear(before, after string, keep func() bool) error {
	return filepath.WalkDir(before, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(before, path)
		old, err := os.Open(path)
		if err != nil {
			return err
		}
		defer old.Close()
		f, err := os.OpenFile(filepath.Join(after, rel), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was removed, which some file system did first
		}
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		var was, is [page]byte
		for at := int64(0); at < min(info.Size(), 1<<20); at += page { // the logs of a model are short
			clear(was[:])
			n, _ := old.ReadAt(was[:], at)
			m, _ := f.ReadAt(is[:], at)
			if was != is && m > 0 && n > 0 && !keep() {
				if _, err := f.WriteAt(was[:m], at); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
