//go:build linux

package promises

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// canary is in every key of the scan, so that it finds them whole and in part. It is this run's own: others look at the
// same processes.
var canary = "FakeCanary" + hex.EncodeToString([]byte(rand.Text())[:8])

var canaryKey, canaryNext, canaryValue = "sk-proj-" + canary + "-one", "sk-proj-" + canary + "-two", "value-" + canary

// canaryForms are the canary as it is, in hex, and in base64 at its three phases in both alphabets, without the
// characters that depend on what stands beside it.
func canaryForms() (forms [][]byte) {
	add := func(s string) { forms = append(forms, []byte(s)) }
	add(canary)
	add(strings.ToLower(canary))
	add(strings.ToUpper(canary))
	add(hex.EncodeToString([]byte(canary)))
	add(strings.ToUpper(hex.EncodeToString([]byte(canary))))
	for phase, cut := range []int{0, 2, 3} {
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("-", phase) + canary))
		add(text[cut : len(text)-2])
		add(strings.NewReplacer("+", "-", "/", "_").Replace(text[cut : len(text)-2]))
	}
	return forms
}

func hasCanary(text []byte) bool {
	return slices.ContainsFunc(canaryForms(), func(form []byte) bool { return bytes.Contains(text, form) })
}

// TestTheScanSeesEveryForm: a scan that finds nothing is worth what it would have found.
func TestTheScanSeesEveryForm(t *testing.T) {
	for _, before := range []string{"", "x", "xx", "xxx"} {
		key := []byte(before + canaryKey)
		for _, text := range []string{string(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), base64.URLEncoding.EncodeToString(key)} {
			if !hasCanary([]byte("before " + text + " after")) {
				t.Errorf("not seen: %s", text)
			}
		}
	}
}

// farSide is a service that takes the true key alone, in its slot. It repeats what it was sent, the key included.
type farSide struct {
	*httptest.Server
	mu       sync.Mutex
	key      string
	took     int    // requests with the true key in its slot, and nowhere else
	received []byte // all else that it was sent
}

func newFarSide(t *testing.T) *farSide {
	u := &farSide{key: canaryKey}
	u.Server = httptest.NewServer(http.HandlerFunc(u.serve))
	t.Cleanup(u.Close)
	return u
}

func (u *farSide) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	u.mu.Lock()
	defer u.mu.Unlock()
	slot := r.Header.Values("Authorization")
	ok := len(slot) == 1 && (slot[0] == "Bearer "+canaryKey || slot[0] == "Bearer "+canaryNext)
	r.Header.Del("Authorization")
	u.received = fmt.Appendf(u.received, "%s %s %q %s\n", r.Method, r.RequestURI, r.Header, body)
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
	} else {
		u.took++
		w.Header().Set("X-Key", slot[0])
	}
	fmt.Fprintf(w, "your key is %s, or %s\n", slot, base64.StdEncoding.EncodeToString([]byte("a:"+strings.Join(slot, ""))))
}

// scan collects what keylease says, and searches it together with all that it wrote.
type scan struct {
	*world
	said bytes.Buffer
}

func (s *scan) note(format string, args ...any) { fmt.Fprintf(&s.said, format+"\n", args...) }

func (s *scan) cliSays(want int, stdin string, args ...string) outcome {
	s.t.Helper()
	got := s.cliIn(stdin, args...)
	s.note("$ keylease %v\n%s", args, got)
	if (got.code == 0) != (want == 0) {
		s.t.Fatalf("keylease %v: %s", args, got)
	}
	return got
}

// ask calls a tool, and keeps all of the answer but the one field, in its two copies, in which a value belongs.
func (s *scan) ask(c caller, tool string, a args) answer {
	s.t.Helper()
	got, err := c.try(tool, a)
	if value := got.get("value"); value != "" {
		if n := strings.Count(got.raw, value); n != 2 {
			s.t.Errorf("%s: the value stands %d times in the result", tool, n)
		}
		got.raw = strings.ReplaceAll(got.raw, value, "")
	}
	s.note("%s: %s %v", tool, got.raw, err)
	return got
}

func (s *scan) get(url string, want int, headers ...string) {
	s.t.Helper()
	got, err := do(http.MethodGet, url, "", headers...)
	s.must(err)
	s.note("%d %v %s", got.status, got.header, got.body)
	if got.status != want {
		s.t.Errorf("status %d instead of %d: %s", got.status, want, got.body)
	}
}

// TestD1TheCanaryIsNowhere runs everything with keys that can be recognised, at debug level, and then looks for them in
// every file, answer, log line, Entry and process: they are at the upstream, in its slot, and in the environment of the
// command that was given them; the value of a value lease is in its one field.
func TestD1TheCanaryIsNowhere(t *testing.T) {
	far := newFarSide(t)
	s := &scan{world: newWorld(t)}
	s.configure("log: {level: debug}\n")
	s.policy(openPolicy)
	d := s.serve()
	seed := filepath.Join(t.TempDir(), "seed.yaml") // the operator's own: it holds the keys
	s.write(seed, fmt.Sprintf(`credentials:
  - {name: far, type: api-key, value: %s, upstream: {url: "%s", header: "Authorization: Bearer {value}", allow: ["GET /**"]}}
  - {name: run, type: api-key, value: %[1]s, expose: {env: RUN_KEY}}
  - {name: lent, type: api-key, value: %[3]s}
`, canaryKey, far.URL, canaryValue))
	s.cliSays(0, "", "seed", seed)
	a := s.agent("canary")

	s.proxied(a)
	s.executed(a)
	lent := s.ask(a, "lease_credential", args{"credential": "lent", "delivery": "value", "purpose": "to be seen"})
	if lent.get("value") != canaryValue {
		t.Fatalf("the value was not lent: %s", lent.raw)
	}
	s.ask(a, "release_lease", args{"lease_id": lent.lease()})
	s.cliSays(0, canaryNext+"\n", "rotate", "far")
	s.proxied(a)
	s.misused(a, d)

	for _, view := range [][]string{{"audit", "--json"}, {"ls", "--json"}, {"leases", "--json"}, {"show", "far", "--json"}, {"audit", "verify"}} {
		s.cliSays(0, "", view...)
	}
	far.mu.Lock()
	defer far.mu.Unlock()
	if far.took < 2 {
		t.Errorf("the upstream was given the key %d times", far.took)
	}
	s.search(map[string][]byte{"what keylease said": s.said.Bytes(), "its log": []byte(d.log.String()), "what the upstream was sent, beside the key": far.received})
}

func (s *scan) proxied(a *agent) {
	s.t.Helper()
	got := s.ask(a, "lease_credential", args{"credential": "far", "purpose": "to be used"})
	if got.get("delivery") != "proxy" {
		s.t.Fatalf("not lent by proxy: %s", got.raw)
	}
	base, handle := got.get("use", "base_url"), got.get("use", "api_key")
	s.get(base+"/echo?q=1", http.StatusOK, "Authorization", "Bearer "+handle)
	s.get(base+"/../echo", http.StatusForbidden, "Authorization", "Bearer "+handle)
	s.get(base+"/echo", http.StatusForbidden, "Authorization", "Bearer "+canaryKey)
	s.get(base+"/l/"+canaryKey+"/echo", http.StatusForbidden)
	s.ask(a, "release_lease", args{"lease_id": got.lease()})
	s.get(base+"/echo", http.StatusForbidden, "Authorization", "Bearer "+handle)
}

// executed runs commands that show their key in every usual form, and looks at the processes while one runs.
func (s *scan) executed(a *agent) {
	s.t.Helper()
	got := s.ask(a, "lease_credential", args{"credential": "run", "purpose": "to be run"})
	if got.get("delivery") != "exec" {
		s.t.Fatalf("not lent by exec: %s", got.raw)
	}
	script := `echo "$RUN_KEY"; printf x%s "$RUN_KEY" | base64 -w0; printf %s "$RUN_KEY" | od -An -v -tx1 | tr -d ' \n'; env >&2`
	s.cliSays(0, "", "exec", "--as", "canary", "--lease", got.lease(), "--", "sh", "-c", script)

	cmd := exec.Command(s.bin, "exec", "--as", "canary", "--lease", got.lease(), "--", "sh", "-c", "echo $$; read -r line")
	cmd.Env, cmd.Dir = s.env(), s.home
	out, err := cmd.StdoutPipe()
	s.must(err)
	in, err := cmd.StdinPipe() // it waits for a line that never comes
	s.must(err)
	s.must(cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = in.Close() }()
	pid, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.t.Fatalf("the command did not start: %v", err)
	}
	if holders := s.holders(); !slices.Equal(holders, []string{strings.TrimSpace(pid)}) {
		s.t.Errorf("these processes have the key in their environment or arguments: %v; the command is %s", holders, pid)
	}
	s.ask(a, "release_lease", args{"lease_id": got.lease()})
	_, _ = io.Copy(io.Discard, out)
}

// holders are the processes that show the canary to who looks at them from outside.
func (s *scan) holders() (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	ours := 0
	for _, dir := range all {
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if bytes.HasPrefix(argv, []byte(s.bin+"\x00")) {
			ours++
		}
		if hasCanary(environ) || hasCanary(argv) {
			pids = append(pids, filepath.Base(dir))
		}
	}
	if ours < 3 {
		s.t.Errorf("of daemon, relay and command only %d were found", ours)
	}
	return pids
}

// misused puts keys where none belong; the answers repeat none of them. (What a holder writes into a purpose or a path is
// kept, as that of somebody who never saw the key.)
func (s *scan) misused(a *agent, d *served) {
	s.t.Helper()
	for _, wrong := range []args{{"credential": canaryKey}, {"credential": "lent", "ttl": canaryKey}, {"credential": "lent", "delivery": canaryKey}, {"credential": "lent", canaryKey: 1},
		{"lease_id": canaryKey}, {"approval_id": canaryKey}, {"credential": args{canaryKey: canaryKey}}, {"credential": strings.Repeat(canaryKey, 100)}} {
		if got := s.ask(a, "lease_credential", wrong); !got.refused && got.raw != "" {
			s.t.Errorf("not refused: %s", got.raw)
		}
	}
	s.ask(a, "release_lease", args{"lease_id": canaryKey})
	s.ask(a, "list_credentials", args{"cursor": canaryKey})
	var token struct{ Token string }
	s.must(json.Unmarshal([]byte(s.ok("token", "create", "--identity", "canary", "--json")), &token))
	for _, bearer := range []string{token.Token, canaryKey} {
		for _, body := range []string{canaryKey, `{"` + canaryKey + `":`, `{"jsonrpc":"2.0","id":1,"method":"` + canaryKey + `"}`} {
			got, err := do(http.MethodPost, "http://"+d.addr+"/mcp", body, "Authorization", "Bearer "+bearer, "Content-Type", "application/json", "Accept", "application/json, text/event-stream")
			s.note("%d %v %s %v", got.status, got.header, got.body, err)
		}
	}
	wrong := filepath.Join(s.t.TempDir(), "wrong.yaml")
	for _, text := range []string{"{name: w, type: ssh-key, value: %s}", "{name: w, type: api-key, valeu: %s}", "{name: w, value: [%s", "{name: w, type: api-key, value: \"%s \"}", "%s"} {
		s.write(wrong, "credentials:\n  - "+fmt.Sprintf(text, canaryKey)+"\n")
		s.cliSays(1, "", "seed", wrong)
	}
	s.cliSays(1, canaryKey+"\n", "put", "w", "--type", "ssh-key")
	s.cliSays(1, "postgres://u:"+canaryKey+"@[/x\n", "put", "w", "--type", "database-url")
}

// search looks for the canary in every file of the world and in more; what is sent to disk late has its time.
func (s *scan) search(more map[string][]byte) {
	s.t.Helper()
	time.Sleep(100 * time.Millisecond)
	files := 0
	s.must(filepath.WalkDir(s.home, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || path == s.bin {
			return nil // it went while we looked
		}
		files++
		if text, err := os.ReadFile(path); err == nil {
			more[path] = text
		}
		return nil
	}))
	if files < 8 {
		s.t.Errorf("only %d files were searched", files)
	}
	for where, text := range more {
		for _, form := range canaryForms() {
			if at := bytes.Index(text, form); at >= 0 {
				s.t.Errorf("a key is in %s: …%s[here]", where, text[max(0, at-300):at])
			}
		}
	}
}
