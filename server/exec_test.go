package server

import (
	"testing"
	"time"

	"keylease/internal/lease"
)

func TestMetadataOfAnyNameDoesNotHideTheValue(t *testing.T) {
	grant := mustJSON(execTold{Granted: &ExecGrant{LeaseID: "ls_x", Credential: `a,"value":"b`, Metadata: map[string]string{"host": `,"value":"`, "value": "shadow"}}})
	line := append(grant[:len(grant)-1:len(grant)-1], `,"value":"ZmFrZQ=="}`...)
	head, value, granted := cutValue(line)
	if !granted || string(head) != string(grant) || string(value) != "ZmFrZQ==" {
		t.Errorf("%s and %s, %v", head, value, granted)
	}
	if head, value, granted := cutValue([]byte(`{"ended":"why"}`)); granted || value != nil || string(head) != `{"ended":"why"}` {
		t.Errorf("%s and %s, %v", head, value, granted)
	}
}

// What a person agrees to is kept in whole seconds: a fraction could never be granted as it was asked.
func TestACommandsTimeIsAWholeNumberOfSeconds(t *testing.T) {
	for _, ttl := range []time.Duration{-time.Second, 1, time.Second - 1, 1500 * time.Millisecond, lease.ApprovalFor + 1} {
		if q := (ExecRequest{Credential: "key", TTL: ttl}); q.plain() {
			t.Errorf("%s is taken", ttl)
		}
	}
	if q := (ExecRequest{Credential: "key", TTL: 2 * time.Second}); !q.plain() {
		t.Error("2s is not")
	}
}
