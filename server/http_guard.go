package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"keylease/internal/identity"
	"keylease/internal/lease"
)

const maxHTTPBody = maxLine

// fault is an HTTP answer that is no success, in the error shape of the wire contract.
type fault struct {
	lease.Refusal
	status int
	header [2]string // one more header, if its name is not empty
	close  bool      // what is left of the connection can't be trusted to be a request
}

func (f *fault) write(w http.ResponseWriter) {
	h, body := w.Header(), wireFrom(&f.Refusal)
	h.Set("Content-Type", "application/json")
	if f.header[0] != "" {
		h.Set(f.header[0], f.header[1])
	}
	if f.close {
		h.Set("Connection", "close")
	}
	if s := body.Error.RetryAfterSeconds; s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(body)
}

func refusing(status int, r lease.Refusal) *fault { return &fault{status: status, Refusal: r} }

func badRequest(status int, message, hint string) *fault {
	return refusing(status, lease.Refusal{Code: lease.InvalidArgument, Message: message, Hint: hint})
}

func forbidden(message, hint string) *fault {
	return refusing(403, lease.Refusal{Code: CodeDenied, Message: message, Hint: hint})
}

func rateLimited(message string, retry time.Duration) *fault {
	return refusing(429, lease.Refusal{Code: lease.RateLimited, Message: message, RetryAfter: retry,
		Hint: "Wait as long as retry_after says, then try again."})
}

func internalFault(id string) *fault {
	return refusing(500, lease.Refusal{Code: lease.Internal, ID: id, Message: "something went wrong inside keylease",
		Hint: "Tell the operator this id; the daemon's log says more."})
}

// unauthenticated says nothing of why: unknown, expired and revoked are one answer. tried is whether a credential
// was sent.
func unauthenticated(tried bool) *fault {
	f := refusing(401, lease.Refusal{Code: lease.Unauthenticated, Message: "a valid bearer token is needed",
		Hint: "Ask the operator for a token (keylease token create) and send it as 'Authorization: Bearer …'."})
	f.header = [2]string{"WWW-Authenticate", "Bearer"}
	if tried {
		f.header[1] = `Bearer error="invalid_token"`
	}
	return f
}

func notFound(message, hint string) *fault {
	return refusing(404, lease.Refusal{Code: lease.NotAvailable, Message: message, Hint: hint})
}

func noSession() *fault {
	return notFound("there is no such session", "Begin a new session with initialize.")
}

func methodNotAllowed(allow string) *fault {
	f := badRequest(405, "this method is not allowed here", "Use "+allow+".")
	f.header = [2]string{"Allow", allow}
	return f
}

// admissible looks at a request's head alone, before anybody is asked who they are: it keeps web pages out, which
// could otherwise use a browser on this machine to reach the daemon (by DNS rebinding, a cross-site form or fetch).
func (h *httpHandler) admissible(r *http.Request) *fault {
	switch {
	case !h.hostAllowed(r.Host):
		return forbidden("this Host is not served here", "Use a loopback address, or have the operator allow the host name.")
	case !originAllowed(r, h.AllowedOrigins):
		return forbidden("this Origin may not call keylease", "Call from a program and not from a web page, or have the operator allow the origin.")
	case len(r.Header["Content-Encoding"]) > 0:
		return badRequest(415, "encoded bodies are not taken", "Send the body as it is, without Content-Encoding.")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest(400, "the query string is malformed", "Correct the address.")
	}
	for name := range query {
		switch strings.ToLower(name) {
		case "token", "access_token", "authorization":
			return badRequest(400, "a token does not belong in an address, where logs and histories keep it",
				"Send it as 'Authorization: Bearer …', and have the operator rotate this one.")
		}
	}
	if r.Method == http.MethodPost {
		kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		charset, given := params["charset"]
		if err != nil || kind != "application/json" || given && !strings.EqualFold(charset, "utf-8") {
			return badRequest(415, "only application/json is taken", "Send Content-Type: application/json.")
		}
	} else if r.ContentLength != 0 {
		return badRequest(400, "only POST takes a body", "Send it without a body.")
	}
	return nil
}

func (h *httpHandler) hostAllowed(host string) bool {
	name := hostname(host)
	if isLoopbackName(name) {
		return true
	}
	same := func(allowed string) bool { return strings.EqualFold(allowed, name) || strings.EqualFold(allowed, host) }
	return slices.ContainsFunc(h.AllowedHosts, same)
}

// hostname is a Host without its port.
func hostname(host string) string {
	if n, _, err := net.SplitHostPort(host); err == nil {
		host = n
	}
	return strings.Trim(host, "[]")
}

func isLoopbackName(name string) bool {
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// originAllowed believes what browsers say of themselves: programs send neither header. A page of this very server
// is allowed (we serve none), a page from another port of this machine is not.
func originAllowed(r *http.Request, others []string) bool {
	origins := r.Header["Origin"]
	if len(origins) > 1 {
		return false
	}
	listed := len(origins) == 1 && slices.Contains(others, origins[0])
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	case "same-site":
		if !listed {
			return false
		}
	default:
		return false
	}
	if len(origins) == 0 || listed {
		return true
	}
	u, err := url.Parse(origins[0])
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && strings.EqualFold(u.Host, r.Host)
}

// authenticate says who sends this request, from its Authorization header or its certificate and nothing else. The
// request it returns carries what entrantOf finds.
func (h *httpHandler) authenticate(r *http.Request) (*http.Request, identity.Principal, *fault) {
	e, err := h.identify(r)
	tried := len(r.Header["Authorization"]) > 0 || r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	var f *fault
	switch refusal := lease.AsRefusal(err); {
	case errors.Is(err, lease.ErrUnauthenticated) || refusal != nil && refusal.Code == lease.Unauthenticated:
		h.Log.Debug().Str("source", network(r.RemoteAddr)).AnErr("why", err).Msg("http request not authenticated")
		f = h.challenged(tried)
	case refusal != nil && refusal.Code == lease.RateLimited:
		f = rateLimited(refusal.Message, max(refusal.RetryAfter, time.Second))
	case refusal != nil && refusal.Code == lease.Unavailable:
		f = refusing(503, *refusal)
	case err != nil:
		id := rand.Text()
		h.Log.Error().Str("id", id).Err(err).Msg("authenticating an http request failed")
		f = internalFault(id)
	case e.Name == "" || !e.Proof.AtLeast(identity.Token):
		f = h.challenged(true) // nobody, or a name without a proof: never let in
	}
	if f != nil {
		return r, identity.Principal{}, f
	}
	return withEntrant(r, e), e.Principal, nil
}

// limitReading bounds how long and how much a request may make us read. A body that is never read falls under the
// deadline too, because net/http drains it before it reuses the connection.
func (h *httpHandler) limitReading(w http.ResponseWriter, r *http.Request) *fault {
	if r.ContentLength == 0 {
		return nil
	}
	if r.ContentLength > maxHTTPBody {
		return tooLarge()
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.bodyTime))
	r.Body = http.MaxBytesReader(w, r.Body, maxHTTPBody)
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *fault) {
	body, err := io.ReadAll(r.Body)
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		f := badRequest(408, "the body did not come in time", "Send the request again.")
		f.close = true
		return nil, f
	case err != nil:
		f := badRequest(400, "the body could not be read", "Send the request again.")
		f.close = true
		return nil, f
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // answers may take their time
	return body, nil
}

func tooLarge() *fault {
	f := badRequest(413, "the message is larger than 64 KiB", "Send less.")
	f.close = true
	return f
}

// recovered answers for a panic: the client gets an id, the log gets the rest.
func (h *httpHandler) recovered(w *watchedWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	id := h.logPanic(v, r.Method+" "+r.URL.Path)
	if w.wrote {
		panic(http.ErrAbortHandler) // half an answer is out: cut it rather than pass it off as whole
	}
	internalFault(id).write(w)
}

func (h *httpHandler) logPanic(v any, where string) (id string) {
	id = rand.Text()
	what := fmt.Sprintf("%T", v) // its text may quote what it choked on
	if runtimeFault, ok := v.(runtime.Error); ok {
		what = runtimeFault.Error()
	}
	h.Log.Error().Str("id", id).Str("where", where).Str("panic", what).Bytes("stack", debug.Stack()).Msg("a request panicked")
	return id
}

// watchedWriter remembers whether an answer has begun, and gives its reader so long for each piece of it: an
// answer that nobody takes would otherwise hold its call, and its connection, for good.
type watchedWriter struct {
	http.ResponseWriter
	wrote   bool
	longest time.Duration
}

func (w *watchedWriter) begun() {
	w.wrote = true
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.longest))
}

func (w *watchedWriter) WriteHeader(status int) {
	w.begun()
	w.ResponseWriter.WriteHeader(status)
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	w.begun()
	return w.ResponseWriter.Write(p)
}

func (w *watchedWriter) Flush() {
	w.begun()
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
