package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"keylease/server"
)

func (a *app) helperAWSCommand() *cobra.Command {
	var f helperFlags
	c := &cobra.Command{Use: "aws --credential NAME", Short: "Give the AWS tools a leased credential (credential_process)", Args: exactly(),
		Long: `Answers the AWS CLI and SDKs when they ask for a key. In ~/.aws/config:

    [profile deploy]
    credential_process = keylease helper aws --credential aws-deploy

The value is the secret access key, and the metadata accessKeyId the id that goes with it; or the value is the JSON that
aws sts prints, with AccessKeyId, SecretAccessKey and SessionToken. The tools keep the key until the lease ends and ask
again then, or somewhat before: give it a lease of half an hour or more. Who is asking: see keylease exec.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.credential == "" {
				return usagef("name it with --credential", "which credential?")
			}
			if err := a.unseen("the AWS tools", "aws"); err != nil {
				return err
			}
			return a.lend(cmd.Context(), f, server.ExecRequest{Program: "aws", Purpose: "the AWS tools ask for a key"}, func(e *server.Exec) error {
				answer, err := awsAnswer(e)
				if err != nil {
					return err
				}
				return a.write(answer)
			})
		}}
	a.helperFlags(c, &f, "the credential to give", "")
	return c
}

// awsKeys is what credential_process wants, and what aws sts prints of a session.
type awsKeys struct {
	Version         int        `json:"Version"`
	AccessKeyID     string     `json:"AccessKeyId"`
	SecretAccessKey string     `json:"SecretAccessKey"`
	SessionToken    string     `json:"SessionToken,omitempty"`
	Expiration      *time.Time `json:"Expiration,omitempty"`
}

// awsAnswer is good until the lease ends, or the session that the value is of.
func awsAnswer(e *server.Exec) ([]byte, error) {
	k := awsKeys{AccessKeyID: e.Metadata["accessKeyId"], SecretAccessKey: string(e.Value)}
	until := e.ExpiresAt.UTC().Truncate(time.Second)
	if value := bytes.TrimSpace(e.Value); bytes.HasPrefix(value, []byte("{")) {
		if k = (awsKeys{}); json.Unmarshal(value, &k) != nil { // its error would quote the value
			return nil, fail(exitError, "store what aws sts get-session-token --query Credentials prints", "the value of %s looks like JSON and can't be read as AWS keys", terminal(e.Credential))
		}
		if k.Expiration != nil && k.Expiration.Before(until) {
			until = *k.Expiration
		}
	}
	if k.AccessKeyID == "" || k.SecretAccessKey == "" {
		return nil, fail(exitError, fmt.Sprintf("ask the operator to store it with --meta accessKeyId=AKIA…, or in a seed file (%s)", terminal(e.Credential)),
			"%s has no access key id in its metadata (accessKeyId)", terminal(e.Credential))
	}
	k.Version, k.Expiration = 1, &until
	answer, err := json.Marshal(k)
	return append(answer, '\n'), err
}
