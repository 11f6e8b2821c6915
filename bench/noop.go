//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// noopEnv makes this program the server that keylease is compared with: mcp-go with one tool that does nothing, no
// schemas that are checked, no tokens, no limits. Its value is the path of a socket.
const noopEnv = "KEYLEASE_BENCH_NOOP"

func noop(socket string) int {
	server := mcpserver.NewMCPServer("noop", "1", mcpserver.WithToolCapabilities(false))
	server.AddTool(mcp.NewTool("noop", mcp.WithString("credential"), mcp.WithString("ttl"), mcp.WithString("purpose"), mcp.WithString("delivery")),
		func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return mcp.NewToolResultText("ok"), nil
		})
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return failed(err)
	}
	local, err := net.Listen("unix", socket)
	if err != nil {
		return failed(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", mcpserver.NewStreamableHTTPServer(server))
	go func() { _ = http.Serve(web, mux) }()
	go func() {
		for { // mcp-go's loop for stdio knows one client only, so it gets one after the other
			conn, err := local.Accept()
			if err != nil {
				return
			}
			_ = newStdio(server).Listen(context.Background(), conn, conn)
			_ = conn.Close()
		}
	}()
	fmt.Println(web.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // until whoever started it is gone
	return 0
}

// newStdio takes as many calls at once as are sent: with mcp-go's default of 5 workers it would be slower.
func newStdio(server *mcpserver.MCPServer) *mcpserver.StdioServer {
	s := mcpserver.NewStdioServer(server)
	mcpserver.WithWorkerPoolSize(64)(s)
	mcpserver.WithQueueSize(1024)(s)
	return s
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, "bench: error:", err)
	return 1
}

// again starts this program as something else and returns what it says first.
func (r *run) again(env string) (string, int, error) {
	cmd := exec.Command(r.self)
	cmd.Env = append(os.Environ(), env)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	r.later(func() { _ = in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line), cmd.Process.Pid, err
}
