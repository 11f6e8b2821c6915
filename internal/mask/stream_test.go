package mask

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// TestPromptsAreNotDelayed: what can't begin a secret is written within the call; what can, up to three bytes, after 50 ms.
func TestPromptsAreNotDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out screen
		w := New([]byte(plainKey)).Writer(&out)
		defer w.Close()
		say(t, w, "Password: ")
		if out.String() != "Password: " {
			t.Errorf("at once: %q", &out)
		}
		say(t, w, "yes")
		if out.String() != "Password: ye" {
			t.Errorf("at once, without what may begin a key: %q", &out)
		}
		time.Sleep(pause - time.Nanosecond)
		synctest.Wait()
		if out.String() != "Password: ye" {
			t.Errorf("before the pause: %q", &out)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if out.String() != "Password: yes" {
			t.Errorf("after the pause: %q", &out)
		}
		say(t, w, "!\n")
		if out.String() != "Password: yes!\n" {
			t.Errorf("once only: %q", &out)
		}
	})
}

// TestAKeyThatIsPrintedSlowlyShowsThreeBytes: letter by letter with a pause after each, and
// in two pieces, at any place.
func TestAKeyThatIsPrintedSlowlyShowsThreeBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := plainKey[:20]
		for _, text := range []string{key, base64.StdEncoding.EncodeToString([]byte(key))[:26]} {
			m := New([]byte(key))
			slowly := func(pieces []string, want string) {
				t.Helper()
				var out screen
				w := m.Writer(&out)
				for _, p := range append(append([]string{"> "}, pieces...), " <\n") {
					say(t, w, p)
					time.Sleep(2 * pause)
					synctest.Wait()
				}
				if err := w.Close(); err != nil || out.String() != want {
					t.Errorf("%q: %q, %v", pieces, &out, err)
				}
			}
			slowly(strings.Split(text, ""), "> "+text[:slip]+"[secret] <\n")
			for i := 1; i < len(text); i++ {
				want := "> [secret] <\n"
				if i <= slip {
					want = "> " + text[:i] + "[secret] <\n"
				}
				slowly([]string{text[:i], text[i:]}, want)
			}
		}
	})
}

// TestWhatIsNoKeyAfterAllIsWrittenOnce: what was let through is not written again, what was held is written in its place.
func TestWhatIsNoKeyAfterAllIsWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for cut := 1; cut < 12; cut++ {
			var out screen
			w := New([]byte(plainKey)).Writer(&out)
			for _, p := range []string{plainKey[:cut], plainKey[cut:12], "?"} {
				say(t, w, p)
				time.Sleep(pause)
				synctest.Wait()
			}
			if err := w.Close(); err != nil || out.String() != plainKey[:12]+"?" {
				t.Errorf("cut at %d: %q, %v", cut, &out, err)
			}
		}
	})
}

func TestAWriterHoldsNoMoreThanMayBecomeASecret(t *testing.T) {
	w := New([]byte(plainKey)).Writer(io.Discard)
	defer w.Close()
	for range 1000 {
		say(t, w, strings.Repeat("no key here ", 1000)+plainKey[:20])
		if len(w.s.held) != 20 || cap(w.s.held) > 64<<10 {
			t.Fatalf("%d bytes are held in %d", len(w.s.held), cap(w.s.held))
		}
	}
}

func TestAWriterReportsWhatItsOutputReports(t *testing.T) {
	broken := errors.New("no space left")
	w := New([]byte(plainKey)).Writer(writerFunc(func([]byte) (int, error) { return 0, broken }))
	for range 2 {
		if _, err := w.Write([]byte("text")); err != broken {
			t.Errorf("Write: %v", err)
		}
	}
	if err := w.Close(); err != broken {
		t.Errorf("Close: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if _, err := w.Write([]byte("text")); err != errClosed {
		t.Errorf("Write after Close: %v", err)
	}
}

// TestEventsAreNotDelayed: a Reader hands an event on when its source gave it, though nothing follows.
func TestEventsAreNotDelayed(t *testing.T) {
	src, far := io.Pipe()
	defer src.Close()
	r := New([]byte(plainKey)).Reader(src)
	p := make([]byte, 4096)
	for _, event := range []string{"data: hello\n\n", "data: " + plainKey + "\n\n", "data: s\n\n", ": \n\n"} {
		go func() { _, _ = io.WriteString(far, event) }()
		want := strings.ReplaceAll(event, plainKey, "[secret]")
		if n, err := r.Read(p); err != nil || string(p[:n]) != want {
			t.Fatalf("%q, %v", p[:n], err)
		}
	}
}

// TestAReaderTakesAnySource: one that gives single bytes, its last bytes together with EOF, or into a small buffer.
func TestAReaderTakesAnySource(t *testing.T) {
	m, text := New([]byte(plainKey)), "one "+plainKey+" two "+plainKey
	for name, src := range map[string]io.Reader{
		"single bytes": iotest.OneByteReader(strings.NewReader(text)),
		"data and EOF": iotest.DataErrReader(strings.NewReader(text)),
		"whole":        strings.NewReader(text),
	} {
		if err := iotest.TestReader(m.Reader(src), []byte("one [secret] two [secret]")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// screen is what a person sees: it may be looked at while the Writer's timer writes.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func say(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); n != len(s) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
}
