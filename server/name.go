package server

import "strings"

// clientNames is what known clients call themselves in clientInfo, and what policies call them. A name that ends in
// * stands for all that begin so.
var clientNames = []struct{ claimed, name string }{
	{"codex-mcp-client", "codex"},
	{"gemini-cli-mcp-client*", "gemini"},
	{"Visual Studio Code*", "vscode"},
	{"cursor-vscode", "cursor"},
	{"windsurf-client", "windsurf"},
}

// unnamed is a local caller that says nothing about itself.
const unnamed = "local"

// callerName makes an identity's name of what a client calls itself: by the table, else lower-cased with runs of
// other characters made '-'. It always passes identity.CheckName.
func callerName(claimed string) string {
	for _, c := range clientNames {
		if prefix, any := strings.CutSuffix(c.claimed, "*"); c.claimed == claimed || any && strings.HasPrefix(claimed, prefix) {
			return c.name
		}
	}
	var b strings.Builder
	gap := false
	for _, r := range strings.ToLower(claimed) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || b.Len() > 0 && !gap && strings.ContainsRune("._", r) {
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			gap = false
			b.WriteRune(r)
			continue
		}
		gap = true
	}
	if name := strings.TrimRight(b.String(), "-._"); name != "" {
		return name[:min(len(name), maxClaim)]
	}
	return unnamed
}
