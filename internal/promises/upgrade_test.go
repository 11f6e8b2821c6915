//go:build linux

package promises

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// foldersOfOld are homes as earlier versions left them: stopped in order, and killed. Each release adds its own, which
// KEYLEASE_TEST_MAKE_FOLDERS=NAME writes; those that are here stay for as long as their version is supported.
const foldersOfOld = "testdata/folders"

// TestG11FoldersOfEarlierVersionsOpen: what an earlier version wrote is read by this one, whole.
func TestG11FoldersOfEarlierVersionsOpen(t *testing.T) {
	t.Parallel()
	if name := os.Getenv("KEYLEASE_TEST_MAKE_FOLDERS"); name != "" {
		makeFolder(t, name+"-stopped", func(s *served) { s.stop() })
		makeFolder(t, name+"-killed", func(s *served) { s.kill() })
	}
	folders, err := filepath.Glob(foldersOfOld + "/*.tar.gz")
	if err != nil || len(folders) < 2 {
		t.Fatalf("%d folders: %v", len(folders), err)
	}
	for _, folder := range folders {
		t.Run(strings.TrimSuffix(filepath.Base(folder), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must(unpack(folder, w.home))
			text := func(name string) string {
				data, err := os.ReadFile(filepath.Join(w.home, name))
				w.must(err)
				return string(data)
			}
			w.serve()
			w.ok("audit", "verify", "--key", text("fingerprint"))
			if live := w.leases(); len(live) != 0 {
				t.Errorf("leases of then are live: %v", live)
			}
			w.tokenRow(text("token"))
			a := w.agent("newcomer")
			for name, value := range map[string]string{"db": valueOf("db"), "mail": "fake-rotated-value"} {
				if got := call(t, a, "lease_credential", args{"credential": name}); got.get("value") != value {
					t.Errorf("%s: %s", name, got.raw)
				}
			}
			trail := w.audit()
			for _, want := range []string{"credential.created", "credential.rotated", "token.created", "lease.created", "lease.released", "lease.expired"} {
				if len(find(trail, want)) == 0 {
					t.Errorf("the trail has no %s", want)
				}
			}
		})
	}
}

// makeFolder has this version make a home with something of everything, ended by end.
func makeFolder(t *testing.T, name string, end func(*served)) {
	w := newWorld(t)
	w.write(filepath.Join(w.config(), "root.key"), strings.Repeat("fa4e", 16)+"\n")
	w.policy(openPolicy)
	s := w.serve()
	w.seed(secretOf("db", ""), secretOf("mail", "metadata: {environment: development}"))
	if got := w.cliIn("fake-rotated-value", "rotate", "mail"); got.code != 0 {
		t.Fatal(got)
	}
	_, token := w.token("ci")
	a := w.agent("coder")
	call(t, a, "release_lease", args{"lease_id": lend(t, a, "db")})
	lend(t, a, "mail", "ttl", "1s")
	w.eventually("its end is recorded", func() error {
		if len(find(w.audit(), "lease.expired")) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	a.leave()
	w.write(filepath.Join(w.home, "token"), token)
	w.write(filepath.Join(w.home, "fingerprint"), regexp.MustCompile(`SHA256:\S{43}`).FindString(s.log.String()))
	end(s)
	w.must(os.RemoveAll(filepath.Dir(w.bin)))
	for _, left := range []string{"keylease.sock", "proxy.sock"} { // by what was killed
		_ = os.Remove(filepath.Join(w.data(), left))
	}
	w.must(os.MkdirAll(foldersOfOld, 0o755))
	w.must(pack(w.home, filepath.Join(foldersOfOld, name+".tar.gz")))
}

func pack(home, to string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	z, _ := gzip.NewWriterLevel(out, gzip.BestCompression)
	archive := tar.NewWriter(z)
	return errors.Join(archive.AddFS(os.DirFS(home)), archive.Close(), z.Close(), out.Close())
}

func unpack(from, home string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for archive := tar.NewReader(z); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(home, filepath.Clean("/"+header.Name))
		if header.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, header.FileInfo().Mode().Perm()); err != nil {
				return err
			}
			continue
		}
		to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, header.FileInfo().Mode().Perm())
		if err != nil {
			return err
		}
		if _, err := io.Copy(to, archive); err != nil {
			return errors.Join(err, to.Close())
		}
		if err := to.Close(); err != nil {
			return err
		}
	}
}
