//go:build linux

package promises

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestKilledAgainAndAgain: the daemon is killed at random moments, on an answer, in the middle of a
// start, of a stop and of an admin's revocation, while 32 callers lease, renew and release without a pause. After each start what every caller noted
// is held against the trail and against what keylease shows: what was acknowledged is there, what was refused is not,
// and what nobody was told about is there whole or not at all.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	kills, longest, rests := 6, 100*time.Millisecond, 2
	if os.Getenv("KEYLEASE_TEST_LOOPS") != "" {
		kills, longest, rests = 200, 60*time.Millisecond, 20
	}
	if os.Getenv("KEYLEASE_TEST_FULL") != "" {
		kills, longest, rests = 220, 150*time.Millisecond, 10
	}
	w := newWorldOn(t, os.TempDir()) // where syncing takes its time there is much that nobody was told about
	w.configure(killedConfig)
	w.policy(openPolicy)
	k, s := newKilled(w)
	for n, done := 0, 0; done < kills; n++ {
		time.Sleep(10*time.Millisecond + rand.N(longest))
		if n%3 == 1 {
			k.revoke(s, fmt.Sprintf("web-%d", rand.IntN(killedIdentities)), rand.N(longest))
		}
		if n%5 == 3 { // in the middle of the snapshot that a stop writes, or after it
			_ = s.Process.Signal(syscall.SIGTERM)
			select {
			case <-s.exited:
				done--
			case <-time.After(rand.N(longest)):
			}
		}
		if n%2 == 0 {
			k.killOnAnswer(s, longest)
		}
		s.kill()
		done++
		if n%3 == 2 {
			k.strikeAtStart(rand.N(2 * longest))
			done++
		}
		s = w.serve()
		k.front.Store(&s.addr)
		if n%rests == rests-1 || done >= kills {
			k.check()
		} else {
			w.ok("audit", "verify", "--key", k.fingerprint)
		}
		if t.Failed() {
			t.Fatalf("after %d kills", done)
		}
	}
	k.stop()
	k.check()
	t.Logf("%d kills; %s", kills, k.sum())
}

// killOnAnswer kills the daemon when the next caller is told something; not later than longest.
func (k *killed) killOnAnswer(s *served, longest time.Duration) {
	k.onAnswer.Store(s.Process)
	select {
	case <-s.exited:
	case <-time.After(longest):
	}
	k.onAnswer.Store(nil)
}

const killedConfig = "grace: 1s\nlimits: {callRate: 0}\n"

const killedCallers, killedIdentities = 32, 8

// newKilled starts a daemon and 32 callers that are never content.
func newKilled(w *world) (*killed, *served) {
	t := w.t
	t.Helper()
	s := w.serve()
	k := &killed{w: w, fingerprint: regexp.MustCompile(`SHA256:\S{43}`).FindString(s.log.String()), over: make(chan struct{})}
	if k.fingerprint == "" {
		t.Fatalf("no fingerprint: %s", s.log)
	}
	w.seed(secretOf("db", ""), secretOf("api", ""), secretOf("few", fmt.Sprintf("policy: {maxLeases: %d}", fewLeases)))
	k.front.Store(&s.addr)
	over := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: killedCallers, DialContext: k.dial}}
	for i := range killedIdentities {
		name := fmt.Sprintf("web-%d", i)
		token, _ := w.token(name)
		for j := range killedCallers / killedIdentities {
			c := w.web("127.0.0.1", token, j%2 == 0)
			c.over = over
			k.callers = append(k.callers, &journal{k: k, web: c, name: name, id: len(k.callers), bound: !c.spec.modern,
				dice: rand.New(rand.NewPCG(rand.Uint64(), 1))})
		}
	}
	var work sync.WaitGroup
	for _, c := range k.callers {
		work.Go(c.work)
	}
	k.stop = sync.OnceFunc(func() { close(k.over); work.Wait(); over.CloseIdleConnections() })
	t.Cleanup(k.stop)
	return k, s
}

// killed is the callers of a daemon that is killed, and what they noted.
type killed struct {
	w           *world
	fingerprint string
	front       atomic.Pointer[string]     // where the daemon listens now
	gate        sync.RWMutex               // held for reading by each call, for writing by who holds the books against the trail
	onAnswer    atomic.Pointer[os.Process] // to be killed by the first caller that is told something
	over        chan struct{}
	stop        func() // ends the callers
	callers     []*journal
	revoked     []revocation
	created     int // what the last check found in the trail
	aside       int // leases that are none of theirs
}

// shut lets no caller call until open is called, or the test is over.
func (k *killed) shut() (open func()) {
	k.gate.Lock()
	open = sync.OnceFunc(k.gate.Unlock)
	k.w.t.Cleanup(open) // before the one that waits for the callers
	return open
}

func (k *killed) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", *k.front.Load())
}

// revocation is an admin's: told is false where the command did not say that it was done.
type revocation struct {
	name       string
	sent, done time.Time
	told       bool
}

// revoke kills the daemon while an admin ends all that one identity holds.
func (k *killed) revoke(s *served, name string, after time.Duration) {
	k.w.t.Helper()
	r := revocation{name: name, sent: time.Now()}
	kill := time.AfterFunc(after, func() { _ = s.Process.Kill() })
	defer kill.Stop()
	r.told = k.w.cli("revoke-leases", "--identity", name).code == 0
	r.done = time.Now()
	k.revoked = append(k.revoked, r)
}

// strikeAtStart starts a daemon and kills it before anybody could wait for it.
func (k *killed) strikeAtStart(after time.Duration) {
	k.w.t.Helper()
	cmd := exec.Command(k.w.bin, "serve", "--http", "127.0.0.1:0")
	cmd.Env, cmd.Dir = k.w.env(), k.w.home
	k.w.must(cmd.Start())
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// journal is one caller, and what it was told.
type journal struct {
	k     *killed
	web   *web
	name  string // its identity, which others have too
	id    int
	bound bool // its leases end with its session
	dice  *rand.Rand
	asked int
	all   []*noted
	open  []*noted // lent, and not known to have ended
	over  []*noted // the last that are known to have ended
}

// noted is one lease that was asked for, and what was said about it since.
type noted struct {
	purpose    string // no other lease has it
	credential string
	told       verdict
	lease      string
	expires    string
	at         time.Time // when it was lent
	renewed    []string  // the ends that renewals were told
	maybe      int       // renewals whose outcome nobody knows
	giving     bool      // a release was asked for
	ended      string    // how it ended, as a release was told; "" unless one was
	refused    time.Time // when a renewal was first told that the lease has ended
}

// verdict is what a caller knows of one call.
type verdict int

const (
	unknown verdict = iota // sent, and not answered, or answered that nothing could be recorded
	granted
	declined
)

// call makes one call and says how it went. What never left is declined, without a code.
func (j *journal) call(tool string, a args) (answer, verdict) {
	got, err := j.web.try(tool, a)
	var dialled *net.OpError
	switch {
	case errors.As(err, &dialled) && dialled.Op == "dial":
		time.Sleep(10 * time.Millisecond) // there is no daemon
		return got, declined
	case err != nil || got.code() == "unavailable":
		return got, unknown
	case got.refused:
		return got, declined
	}
	if daemon := j.k.onAnswer.Swap(nil); daemon != nil { // what was said in this instant has to hold too
		_ = daemon.Kill()
	}
	return got, granted
}

func (j *journal) work() {
	for {
		select {
		case <-j.k.over:
			return
		default:
		}
		j.k.gate.RLock()
		j.step()
		j.k.gate.RUnlock()
	}
}

func (j *journal) step() {
	switch n := j.dice.IntN(10); {
	case n == 9 && len(j.over) > 0:
		j.again(j.over[j.dice.IntN(len(j.over))])
	case len(j.open) == 0 || n < 4 && len(j.open) < 6:
		j.lend()
	case n < 6:
		j.renew(j.open[j.dice.IntN(len(j.open))])
	default:
		j.release(j.dice.IntN(len(j.open)))
	}
}

// length is how long a lease or a renewal is asked for: some end on their own, between two kills.
func (j *journal) length() string { return []string{"10m", "30m", "1s", "2s"}[j.dice.IntN(4)] }

func (j *journal) lend() {
	n := &noted{purpose: fmt.Sprintf("caller %d, lease %d", j.id, j.asked), credential: []string{"db", "api", "few"}[j.dice.IntN(3)]}
	j.asked++
	got, told := j.call("lease_credential", args{"credential": n.credential, "purpose": n.purpose, "ttl": j.length()})
	if told == declined && got.code() == "" {
		return // there was nobody to ask; what is made with this purpose was made up
	}
	if got.code() == "lease_ended" {
		told = unknown // it was made, and was over before its value could be told: revoked, or its second was up
	}
	j.all = append(j.all, n)
	if n.told = told; told == granted {
		n.lease, n.expires, n.at = got.lease(), got.get("expires_at"), time.Now()
		j.open = append(j.open, n)
	}
	if told == declined && got.code() != "lease_limit" {
		j.k.w.t.Errorf("%s was refused: %s", n.purpose, got.raw)
	}
}

func (j *journal) renew(n *noted) {
	got, told := j.call("lease_credential", args{"lease_id": n.lease, "ttl": j.length()})
	switch {
	case told == granted:
		n.renewed = append(n.renewed, got.get("expires_at"))
		if !n.refused.IsZero() {
			j.k.w.t.Errorf("%s (%s) had ended, and was renewed: %s", n.lease, n.purpose, got.raw)
		}
	case told == unknown:
		n.maybe++
	case got.code() == "lease_ended" && n.refused.IsZero():
		n.refused = time.Now()
	case got.code() != "" && got.code() != "lease_ended":
		j.k.w.t.Errorf("renewing %s (%s): %s", n.lease, n.purpose, got.raw)
	}
}

func (j *journal) release(i int) {
	n := j.open[i]
	got, told := j.call("release_lease", args{"lease_id": n.lease})
	switch {
	case told == granted:
		n.giving, n.ended = true, got.get("status")
		j.open[i] = j.open[len(j.open)-1]
		j.open = j.open[:len(j.open)-1]
		j.over = append(j.over, n)
		j.over = j.over[max(0, len(j.over)-20):]
	case told == unknown:
		n.giving = true
	case got.code() != "":
		j.k.w.t.Errorf("releasing %s (%s): %s", n.lease, n.purpose, got.raw)
	}
}

// again asks about a lease that is over: it ended as it ended, and is not brought back.
func (j *journal) again(n *noted) {
	if j.dice.IntN(2) == 0 {
		got, told := j.call("release_lease", args{"lease_id": n.lease})
		if told == granted && got.get("status") != n.ended || told == declined && got.code() != "" {
			j.k.w.t.Errorf("%s (%s) was %s, and now: %s", n.lease, n.purpose, n.ended, got.raw)
		}
		return
	}
	got, told := j.call("lease_credential", args{"lease_id": n.lease, "ttl": "10m"})
	if told == granted || told == declined && got.code() != "" && got.code() != "lease_ended" {
		j.k.w.t.Errorf("%s (%s) was %s, and renewing says: %s", n.lease, n.purpose, n.ended, got.raw)
	}
}
