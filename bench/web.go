//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// web is one HTTP connection of a client that costs little, since it shares the machine with the server.
type web struct {
	conn net.Conn
	r    *bufio.Reader
	head []byte // the head of a request, up to the length
	out  []byte
	in   bytes.Buffer
}

func dialWeb(addr string) (*web, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &web{conn: conn, r: bufio.NewReaderSize(conn, 32<<10)}, nil
}

func (c *web) Close() { _ = c.conn.Close() }

// headed sets what every request begins with. Headers come in pairs.
func (c *web) headed(addr, path string, headers ...string) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n", path, addr)
	for i := 0; i+1 < len(headers); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", headers[i], headers[i+1])
	}
	b.WriteString("Content-Length: ")
	c.head = b.Bytes()
}

// post sends one request and returns its answer, which is good until the next.
func (c *web) post(parts ...[]byte) (header http.Header, body []byte, err error) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	c.out = append(c.out[:0], c.head...)
	c.out = strconv.AppendInt(c.out, int64(n), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	for _, p := range parts {
		c.out = append(c.out, p...)
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return nil, nil, err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, nil, err
	}
	c.in.Reset()
	_, err = io.Copy(&c.in, res.Body)
	_ = res.Body.Close()
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("HTTP %d: %s", res.StatusCode, tail(c.in.String()))
	}
	return res.Header, c.in.Bytes(), err
}

// agent is an MCP client of Streamable HTTP with a session of its own.
type agent struct {
	*web
	id int
}

// dialAgent opens a connection and a session. token is "" for a server that wants none.
func dialAgent(addr, token string) (*agent, error) {
	c, err := dialWeb(addr)
	if err != nil {
		return nil, err
	}
	headers := []string{"Mcp-Protocol-Version", revision}
	if token != "" {
		headers = append(headers, "Authorization", "Bearer "+token)
	}
	c.headed(addr, "/mcp", headers...)
	header, _, err := c.post([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"` + revision + `","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`))
	if err != nil {
		return nil, err
	}
	c.headed(addr, "/mcp", append(headers, "Mcp-Session-Id", header.Get("Mcp-Session-Id"))...)
	_, _, err = c.post([]byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`))
	return &agent{web: c, id: 1}, err
}

func (a *agent) ask(body []byte) ([]byte, error) {
	a.id++
	_, answer, err := a.post([]byte(`{"jsonrpc":"2.0","id":`), strconv.AppendInt(nil, int64(a.id), 10), []byte(","), body)
	if err == nil && bad(answer) {
		err = fmt.Errorf("refused: %s", tail(string(answer)))
	}
	return answer, err
}

// agents opens many, over which the tokens go round.
func (r *run) agents(addr string, n int, tokens ...string) (all []*agent, err error) {
	for i := range n {
		token := ""
		if len(tokens) > 0 {
			token = tokens[i%len(tokens)]
		}
		a, err := dialAgent(addr, token)
		if err != nil {
			return nil, err
		}
		r.later(a.Close)
		all = append(all, a)
	}
	return all, nil
}
