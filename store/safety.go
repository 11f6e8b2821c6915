package store

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rs/zerolog"

	"keylease/internal/wholefile"
)

// Badger repairs what it opens: a log is cut where it stops making sense, a table that the MANIFEST does not name is
// deleted, and neither is an error. Where a byte of the log flipped, or the MANIFEST lost its end, that destroys what
// could still be had. So its folder is copied before it is opened, and the copy goes only after what was opened has
// stood the check against the anchor:
//
//	1 store.part/    the tables as hard links, the rest copied; Sums last
//	2 store.safe/    renamed: the copy is whole
//	3 Badger opens, the check passes
//	4 store.part/    renamed back, on disk; removed
//
// Where the check fails, and where a store.safe/ that is whole is found at a start, because the one before died in
// between, the folder is made what the copy says: nothing was acknowledged meanwhile. A power cut may leave a copy that
// is not whole: its sums tell, and it goes.
type safetyCopy struct{ dir, safe, part string }

func safetyOf(dir string) safetyCopy {
	return safetyCopy{dir: storeDir(dir), safe: filepath.Join(dir, "store.safe"), part: filepath.Join(dir, "store.part")}
}

const (
	sumsName = "Sums"
	ofFolder = "of" // the line of Sums that says which folder was copied
)

var errNoRoom = errors.New("too little room on the disk")

// make copies the folder. Caller has Badger's lock.
func (c safetyCopy) make() error {
	if err := os.RemoveAll(c.part); err != nil {
		return err
	}
	if err := copyStore(c.dir, c.part, true); err != nil {
		return errors.Join(err, os.RemoveAll(c.part))
	}
	return os.Rename(c.part, c.safe)
}

// drop says that the copy is not needed any more; on disk when it returns, or a power cut could bring it back.
func (c safetyCopy) drop() error {
	if err := os.Rename(c.safe, c.part); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return errors.Join(wholefile.SyncFolder(filepath.Dir(c.dir)), os.RemoveAll(c.part))
}

// putBack makes the folder what the copy says, if there is one and it is whole. It may be cut short and begun again.
func (c safetyCopy) putBack(log zerolog.Logger) error {
	names, err := checkSums(c.safe, c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Lstat(c.safe); gone != nil {
			return nil
		}
	}
	if err != nil {
		log.Warn().Err(err).Msg("a start before this one left a safety copy of the database that is not used")
		return c.drop()
	}
	left, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for name := range names {
		if err := relink(filepath.Join(c.safe, name), filepath.Join(c.dir, name)); err != nil {
			return fmt.Errorf("putting %s back: %w", name, err)
		}
	}
	for _, e := range left {
		if !names[e.Name()] && e.Name() != lockName {
			if err := os.Remove(filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := wholefile.SyncFolder(c.dir); err != nil {
		return err
	}
	return c.drop()
}

// relink makes to what from is, in one step.
func relink(from, to string) error {
	a, err := os.Stat(from)
	if err != nil {
		return err
	}
	if b, err := os.Stat(to); err == nil && os.SameFile(a, b) {
		return nil
	}
	fresh := to + ".back"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := wholefile.SyncFolder(from); err != nil { // of a file it does the same; what it takes the place of was on the disk
		return err
	}
	if err := os.Link(from, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, to)
}

// lockName is Badger's: who has the folder open writes its pid there.
const lockName = "LOCK"

// copyStore copies Badger's folder from to the new folder to, with the sums of what was copied. links: the tables are
// hard links, which is enough where nobody compacts them.
func copyStore(from, to string, links bool) error {
	left, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := roomToCopy(from, left, links); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	var sums strings.Builder
	fmt.Fprintf(&sums, "%s %s\n", ofFolder, folderID(from))
	for _, e := range left {
		if e.Name() == lockName {
			continue
		}
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if links && filepath.Ext(e.Name()) == ".sst" {
			if err := os.Link(source, target); err != nil {
				return err
			}
			info, err := os.Stat(target)
			if err != nil {
				return err
			}
			fmt.Fprintf(&sums, "-%d %s\n", info.Size(), e.Name())
			continue
		}
		sum, err := copySparse(source, target)
		if err != nil {
			return fmt.Errorf("copying %s: %w", source, err)
		}
		fmt.Fprintf(&sums, "%d %s\n", sum, e.Name())
	}
	return os.WriteFile(filepath.Join(to, sumsName), []byte(sums.String()), 0o600)
}

// plainFiles refuses a folder of Badger's that holds anything but files.
func plainFiles(dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%w: %s is not a plain file", ErrFolder, filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// roomToCopy refuses what would take the room that writing needs.
func roomToCopy(from string, left []fs.DirEntry, links bool) error {
	need := uint64(reserve)
	for _, e := range left {
		if info, err := e.Info(); err == nil && !(links && filepath.Ext(e.Name()) == ".sst") {
			need += onDisk(info)
		}
	}
	if free, err := freeBytes(from); err == nil && free < need {
		return errNoRoom
	}
	return nil
}

const copyBlock = 64 << 10

// copySparse copies a file with its holes and returns the CRC of what is in it and where.
func copySparse(from, to string) (sum uint32, err error) {
	r, err := openPlain(from, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return 0, err
	}
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	sum, err = sumSparse(r, info.Size(), w)
	if err == nil {
		err = w.Truncate(info.Size())
	}
	return sum, errors.Join(err, w.Close())
}

// sumSparse reads what is in a file, without its holes, and returns a CRC of it; w gets a copy.
func sumSparse(r *os.File, size int64, w io.WriterAt) (sum uint32, err error) {
	var buf [copyBlock]byte
	var zero [copyBlock]byte
	at := int64(0)
	for {
		if at = nextData(r, at) &^ (copyBlock - 1); at >= size {
			break // by whole blocks: where the holes of a copy begin is its disk's own affair
		}
		n, err := r.ReadAt(buf[:min(copyBlock, size-at)], at)
		if n == 0 && err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if n == 0 {
			break
		}
		if block := buf[:n]; string(block) != string(zero[:n]) {
			sum = crc32.Update(sum, crcTable, fmt.Append(nil, at))
			sum = crc32.Update(sum, crcTable, block)
			if w != nil {
				if _, err := w.WriteAt(block, at); err != nil {
					return 0, err
				}
			}
		}
		at += int64(n)
	}
	return crc32.Update(sum, crcTable, fmt.Append(nil, "size", size)), nil
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// checkSums returns the names of the files in a copy that is whole, and of this folder: not of one in whose place
// somebody has put another since.
func checkSums(dir, folder string) (map[string]bool, error) {
	f, err := openPlain(filepath.Join(dir, sumsName), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		want, name, ok := strings.Cut(lines.Text(), " ")
		if !ok || name != "" && name != filepath.Base(name) {
			return nil, errors.New("its sums can't be read")
		}
		if want == ofFolder {
			if name != folderID(folder) {
				return nil, errors.New("it is of another folder")
			}
			continue
		}
		if err := checkSum(filepath.Join(dir, name), want); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		names[name] = true
	}
	return names, lines.Err()
}

func checkSum(path, want string) error {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if size, link := strings.CutPrefix(want, "-"); link {
		if size != fmt.Sprint(info.Size()) {
			return errors.New("it was emptied")
		}
		return nil
	}
	sum, err := sumSparse(f, info.Size(), nil)
	if err == nil && fmt.Sprint(sum) != want {
		err = errors.New("it is not what was copied")
	}
	return err
}
