package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"keylease/internal/lease"
)

// AdminClient says the operator's verbs to the daemon over its socket. Every error that the daemon answered is a
// *lease.Refusal; the others say why it could not be reached (see Dial).
type AdminClient struct{ http http.Client }

// NewAdminClient reaches the daemon that d finds or starts. Nothing is dialled before the first verb.
func NewAdminClient(d DialOptions) *AdminClient {
	return &AdminClient{http.Client{Transport: &http.Transport{
		Proxy:              nil, // the environment has no say in this
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dialAdmin(ctx, d) },
	}}}
}

// segment is name as one segment of a path. "." and ".." would be walked on the way, to another verb's answer.
func segment(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

// Close lets go of the connection.
func (c *AdminClient) Close() { c.http.CloseIdleConnections() }

func (c *AdminClient) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, "GET", "/v1/status", nil, &s)
}

func (c *AdminClient) Credentials(ctx context.Context, match string) ([]lease.CredentialInfo, error) {
	var out struct {
		Credentials []lease.CredentialInfo `json:"credentials"`
	}
	return out.Credentials, c.call(ctx, "GET", "/v1/credentials?"+url.Values{"match": {match}}.Encode(), nil, &out)
}

func (c *AdminClient) Credential(ctx context.Context, name string) (i lease.CredentialInfo, err error) {
	return i, c.call(ctx, "GET", "/v1/credentials/"+segment(name), nil, &i)
}

func (c *AdminClient) Put(ctx context.Context, n CredentialItem) (i lease.CredentialInfo, err error) {
	return i, c.call(ctx, "POST", "/v1/credentials", n, &i)
}

func (c *AdminClient) Rotate(ctx context.Context, name string, value []byte, revokeLeases bool) (i lease.CredentialInfo, err error) {
	return i, c.call(ctx, "POST", "/v1/credentials/"+segment(name)+"/rotate", rotateRequest{value, revokeLeases}, &i)
}

func (c *AdminClient) RevokeCredential(ctx context.Context, name string) (i lease.CredentialInfo, err error) {
	return i, c.call(ctx, "POST", "/v1/credentials/"+segment(name)+"/revoke", nil, &i)
}

func (c *AdminClient) Remove(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/credentials/"+segment(name), nil, nil)
}

func (c *AdminClient) Seed(ctx context.Context, items []CredentialItem, force bool) ([]lease.SeedResult, error) {
	var out struct {
		Results []lease.SeedResult `json:"results"`
	}
	err := c.call(ctx, "POST", "/v1/seed", seedRequest{items, force}, &out)
	return out.Results, err
}

func (c *AdminClient) Leases(ctx context.Context, identity, credential string) ([]lease.Info, error) {
	var out struct {
		Leases []lease.Info `json:"leases"`
	}
	err := c.call(ctx, "GET", "/v1/leases?"+url.Values{"identity": {identity}, "credential": {credential}}.Encode(), nil, &out)
	return out.Leases, err
}

func (c *AdminClient) EndLease(ctx context.Context, id string) (e EndedLease, err error) {
	return e, c.call(ctx, "DELETE", "/v1/leases/"+segment(id), nil, &e)
}

func (c *AdminClient) RevokeLeases(ctx context.Context, f LeaseFilter) (int, error) {
	var out struct {
		Revoked int `json:"revoked"`
	}
	err := c.call(ctx, "POST", "/v1/leases/revoke", f, &out)
	return out.Revoked, err
}

func (c *AdminClient) Tokens(ctx context.Context) ([]lease.TokenInfo, error) {
	var out struct {
		Tokens []lease.TokenInfo `json:"tokens"`
	}
	err := c.call(ctx, "GET", "/v1/tokens", nil, &out)
	return out.Tokens, err
}

func (c *AdminClient) CreateToken(ctx context.Context, r TokenRequest) (t NewToken, err error) {
	return t, c.call(ctx, "POST", "/v1/tokens", r, &t)
}

func (c *AdminClient) RotateToken(ctx context.Context, id string, overlap time.Duration) (t NewToken, err error) {
	return t, c.call(ctx, "POST", "/v1/tokens/"+segment(id)+"/rotate", rotateTokenRequest{overlap}, &t)
}

func (c *AdminClient) RevokeToken(ctx context.Context, id string) (t lease.TokenInfo, err error) {
	return t, c.call(ctx, "POST", "/v1/tokens/"+segment(id)+"/revoke", nil, &t)
}

// Approvals lists the questions that are open, and those of the last hour, oldest first.
func (c *AdminClient) Approvals(ctx context.Context) (a Approvals, err error) {
	return a, c.call(ctx, "GET", "/v1/approvals", nil, &a)
}

// Approve says yes to one question; passphrase is nil where none is needed.
func (c *AdminClient) Approve(ctx context.Context, id string, passphrase []byte) (i lease.ApprovalInfo, err error) {
	return i, c.call(ctx, "POST", "/v1/approvals/"+segment(id)+"/approve", approveRequest{passphrase}, &i)
}

// Deny says no to one question; whoever asked is told the reason.
func (c *AdminClient) Deny(ctx context.Context, id, reason string) (i lease.ApprovalInfo, err error) {
	return i, c.call(ctx, "POST", "/v1/approvals/"+segment(id)+"/deny", denyRequest{reason}, &i)
}

// Freeze stops all lending; it returns since when nothing is lent, which may be earlier: then Already is set.
func (c *AdminClient) Freeze(ctx context.Context, reason string) (f lease.Frozen, err error) {
	return f, c.call(ctx, "POST", "/v1/freeze", freezeRequest{reason}, &f)
}

// Thaw lends again, and reports whether there was anything to thaw.
func (c *AdminClient) Thaw(ctx context.Context) (bool, error) {
	var out struct {
		Was bool `json:"was_frozen"`
	}
	return out.Was, c.call(ctx, "POST", "/v1/thaw", nil, &out)
}

func (c *AdminClient) Explain(ctx context.Context, q Question) (a Answer, err error) {
	return a, c.call(ctx, "POST", "/v1/policy/explain", q, &a)
}

// Verify has the daemon check its whole trail; key is the fingerprint that the caller kept, or "".
func (c *AdminClient) Verify(ctx context.Context, key string) (r VerifyReport, err error) {
	return r, c.call(ctx, "POST", "/v1/audit/verify", map[string]string{"key": key}, &r)
}

// Handover asks a daemon that was started automatically to drain and exit.
func (c *AdminClient) Handover(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/handover", nil, nil)
}

// Entries passes each entry of the trail to fn as the JSON that the daemon wrote. With q.Follow it ends only with ctx
// or the daemon.
func (c *AdminClient) Entries(ctx context.Context, q EntryQuery, fn func(entry []byte) error) error {
	v := url.Values{"identity": {q.Identity}, "credential": {q.Credential}, "event": {q.Event}, "lease": {q.LeaseID},
		"limit": {strconv.Itoa(q.Limit)}, "follow": {strconv.FormatBool(q.Follow)}}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	body, err := c.do(ctx, "GET", "/v1/audit?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), []byte(`{"error":`)) {
			if r := refusal(lines.Bytes()); r != nil {
				return r
			}
		}
		if err := fn(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the trail: %w", err)
	}
	return nil
}

func (c *AdminClient) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return nil
}

// do sends one request and returns the body of a 2xx answer.
func (c *AdminClient) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	resp, err := c.answer(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (c *AdminClient) answer(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var data []byte
	if in != nil {
		var err error
		if data, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://keylease"+path, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("building the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, plain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if r := refusal(answer); r != nil {
		return nil, r
	}
	return nil, fmt.Errorf("the daemon answered %s to %s %s", resp.Status, method, path)
}

// plain takes off what net/http wraps around an error: the invented URL says nothing to anybody.
func plain(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}
