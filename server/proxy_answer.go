package server

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"keylease/internal/lease"
	"keylease/internal/use"
)

// smallAnswer is up to what length, in bytes, an answer that says its length is read as a whole: its length can be said
// then, though masking changes it.
const smallAnswer = 32 << 10

// notHandedBack are headers of answers that are about the upstream's connection, or would lead a client past us.
var notHandedBack = [...]string{"Alt-Svc", "Strict-Transport-Security", "Public-Key-Pins", "Clear-Site-Data", "Accept-Ranges", "Content-Encoding", "Refresh", "Nel", "Report-To", "Reporting-Endpoints"}

// answered makes of the upstream's answer the one that the client gets.
func (t *passing) answered(res *http.Response) error {
	if err := t.Err(); err != nil {
		return err
	}
	switch {
	case res.StatusCode < 200 || res.StatusCode > 599:
		return badGateway(502, "the upstream answered with a status that is not passed on", "Ask the operator; this is not something to retry.")
	case res.StatusCode == http.StatusPartialContent || res.Header.Get("Content-Range") != "" && res.StatusCode < 300:
		return badGateway(502, "the upstream answered with a part of what was asked for, which can't be masked", "Ask for the whole.")
	}
	decode, ok := decoders(res.Header["Content-Encoding"])
	empty := res.Request.Method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
	if !ok && !empty {
		return badGateway(502, "the upstream answered in an encoding that keylease can't undo, and so can't mask", "Ask the operator; this is not something to retry.")
	}
	encoded := len(res.Header["Content-Encoding"]) > 0
	t.leadBack(res.Header)
	t.maskHeader(res.Header)
	t.maskHeader(res.Trailer)
	if !t.Lease.Plan.KeepsCookies() {
		res.Header.Del("Set-Cookie")
		res.Trailer.Del("Set-Cookie") // nor is one announced
	}
	for _, name := range notHandedBack {
		res.Header.Del(name)
	}
	if encoded {
		res.Header.Del("Content-Length")
	}
	if t.body.stillComes() { // net/http would wait for it before it sends the answer
		res.Header["Connection"] = []string{"close"}
	}
	if empty {
		return nil
	}
	return t.maskBody(res, decode)
}

// maskBody puts the masked body in the place of res's own.
func (t *passing) maskBody(res *http.Response, decode []decoder) error {
	inner := res.Body
	if n := res.ContentLength; n >= 0 && n <= smallAnswer && len(decode) == 0 {
		b := make([]byte, n)
		if _, err := io.ReadFull(liveReader{inner, t}, b); err != nil {
			return err
		}
		b = t.mask.Bytes(b)
		res.ContentLength = int64(len(b))
		res.Header["Content-Length"] = []string{strconv.Itoa(len(b))}
		t.w.whole, t.small = true, b
		res.Body = &outBody{bytes.NewReader(b), inner, res, t}
		return nil
	}
	res.Header.Del("Content-Length")
	res.ContentLength = -1
	var src io.Reader = liveReader{inner, t}
	for _, d := range decode {
		src = &decoding{src: src, open: d}
	}
	res.Body = &outBody{t.mask.Reader(src), inner, res, t}
	return nil
}

// maskHeader masks all values, and drops what has the key in its name.
func (t *passing) maskHeader(h http.Header) {
	for name, values := range h {
		if t.mask.Contains([]byte(name)) || len(name) >= t.Value.Len() && strings.Contains(strings.ToLower(name), strings.ToLower(string(t.Value.Bytes()))) {
			delete(h, name)
			continue
		}
		for i, v := range values {
			values[i] = t.mask.String(v)
		}
	}
}

// leadBack leads redirects within the upstream, and the next page of a list, back through us: whoever follows them would
// otherwise take the handle there, where it opens nothing. What leads elsewhere is handed back as it is, and not followed.
func (t *passing) leadBack(h http.Header) {
	if at := h.Get("Location"); at != "" {
		h.Set("Location", t.through(at, ""))
	}
	if proxyPeerOf(t.in.Context()).local { // who comes by the socket calls the service by its own name
		return
	}
	for i, v := range h["Link"] {
		parts := strings.SplitAfter(v, "<")
		for i, part := range parts[1:] {
			if target, rest, ok := strings.Cut(part, ">"); ok {
				parts[i+1] = t.through(target, "http://"+t.in.Host) + ">" + rest
			}
		}
		h["Link"][i] = strings.Join(parts, "")
	}
}

// through is how an address within the upstream is reached by way of us, who are at origin, and any other as it is. One
// that only says a path counts from the upstream's root, and is no longer that of the same thing here.
func (t *passing) through(address, origin string) string {
	base := t.Target.URL
	to, err := url.Parse(address)
	if err != nil || to.Opaque != "" || to.User != nil || to.Host == "" && (to.Scheme != "" || !strings.HasPrefix(to.Path, "/")) {
		return address
	}
	to.Scheme, to.Host = cmp.Or(to.Scheme, base.Scheme), cmp.Or(to.Host, base.Host)
	if !use.SameOrigin(to, base) {
		return address
	}
	root := strings.TrimSuffix(base.EscapedPath(), t.Target.Path)
	path, ok := strings.CutPrefix(to.EscapedPath(), root)
	if !ok || path != "" && path[0] != '/' || strings.HasPrefix(path, "//") {
		return to.String()
	}
	tail := (&url.URL{RawQuery: to.RawQuery, Fragment: to.Fragment}).String()
	return origin + t.call.prefix + cmp.Or(path, "/") + tail
}

// liveReader asks before each piece whether the lease still stands, whatever the sweeper does.
type liveReader struct {
	io.Reader
	t *passing
}

func (r liveReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if over := r.t.Err(); over != nil {
		clear(b[:n])
		return 0, over
	}
	return n, err
}

// outBody is a masked body. It masks the trailers too, which are there once the body's end was seen.
type outBody struct {
	io.Reader
	inner io.Closer
	res   *http.Response
	t     *passing
}

func (b *outBody) Close() error {
	err := b.inner.Close()
	b.t.maskHeader(b.res.Trailer)
	if !b.t.Lease.Plan.KeepsCookies() {
		b.res.Trailer.Del("Set-Cookie")
	}
	return err
}

func (f *fault) Error() string { return f.Message }

// failed answers for a request that brought no answer. What it says is fixed: an error's own text may hold what the
// upstream sent.
func (p *proxy) failed(t *passing, err error) {
	f, own := err.(*fault)
	switch {
	case t.Why() != "" || t.Err() != nil:
		f = noLease()
	case p.closing.Err() != nil:
		f = refusing(http.StatusServiceUnavailable, lease.Refusal{Code: lease.Unavailable, Message: "keylease is stopping", Hint: "Wait a moment and try again."})
	case own:
	case t.body != nil && t.body.failed.Load():
		f = badRequest(400, "the request's body did not come whole", "Send the request again.")
	case t.in.Context().Err() != nil: // the client has left
		t.reason = "the client left"
		panic(http.ErrAbortHandler)
	default:
		f = upstreamFault(err)
		p.log.Warn().Str("lease_id", t.Lease.LeaseID).Str("upstream", t.Target.URL.Host).
			Str("what", f.Message).Str("why", t.ours(err)).Msg("a proxied request failed")
	}
	t.reason = f.Message
	f.refuse(t.w, t.in)
}

// ours is err's text where it comes from this side: of dialling, names and certificates. Other errors quote what an
// upstream sent, which may be the key in pieces that no mask knows.
func (t *passing) ours(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	var verification *tls.CertificateVerificationError
	if errors.As(err, &op) || errors.As(err, &dns) || errors.As(err, &verification) || errors.Is(err, errAddress) || errors.Is(err, io.ErrUnexpectedEOF) {
		return cleanText(t.mask.String(err.Error()), 300)
	}
	return fmt.Sprintf("%T", err)
}

func upstreamFault(err error) *fault {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verification *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var late net.Error
	var slot slotError
	const ask = "Ask the operator to look at the credential's upstream and the daemon's log."
	const again = "Try again a little later; if it goes on, tell the operator."
	switch {
	case errors.As(err, &slot):
		return badGateway(502, "the credential's value can't be sent in the header that its upstream wants", ask)
	case errors.Is(err, errAddress):
		return badGateway(502, "the upstream's name leads to an address that keylease does not connect to", ask)
	case errors.Is(err, errRoots):
		return badGateway(502, "there are no certificate authorities on this system to check the upstream by", "Tell the operator: the system's bundle of authorities is missing, and proxy.ca names none.")
	case errors.As(err, &verification), errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &invalid):
		return badGateway(502, "the upstream's certificate could not be verified", ask)
	case errors.As(err, &record):
		return badGateway(502, "the upstream does not speak TLS", ask)
	case errors.As(err, &late) && late.Timeout():
		return badGateway(504, "the upstream did not answer in time", again)
	case errors.As(err, &dns):
		return badGateway(502, "the upstream's name could not be resolved", again)
	case errors.Is(err, syscall.ECONNREFUSED):
		return badGateway(502, "the upstream refused the connection", again)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return badGateway(502, "the upstream closed the connection without a whole answer", "Whether the request took effect is not known: look before you send it again.")
	}
	return badGateway(502, "the upstream could not be reached, or its answer could not be read", again)
}

// slotError says why a key can't be put into its header.
type slotError struct{ error }
