package server

import (
	"strings"
	"testing"

	"keylease/internal/identity"
)

func TestNameOfALocalCallerFromClientInfo(t *testing.T) {
	for claimed, want := range map[string]string{
		"claude-code":                    "claude-code",
		"codex-mcp-client":               "codex",
		"gemini-cli-mcp-client":          "gemini",
		"gemini-cli-mcp-client-keylease": "gemini",
		"Visual Studio Code":             "vscode",
		"Visual Studio Code - Insiders":  "vscode",
		"cursor-vscode":                  "cursor",
		"opencode":                       "opencode",
		"My Client (v2)":                 "my-client-v2",
		"  --odd..name--":                "odd..name",
		"ROOT":                           "root",
		"../../etc/passwd":               "etc-passwd",
		"a*b?[c]{d}":                     "a-b-c-d",
		"Ünïcode":                        "n-code",
		"":                               "local",
		"***":                            "local",
		"日本":                             "local",
	} {
		if got := callerName(claimed); got != want {
			t.Errorf("callerName(%q) = %q, want %q", claimed, got, want)
		}
	}
	if got := callerName(strings.Repeat("x", 5000)); len(got) != maxClaim {
		t.Errorf("a long name kept %d bytes", len(got))
	}
}

func FuzzCallerName(f *testing.F) {
	f.Add("Visual Studio Code")
	f.Add("K\u212a\u0000ſ")
	f.Fuzz(func(t *testing.T, claimed string) {
		if err := identity.CheckName(callerName(claimed)); err != nil {
			t.Fatal(err)
		}
	})
}
