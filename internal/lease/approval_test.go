package lease

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keylease/internal/identity"
	"keylease/internal/secret"
	"keylease/policy"
	"keylease/store"
)

const needsOperator = `version: 1
rules:
  - name: a person
    identities: ["*"]
    credentials: ["*"]
    approval: operator
    maxLeaseTTL: 1h
`

// asking is a world in which every lease of "key" wants approval, and an agent.
func asking(t *testing.T, who policy.Approval) (*world, identity.Caller) {
	w := newWorld(t)
	w.setPolicy(strings.Replace(needsOperator, "operator", string(who), 1))
	w.put("key", "sk-test-approval", policy.CredentialPolicy{})
	w.put("other", "sk-test-other", policy.CredentialPolicy{})
	return w, w.agent("claude-code")
}

func (w *world) asks(c identity.Caller, r Request) *Waiting {
	w.t.Helper()
	g, err := w.Lease(context.Background(), c, r)
	if err != nil {
		w.t.Fatal(err)
	}
	if g.Waiting == nil || g.LeaseID != "" {
		w.t.Fatalf("lent without anybody's yes: %+v", g)
	}
	return g.Waiting
}

func (w *world) resumes(c identity.Caller, id string) (Grant, error) {
	return w.Lease(context.Background(), c, Request{ApprovalID: id})
}

func (w *world) approves(id string) {
	w.t.Helper()
	if _, err := w.Approve(context.Background(), operator, id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) denies(id, reason string) {
	w.t.Helper()
	if _, err := w.Deny(context.Background(), operator, id, reason); err != nil {
		w.t.Fatal(err)
	}
}

func TestAPersonsYesOpensTheLeaseThatWasAskedFor(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key", TTL: 10 * time.Minute, Purpose: "run the migration"})
	if w.live() != 0 || w.told(store.EventApprovalAsked) != 1 || w.told(store.EventLeaseCreated) != 0 {
		t.Fatal("a question is no lease")
	}
	if g, err := w.resumes(c, q.ID); err != nil || g.Waiting == nil || g.Waiting.ID != q.ID {
		t.Fatalf("before the answer: %+v, %v", g, err)
	}
	w.approves(q.ID)
	g, err := w.resumes(c, q.ID)
	if err != nil || g.TTL != 10*time.Minute || w.value(c, g.LeaseID) != "sk-test-approval" {
		t.Fatalf("%+v, %v", g, err)
	}
	if _, err := w.resumes(c, q.ID); err != nil {
		wantCode(t, err, ApprovalDenied)
	} else {
		t.Error("one yes opened two leases")
	}
	if again := w.asks(c, Request{Credential: "key", TTL: 10 * time.Minute, Purpose: "run the migration"}); again.ID == q.ID {
		t.Error("a used answer was taken for an open question")
	}
}

func TestWhatWasApprovedIsTheCeilingOfRenewals(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key", TTL: 10 * time.Minute, Purpose: "p"})
	w.approves(q.ID)
	g, err := w.resumes(c, q.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, clean := range []bool{false, true} {
		w.restart(clean)
		w.Attach(context.Background(), c)
		w.pass(time.Minute)
		r, err := w.Renew(context.Background(), c, RenewRequest{LeaseID: g.LeaseID, TTL: time.Hour})
		if err != nil || !r.ExpiresAt.Equal(g.IssuedAt.Add(10*time.Minute)) || !r.MaxExpiresAt.Equal(r.ExpiresAt) {
			t.Fatalf("clean %v: %+v, %v", clean, r, err)
		}
	}
}

func TestARenewalDoesNotStretchAWeakerYes(t *testing.T) {
	w, c := asking(t, policy.User)
	q := w.asks(c, Request{Credential: "key"})
	if err := w.ClientAnswered(context.Background(), c, q.ID, true); err != nil {
		t.Fatal(err)
	}
	g, err := w.resumes(c, q.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Renew(context.Background(), c, RenewRequest{LeaseID: g.LeaseID, TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	w.setPolicy(needsOperator)
	_, err = w.Renew(context.Background(), c, RenewRequest{LeaseID: g.LeaseID, TTL: time.Minute})
	wantCode(t, err, NotAvailable)
}

func TestOneAnswerOpensOneLeaseUnderARace(t *testing.T) { // E3
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key", Purpose: "p"})
	w.approves(q.ID)
	var all sync.WaitGroup
	var mu sync.Mutex
	granted := 0
	for range 64 {
		all.Go(func() {
			g, err := w.resumes(c, q.ID)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && g.LeaseID != "" {
				granted++
			} else if r := AsRefusal(err); r == nil || r.Code != ApprovalDenied {
				t.Errorf("%+v, %v", g, err)
			}
		})
	}
	all.Wait()
	if granted != 1 || w.live() != 1 || w.told(store.EventLeaseCreated) != 1 {
		t.Errorf("%d granted, %d live", granted, w.live())
	}
}

func TestAnApprovalIsNobodyElses(t *testing.T) {
	w, c := asking(t, policy.User)
	q := w.asks(c, Request{Credential: "key"})
	stranger := w.agent("codex")
	_, err := w.resumes(stranger, q.ID)
	_, unknown := w.resumes(stranger, "ap_unknown")
	if !reflect.DeepEqual(wantCode(t, err, NotAvailable), wantCode(t, unknown, NotAvailable)) {
		t.Error("somebody else's question and one that never was are told apart")
	}
	wantCode(t, w.ClientAnswered(context.Background(), stranger, q.ID, true), NotAvailable)
	w.approves(q.ID)
	_, err = w.resumes(stranger, q.ID)
	wantCode(t, err, NotAvailable)
	if g, err := w.Lease(context.Background(), stranger, Request{Credential: "key"}); err != nil || g.Waiting == nil {
		t.Errorf("the answer to one was lent to another: %+v, %v", g, err)
	}
	if g, err := w.resumes(c, q.ID); err != nil || g.LeaseID == "" {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestAClientCannotAnswerForTheOperator(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key"})
	wantCode(t, w.ClientAnswered(context.Background(), c, q.ID, true), NotAvailable)
	if g, _ := w.resumes(c, q.ID); g.Waiting == nil {
		t.Error("the question is not open any more")
	}
}

func TestAQuestionThatNobodyAnswersIsDenied(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key"})
	if w.Activity().Waiting != 1 {
		t.Error("a waiting question does not keep the daemon up")
	}
	w.pass(ApprovalFor)
	_, err := w.resumes(c, q.ID)
	wantCode(t, err, ApprovalDenied)
	_, err = w.Approve(context.Background(), operator, q.ID)
	wantCode(t, err, ApprovalDenied)
	if w.told(store.EventApprovalExpired) != 1 || w.Activity().Waiting != 0 {
		t.Error("its end was not written once")
	}
}

func TestAYesThatNobodyComesForExpires(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key"})
	w.pass(ApprovalFor - time.Second)
	w.approves(q.ID)
	w.pass(ApprovalFor - time.Second)
	other := w.asks(c, Request{Credential: "other"})
	w.approves(other.ID)
	if g, err := w.resumes(c, q.ID); err != nil || g.LeaseID == "" {
		t.Fatalf("in the last second: %+v, %v", g, err)
	}
	w.pass(ApprovalFor)
	w.sweep(context.Background())
	if w.told(store.EventApprovalExpired) != 1 {
		t.Error("the sweeper did not write it down")
	}
	_, err := w.resumes(c, other.ID)
	wantCode(t, err, ApprovalDenied)
}

func TestAnswersSurviveRestartsAndAreSpentOnce(t *testing.T) {
	for _, clean := range []bool{false, true} {
		w, c := asking(t, policy.Operator)
		q := w.asks(c, Request{Credential: "key", Purpose: "p"})
		w.restart(clean)
		if same := w.asks(c, Request{Credential: "key", Purpose: "p"}); same.ID != q.ID {
			t.Errorf("clean %v: the restart forgot the question", clean)
		}
		w.approves(q.ID)
		w.restart(clean)
		if g, err := w.resumes(c, q.ID); err != nil || g.LeaseID == "" {
			t.Fatalf("clean %v: the restart forgot the answer: %+v, %v", clean, g, err)
		}
		w.restart(clean)
		_, err := w.resumes(c, q.ID)
		wantCode(t, err, ApprovalDenied)
	}
}

func TestAskingTwiceIsOneQuestionAndThreeMayWait(t *testing.T) {
	w, c := asking(t, policy.Operator)
	first := w.asks(c, Request{Credential: "key", Purpose: "a"})
	if w.asks(c, Request{Credential: "key", Purpose: "a"}).ID != first.ID {
		t.Error("the same was asked twice")
	}
	w.asks(c, Request{Credential: "key", Purpose: "b"})
	namesake := w.agent("another-name") // of the same uid, at no cost
	w.asks(namesake, Request{Credential: "key", Purpose: "c"})
	_, err := w.Lease(context.Background(), namesake, Request{Credential: "other"})
	if r := wantCode(t, err, RateLimited); r.RetryAfter <= 0 || r.RetryAfter > ApprovalFor {
		t.Errorf("retry after %s", r.RetryAfter)
	}
	w.approves(first.ID)
	w.asks(namesake, Request{Credential: "other"}) // an answered one waits for nobody
}

func TestAfterTwoDenialsInARowNobodyIsAsked(t *testing.T) {
	w, c := asking(t, policy.Operator)
	for _, what := range []string{"key", "other"} {
		q := w.asks(c, Request{Credential: what})
		w.denies(q.ID, "not today")
		_, err := w.resumes(c, q.ID)
		if r := wantCode(t, err, ApprovalDenied); !strings.Contains(r.Message, "not today") {
			t.Errorf("the agent is not told why: %s", r.Message)
		}
	}
	w.restart(false)
	_, err := w.Lease(context.Background(), w.agent("a-new-name"), Request{Credential: "key"})
	if r := wantCode(t, err, ApprovalDenied); r.RetryAfter != backOff {
		t.Errorf("retry after %s", r.RetryAfter)
	}
	w.pass(backOff)
	w.approves(w.asks(c, Request{Credential: "key"}).ID)
	w.denies(w.asks(c, Request{Credential: "other"}).ID, "")
	w.asks(c, Request{Credential: "other", Purpose: "a yes between two denials"})
}

func TestAnAnswerFitsOneQuestion(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"another policy": func(w *world) { w.setPolicy(needsOperator + "# edited\n") },
		"another version": func(w *world) {
			if _, err := w.Rotate(context.Background(), operator, "key", secret.New([]byte("sk-test-next")), false); err != nil {
				w.t.Fatal(err)
			}
		},
		"revoked": func(w *world) { _, _ = w.RevokeCredential(context.Background(), operator, "key") },
		"removed and put anew": func(w *world) {
			_ = w.Remove(context.Background(), operator, "key")
			w.put("key", "sk-test-other", policy.CredentialPolicy{})
		},
		"frozen and thawed": func(w *world) {
			_, _ = w.Freeze(context.Background(), operator, "")
			w.sweep(context.Background())
			_, _ = w.Thaw(context.Background(), operator)
		},
	} {
		for _, answered := range []bool{true, false} {
			w, c := asking(t, policy.Operator)
			q := w.asks(c, Request{Credential: "key"})
			if answered {
				w.approves(q.ID)
			}
			change(w)
			g, err := w.resumes(c, q.ID)
			if g.LeaseID != "" || g.Waiting != nil {
				t.Errorf("%s, answered %v: lent %+v", name, answered, g)
				continue
			}
			if r := wantCode(t, err, ApprovalDenied); !strings.Contains(r.Message, ": ") {
				t.Errorf("%s: %q does not say why", name, r.Message)
			}
			if _, err := w.Approve(context.Background(), operator, q.ID); AsRefusal(err) == nil {
				t.Errorf("%s: approved after all", name)
			}
		}
	}
}

func TestOtherArgumentsDoNotRideOnAnApproval(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key", TTL: time.Minute, Purpose: "p"})
	w.approves(q.ID)
	for _, r := range []Request{{Credential: "other"}, {TTL: time.Hour}, {Purpose: "something else"}, {Delivery: policy.Exec}} {
		r.ApprovalID = q.ID
		_, err := w.Lease(context.Background(), c, r)
		wantCode(t, err, InvalidArgument)
	}
	for _, r := range []Request{{Credential: "other", TTL: time.Minute, Purpose: "p"}, {Credential: "key", TTL: time.Hour, Purpose: "p"},
		{Credential: "key", TTL: time.Minute, Purpose: "q"}} {
		if w.asks(c, r).ID == q.ID {
			t.Errorf("%+v is another question", r)
		}
	}
	if g, err := w.Lease(context.Background(), c, Request{Credential: "key", TTL: time.Minute, Purpose: "p"}); err != nil || g.LeaseID == "" {
		t.Errorf("asking the same again finds the yes: %+v, %v", g, err)
	}
}

func TestWhatTheAgentSaysStandsLastAndInQuotes(t *testing.T) {
	w, c := asking(t, policy.Operator)
	c.ClientName = "nice\nclient"
	q := w.asks(c, Request{Credential: "key", Purpose: "x\"\n  delivery: proxy \u202e\x1b[2J\u200b"})
	text := q.Question.String()
	lines := strings.Split(text, "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, `  the agent says: "`) || !strings.HasSuffix(last, `"`) || len(lines) != 7 {
		t.Errorf("%s", text)
	}
	for _, r := range text {
		if r < ' ' && r != '\n' || r == '\u202e' || r == '\u200b' || r == 0x1b {
			t.Errorf("%U reaches the person: %q", r, text)
		}
	}
	for _, part := range []string{"claude-code", "by its own word only", "uid:1000", "key, version 1", "value: the agent sees", "15m"} {
		if !strings.Contains(text, part) {
			t.Errorf("the question does not say %q:\n%s", part, text)
		}
	}
}

func TestWaitingEndsWithTheAnswer(t *testing.T) {
	w, c := asking(t, policy.Operator)
	q := w.asks(c, Request{Credential: "key"})
	done := make(chan struct{})
	go func() { w.Await(context.Background(), c, q.ID); close(done) }()
	select {
	case <-done:
		t.Fatal("nobody answered yet")
	case <-time.After(50 * time.Millisecond):
	}
	w.approves(q.ID)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the answer was not heard")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.Await(ctx, c, w.asks(c, Request{Credential: "other"}).ID)
	w.Await(context.Background(), w.agent("stranger"), q.ID)
}

func TestAClientsYesDoesNotTakeBackAPersonsNo(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("version: 1\nrules:\n  - {name: p, identities: ['*'], credentials: [key, other], approval: operator}\n  - {name: u, identities: ['*'], credentials: [mine], approval: user}\n")
	w.put("key", "sk-fake-1", policy.CredentialPolicy{})
	w.put("other", "sk-fake-1", policy.CredentialPolicy{})
	w.put("mine", "sk-fake-2", policy.CredentialPolicy{})
	c := w.agent("claude")
	w.denies(w.asks(c, Request{Credential: "key"}).ID, "")
	if err := w.ClientAnswered(context.Background(), c, w.asks(c, Request{Credential: "mine"}).ID, true); err != nil {
		t.Fatal(err)
	}
	w.denies(w.asks(c, Request{Credential: "other"}).ID, "")
	_, err := w.Lease(context.Background(), c, Request{Credential: "key", Purpose: "again"})
	wantCode(t, err, ApprovalDenied)
}

func TestAnsweredQuestionsDoNotPileUp(t *testing.T) {
	w := newWorld(t)
	for i := range 3 * maxAnswered {
		id := strconv.Itoa(i)
		asked := &store.Entry{Seq: uint64(i), Time: w.now, Event: store.EventApprovalAsked, Identity: store.EntryIdentity{Type: "agent", Name: "a", Proof: "declared"},
			Details: store.DetailsOf("approval_id", id, "ttl", "1m", "expires_at", stamp(w.now.Add(ApprovalFor)))}
		over := &store.Entry{Seq: uint64(i), Time: w.now, Event: store.EventApprovalExpired, Details: store.DetailsOf("approval_id", id)}
		if err := w.ix.applyApproval(asked); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue // waits
		}
		if err := w.ix.applyApproval(over); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.ix.asked) > maxAnswered+1 || w.ix.asked["0"] == nil || w.ix.asked[strconv.Itoa(3*maxAnswered-1)] == nil {
		t.Errorf("%d are remembered, or not the open and the newest ones", len(w.ix.asked))
	}
	w.restart(true)
	if len(w.ix.answered) != len(w.ix.asked)-1 {
		t.Errorf("after a restart %d answered ones of %d are known as such", len(w.ix.answered), len(w.ix.asked)-1)
	}
}
