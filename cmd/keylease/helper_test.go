package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"keylease/server"
)

func lent(value string, metadata map[string]string) *server.Exec {
	return &server.Exec{Value: []byte(value), ExecGrant: server.ExecGrant{Credential: "key", ExpiresAt: time.Unix(2000, 500), Metadata: metadata}}
}

func TestGitIsAnsweredInItsOwnWords(t *testing.T) {
	const fake = "ghp_fake"
	for _, c := range []struct {
		name, asks, user string
		metadata         map[string]string
		want             string
	}{
		{"plain", "protocol=https\nhost=github.com\n\n", "", nil, "username=x-access-token\npassword_expiry_utc=2000\npassword=ghp_fake\n"},
		{"as the service wants it", "protocol=https\nhost=gitlab.com\n\n", "oauth2", nil, "username=oauth2\npassword_expiry_utc=2000\npassword=ghp_fake\n"},
		{"the service's own name beats the address's", "protocol=https\nhost=github.com\nusername=bob\n", "x-access-token", nil, "username=x-access-token\npassword_expiry_utc=2000\npassword=ghp_fake\n"},
		{"the address says who", "protocol=https\nhost=h:8443\nusername=bob\n", "", nil, "username=bob\npassword_expiry_utc=2000\npassword=ghp_fake\n"},
		{"nothing for other helpers to store", "capability[]=state\ncapability[]=authtype\nprotocol=https\nhost=github.com\nwwwauth[]=Basic realm=x\n\nrest", "u", nil,
			"capability[]=authtype\nauthtype=Basic\nephemeral=1\npassword_expiry_utc=2000\ncredential=dTpnaHBfZmFrZQ==\n"},
	} {
		q, err := readGitAsks(strings.NewReader(c.asks))
		if err != nil || !q.web() {
			t.Fatalf("%s: %+v %v", c.name, q, err)
		}
		e := lent(fake, c.metadata)
		e.User = c.user
		if got, err := q.answer(e, time.Unix(1000, 0)); err != nil || string(got) != c.want {
			t.Errorf("%s: %q %v", c.name, got, err)
		}
	}
}

func TestGitIsNotAnsweredWrongly(t *testing.T) {
	for name, c := range map[string]struct {
		asks string
		e    *server.Exec
	}{
		"for somebody else":         {"protocol=https\nhost=h\nusername=bob\n", lent("fake", map[string]string{"username": "alice"})},
		"a value of two lines":      {"protocol=https\nhost=h\n", lent("fake\nquit=1", nil)},
		"a user that ends the pair": {"capability[]=authtype\nprotocol=https\nhost=h\nusername=a:b\n", lent("fake", nil)},
	} {
		q, err := readGitAsks(strings.NewReader(c.asks))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := q.answer(c.e, time.Now()); err == nil || got != nil || strings.Contains(err.Error(), "fake") {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for _, asks := range []string{"", "protocol=cert\npath=/x\n", "protocol=ssh\nhost=h\n", "protocol=https\n"} {
		if q, err := readGitAsks(strings.NewReader(asks)); err != nil || q.web() {
			t.Errorf("%q is answered: %v", asks, err)
		}
	}
	if _, err := readGitAsks(strings.NewReader("not git\n")); err == nil {
		t.Error("a line without = was read")
	}
}

func TestAWSKeysComeWithTheirIdAndTheirEnd(t *testing.T) {
	session := `{"AccessKeyId":"FAKEID","SecretAccessKey":"fake","SessionToken":"fake-session","Expiration":"1970-01-01T00:20:00Z"}`
	for name, c := range map[string]struct {
		e    *server.Exec
		want string
	}{
		"a pair": {lent("fake", map[string]string{"accessKeyId": "FAKEID"}),
			`{"Version":1,"AccessKeyId":"FAKEID","SecretAccessKey":"fake","Expiration":"1970-01-01T00:33:20Z"}`},
		"a session, which ends before its lease": {lent(session, nil),
			`{"Version":1,"AccessKeyId":"FAKEID","SecretAccessKey":"fake","SessionToken":"fake-session","Expiration":"1970-01-01T00:20:00Z"}`},
	} {
		if got, err := awsAnswer(c.e); err != nil || string(got) != c.want+"\n" || !json.Valid(got) {
			t.Errorf("%s: %s %v", name, got, err)
		}
	}
	for _, e := range []*server.Exec{lent("fake", nil), lent(`{"AccessKeyId":"FAKEID"}`, nil), lent(`{fake`, map[string]string{"accessKeyId": "x"})} {
		if got, err := awsAnswer(e); err == nil || got != nil || strings.Contains(err.Error(), "fake") {
			t.Errorf("%s: %v", got, err)
		}
	}
}
