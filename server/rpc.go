package server

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/rs/zerolog"
)

// envelope is a JSON-RPC message as far as the transport has to know it. The line has passed strictJSON, so the
// decoder's leniency about case and duplicates has nothing to work on.
type envelope struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
}

func (e *envelope) isRequest() bool      { return e.Method != "" && e.ID != nil }
func (e *envelope) isNotification() bool { return e.Method != "" && e.ID == nil }
func (e *envelope) isAnswer() bool {
	return e.Method == "" && e.ID != nil && (e.Result != nil || e.Error != nil)
}

// parseEnvelope is strictJSON and the reading of the message's outside.
func parseEnvelope(line []byte) (envelope, *rpcError) {
	var e envelope
	if err := strictJSON(line); err != nil {
		code := mcp.INVALID_REQUEST
		if errors.Is(err, errNotJSON) {
			code = mcp.PARSE_ERROR
		}
		e.ID = soleID(line)
		return e, &rpcError{code, err.Error()}
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return e, &rpcError{mcp.INVALID_REQUEST, "a member of the message has the wrong type"}
	}
	if e.ID != nil && !goodID(e.ID) {
		e.ID = nil
		return e, &rpcError{mcp.INVALID_REQUEST, "id must be a string of at most 256 bytes or an integer below 2^53"}
	}
	switch {
	case e.JSONRPC != mcp.JSONRPC_VERSION:
		return e, &rpcError{mcp.INVALID_REQUEST, `jsonrpc must be "2.0"`}
	case e.Method == "" && !e.isAnswer():
		return e, &rpcError{mcp.INVALID_REQUEST, "the message has no method"}
	}
	return e, nil
}

// soleID is the id that the answer to a refused message can go by: nil unless the message has exactly one, in plain
// sight. Without it the sender would wait for its answer until it gives up.
func soleID(line []byte) (id json.RawMessage) {
	if len(line) > maxLine {
		return nil
	}
	dec := jsontext.NewDecoder(bytes.NewReader(line), jsontext.AllowDuplicateNames(true))
	for n := 0; ; n++ {
		tok, err := dec.ReadToken()
		switch {
		case err != nil || n == 0 && tok.Kind() != '{':
			return nil
		case n == 0:
			continue
		case tok.Kind() == '}':
			return id
		}
		name := tok.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil
		}
		if fold(name) != "id" {
			continue
		}
		if name != "id" || id != nil || !goodID(json.RawMessage(value)) {
			return nil
		}
		id = json.RawMessage(value.Clone())
	}
}

// goodID: what survives a decoder that reads numbers as float64, and is not null.
func goodID(id json.RawMessage) bool {
	if id[0] == '"' {
		return len(id) <= 258
	}
	n, err := strconv.ParseInt(string(id), 10, 64)
	return err == nil && n < 1<<53 && n > -(1<<53)
}

// idKey is what two ids that a decoder may confuse have in common: 1 and "1" are one id here, because they are one
// in mcp-go's table of calls that can be cancelled.
func idKey(id json.RawMessage) string {
	var s string
	if json.Unmarshal(id, &s) == nil {
		return s
	}
	return string(id)
}

// rpcError is a fault of the protocol, not of what was asked for.
type rpcError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *rpcError) line(id json.RawMessage) []byte {
	if id == nil {
		id = json.RawMessage("null")
	}
	return mustJSON(struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   *rpcError       `json:"error"`
	}{mcp.JSONRPC_VERSION, id, e})
}

// mustJSON encodes what always can be encoded.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err))
	}
	return b
}

// neutral keeps the words of handlers, decoders and panics from clients: an error that mcp-go made keeps its code and
// gets a text of ours; what was said is in the log under the id that the client is told.
func neutral(log zerolog.Logger, msg mcp.JSONRPCMessage) mcp.JSONRPCMessage {
	e, ok := msg.(mcp.JSONRPCError)
	if !ok {
		return msg
	}
	switch e.Error.Code {
	case mcp.PARSE_ERROR:
		e.Error.Message = "the message could not be parsed"
	case mcp.INVALID_REQUEST:
		e.Error.Message = "the request is not valid"
	case mcp.METHOD_NOT_FOUND:
		e.Error.Message = "this server has no such method"
	case mcp.INVALID_PARAMS:
		if !namesMetaField(e.Error.Message) {
			e.Error.Message = "unknown tool or invalid params: see tools/list"
		}
	case mcp.INTERNAL_ERROR:
		id := rand.Text()
		log.Error().Str("id", id).Str("error", cleanText(e.Error.Message, 500)).Msg("a call failed inside")
		e.Error.Message = "internal error " + id
		e.Error.Data = nil
	}
	return e
}

// namesMetaField reports whether mcp-go says which field of _meta a request of 2026-07-28 lacks: words of its own, which
// repeat nothing, and without which nobody would find what is wrong.
func namesMetaField(message string) bool {
	field, ok := strings.CutPrefix(message, "missing or invalid _meta field ")
	return ok && (field == mcp.MetaKeyProtocolVersion || field == mcp.MetaKeyClientCapabilities)
}

// panicText is what may be logged of a panic: the runtime's own words, else only the type of the value, which could
// hold anything.
func panicText(p any) string {
	if e, ok := p.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("a value of type %T", p)
}

// newSessionID is 128 random bits or more.
func newSessionID() string { return "ses_" + strings.ToLower(rand.Text()) }

// claimedClient is who the client software says it is in this request: the legacy handshake's clientInfo or the one
// in a modern request's _meta. Nothing is decided by it but a declared caller's name.
func claimedClient(e *envelope) (name, version string) {
	type info struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	var p struct {
		ClientInfo *info `json:"clientInfo"`
		Meta       struct {
			ClientInfo *info `json:"io.modelcontextprotocol/clientInfo"`
		} `json:"_meta"`
	}
	if err := json.Unmarshal(e.Params, &p); err != nil {
		return "", ""
	}
	who := p.Meta.ClientInfo
	if who == nil && e.Method == string(mcp.MethodInitialize) {
		who = p.ClientInfo
	}
	if who == nil {
		return "", ""
	}
	return cleanText(who.Name, maxClaim), cleanText(who.Version, maxClaim)
}

// maxClaim is how much of what a client says about itself is kept, in bytes.
const maxClaim = 100

func lastRune(s string) (rune, int) { return utf8.DecodeLastRuneInString(s) }
