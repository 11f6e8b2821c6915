//go:build unix

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The configuration that ships for the systemd unit is one that keylease understands, once its group is there.
func TestTheShippedSystemConfigurationIsUnderstood(t *testing.T) {
	data, err := os.ReadFile("../../systemd/keylease.yaml.example")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keylease.yaml")
	text := strings.Replace(string(data), "[keylease-agents]", "[61012]", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{env: func(name string) string { return map[string]string{"HOME": t.TempDir()}[name] }, err: os.Stderr}
	a.flags.config = file
	s, err := a.settings(false)
	if err != nil {
		t.Fatal(err)
	}
	if s.system == nil || !slices.Equal(s.system.AgentGroups, []int{61012}) || s.system.AdminSocket != "/run/keylease/admin.sock" ||
		s.Socket.Path != agentSocket || s.anchor() != "/var/lib/keylease-anchor" {
		t.Errorf("understood as %+v, %+v", s.system, s.Config)
	}
	if line := s.agentReach(); line != " --socket "+agentSocket { // of init, which no socket was named to
		t.Errorf("agents are sent to %q", line)
	}
	unit, err := os.ReadFile("../../systemd/keylease.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []string{"User=keylease", "LoadCredential=root.key:", "RuntimeDirectory=keylease\n", "StateDirectory=keylease keylease-anchor\n"} {
		if !strings.Contains(string(unit), of) {
			t.Errorf("the unit has no %s", of)
		}
	}
}
