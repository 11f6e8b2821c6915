package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"keylease/internal/identity"
)

// reading is what one reader takes from the members that decide something.
type reading struct {
	ID, Method, Name, Cursor, Version, Client, Credential, LeaseID, TTL string
}

func text(raw []byte) string {
	var s any
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	b, _ := json.Marshal(s)
	return string(b)
}

// lenient reads as encoding/json does: names in any case, the last of a kind wins. That is what mcp-go and the tools use.
func lenient(line []byte) (r reading, ok bool) {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method json.RawMessage `json:"method"`
		Params struct {
			Name      json.RawMessage `json:"name"`
			Cursor    json.RawMessage `json:"cursor"`
			Arguments struct {
				Credential json.RawMessage `json:"credential"`
				LeaseID    json.RawMessage `json:"lease_id"`
				TTL        json.RawMessage `json:"ttl"`
			} `json:"arguments"`
			Meta struct {
				Version json.RawMessage `json:"io.modelcontextprotocol/protocolVersion"`
				Client  json.RawMessage `json:"io.modelcontextprotocol/clientInfo"`
			} `json:"_meta"`
		} `json:"params"`
	}
	if json.Unmarshal(line, &m) != nil {
		return r, false
	}
	return reading{text(m.ID), text(m.Method), text(m.Params.Name), text(m.Params.Cursor), text(m.Params.Meta.Version), text(m.Params.Meta.Client),
		text(m.Params.Arguments.Credential), text(m.Params.Arguments.LeaseID), text(m.Params.Arguments.TTL)}, true
}

// exact reads names to the letter, and the first of a kind wins: a reader that could not differ more.
func exact(line []byte) reading {
	params := first(line)["params"]
	arguments, meta := first(params)["arguments"], first(first(line)["params"])["_meta"]
	return reading{text(first(line)["id"]), text(first(line)["method"]), text(first(params)["name"]), text(first(params)["cursor"]),
		text(first(meta)["io.modelcontextprotocol/protocolVersion"]), text(first(meta)["io.modelcontextprotocol/clientInfo"]),
		text(first(arguments)["credential"]), text(first(arguments)["lease_id"]), text(first(arguments)["ttl"])}
}

func first(object []byte) map[string][]byte {
	members := map[string][]byte{}
	d := jsontext.NewDecoder(bytes.NewReader(object), jsontext.AllowDuplicateNames(true))
	if tok, err := d.ReadToken(); err != nil || tok.Kind() != '{' {
		return members
	}
	for {
		tok, err := d.ReadToken()
		if err != nil || tok.Kind() != '"' {
			return members
		}
		name := tok.String()
		value, err := d.ReadValue()
		if err != nil {
			return members
		}
		if _, twice := members[name]; !twice {
			members[name] = value.Clone()
		}
	}
}

// Of a message that the strict pass lets through, no two readers can make two things: not one that folds case and takes
// the last, nor one that goes by the letter and takes the first, nor one that refuses what is ambiguous.
func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":[1,{"b":null}]}}`,
		`{"id":1,"ID":2}`,
		`{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"lease_credential","arguments":{"credential":"x","Credential":"y","ttl":"1m"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`,
		`{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"lease_credential","arguments":{"credential":"x"},"argument\u017f":{"credential":"y"}}}`,
		`{"method\u0000":"x","method":"y","\u006det\u0068od":"z","params":{"\ud800":1}}`,
		`{"params":{"_meta":{"io.modelcontextprotocol/clientInfo":{"name":"a","NAME":"b"},"progressToken":1,"progressTo` + "\u212a" + `en":2}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if strictJSON(line) != nil {
			if e, fault := parseEnvelope(line); fault == nil || e.ID != nil && !goodID(e.ID) {
				t.Fatalf("refused and yet read, or under the id %s: %q", e.ID, line)
			}
			return
		}
		if _, fault := parseEnvelope(line); fault != nil && fault.Code == -32700 {
			t.Fatalf("let through and yet not parsable: %q", line)
		}
		var members map[string]jsontext.Value
		if err := jsonv2.Unmarshal(line, &members); err != nil {
			t.Fatalf("a strict reader refuses it: %v: %q", err, line)
		}
		if a, ok := lenient(line); ok {
			// A member in another case counts for the lenient reader alone where it is no member of the protocol: then
			// the tool's schema, which goes by the letter, refuses it.
			if b := exact(line); a != b && !foreignCase(line) {
				t.Fatalf("two readings of %q:\n%+v\n%+v", line, a, b)
			}
		}
	})
}

// foreignCase reports whether params.arguments has one of the tools' own names in another case.
func foreignCase(line []byte) bool {
	for name := range first(first(first(line)["params"])["arguments"]) {
		for _, known := range []string{"credential", "lease_id", "ttl"} {
			if name != known && fold(name) == known {
				return true
			}
		}
	}
	return false
}

// What is not exactly one hello of this version, each member once, is refused; what is taken says what it says.
func FuzzHello(f *testing.F) {
	for _, s := range []string{`{"keylease":1,"kind":"mcp","version":"1","as":"alice","client_name":"x","client_version":"2"}`, `{"keylease":1,"kind":"admin"}`,
		`{"keylease":1,"kind":"mcp","token":"kl_x","TOKEN":"kl_y"}`, `{"keylease":2,"kind":"mcp"}`, `{"keylease":1,"kind":"mcp","as":"\u202ea"}`, "GET / HTTP/1.1\r\nHost: x\r\n"} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		h, err := readHello(quietConn{}, bufio.NewReaderSize(bytes.NewReader(sent), 4<<10))
		if err == nil {
			err = checkHello(h)
		}
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) || len(err.Error()) > 1000 {
				t.Fatalf("a strange error: %q", err)
			}
			return
		}
		line, _, found := bytes.Cut(sent, []byte("\n"))
		if !found || h.Keylease != helloVersion || h.Kind != kindMCP && h.Kind != kindAdmin && h.Kind != kindHandover {
			t.Fatalf("%q was taken as %+v", sent, h)
		}
		if h.Kind == kindMCP && h.Token == "" && h.As != "" && identity.CheckName(h.As) != nil {
			t.Fatalf("it may call itself %q", h.As)
		}
		named, want := map[string]string{"kind": h.Kind, "token": h.Token, "as": h.As, "client_name": h.ClientName}, map[string]string{}
		for name := range named {
			var s string
			if raw, ok := first(line)[name]; ok {
				_ = json.Unmarshal(raw, &s)
			}
			want[name] = s
		}
		if !reflect.DeepEqual(named, want) && !otherCase(line, named) {
			t.Fatalf("%q was read as %v, to the letter it is %v", line, named, want)
		}
	})
}

// otherCase reports whether a member of ours is there in another case only: encoding/json reads it, and nobody else does.
func otherCase(line []byte, named map[string]string) bool {
	for name := range first(line) {
		if _, exact := named[name]; exact {
			continue
		}
		if _, known := named[fold(name)]; known {
			return true
		}
	}
	return false
}

// quietConn is a connection without a clock.
type quietConn struct{ net.Conn }

func (quietConn) SetReadDeadline(time.Time) error { return nil }

// The Authorization header gives one token or none: nothing with a break in it, nothing long, nothing out of two.
func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer kl_abc", "bearer  kl_abc ", "Bearer a,b", "Bearer a b", "Basic x", "Bearer", "", "Bearer\tx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		token := bearer([]string{sent})
		if len(token) > maxBearer || strings.ContainsAny(token, " ,\t") || !strings.Contains(sent, token) {
			t.Fatalf("%q is the token of %q", token, sent)
		}
		if bearer([]string{sent, sent}) != "" || token != "" && !strings.EqualFold(sent[:7], "Bearer ") {
			t.Fatalf("%q", sent)
		}
	})
}
