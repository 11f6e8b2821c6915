package server

import (
	"os"
	"runtime"
	"testing"
)

func TestAdminHurdleFollowsTheProcessTree(t *testing.T) {
	const init, shell, client, relay, tool, cli, demo, demoRelay = 1, 10, 20, 30, 40, 50, 60, 70
	const tmux, pane, paneRelay, paneTool, person = 110, 120, 130, 140, 150
	table := map[int]process{
		shell:     {parent: init, session: shell, exe: "/bin/bash"},
		client:    {parent: shell, session: shell, exe: "/usr/bin/node"},
		relay:     {parent: client, session: shell, exe: "/usr/bin/keylease"},
		tool:      {parent: client, session: shell, exe: "/bin/bash"},
		cli:       {parent: tool, session: shell, exe: "/usr/bin/keylease"},
		demo:      {parent: shell, session: shell, exe: "/opt/other/keylease"},
		demoRelay: {parent: demo, session: shell, exe: "/opt/other/keylease"},
		80:        {parent: relay, session: shell, exe: "/bin/sh"},
		90:        {parent: shell, session: shell, exe: "/usr/bin/keylease"},
		100:       {parent: demo, session: shell, exe: "/opt/other/keylease"},
		tmux:      {parent: init, session: tmux, exe: "/usr/bin/tmux"},
		pane:      {parent: tmux, session: pane, exe: "/usr/bin/node"}, // tmux new-session claude: no shell leads the session
		paneRelay: {parent: pane, session: pane, exe: "/usr/bin/keylease"},
		paneTool:  {parent: pane, session: pane, exe: "/bin/bash"},
		person:    {parent: tmux, session: person, exe: "/bin/zsh"},
		160:       {parent: tmux, session: 160, exe: "/usr/bin/keylease"}, // tmux new-session keylease mcp
		170:       {parent: 180, session: 170, exe: "/usr/bin/keylease"},
		180:       {parent: init, session: 180}, // another user's, as sshd
		190:       {parent: 180, session: 190, exe: "/bin/bash (deleted)"},
	}
	m := newMCPPeers(func(pid int) (process, bool) { p, ok := table[pid]; return p, ok }, "/usr/bin/keylease")
	leave := m.join(&localPeer{PID: relay})
	again := m.join(&localPeer{PID: relay})
	defer m.join(&localPeer{PID: demoRelay})()
	defer m.join(&localPeer{PID: paneRelay})()
	defer m.join(&localPeer{PID: 160})()
	defer m.join(&localPeer{PID: 170})()
	defer m.join(&localPeer{PID: shell, lost: true})() // had been a relay's number, which is gone
	for pid, want := range map[int]bool{
		cli: true, tool: true, client: true, relay: true, 80: true, // the agent and all below it
		90: false, shell: false, demo: false, 100: false, // a person's shell, and keylease's own commands
		pane: true, paneTool: true, tmux: false, person: false, 180: false, 190: false,
		999: false, init: false, 0: false,
	} {
		if why, yes := m.descends(pid); yes != want {
			t.Errorf("descends(%d) = %v (%s), want %v", pid, yes, why, want)
		}
	}
	leave()
	if _, yes := m.descends(cli); !yes {
		t.Error("the relay still has a connection")
	}
	again()
	if why, yes := m.descends(cli); yes {
		t.Errorf("no relay is left, and yet: %s", why)
	}
}

func TestAProcessTableThatRunsInACircleIsLeft(t *testing.T) {
	m := newMCPPeers(func(pid int) (process, bool) { return process{parent: pid%5 + 2, session: pid}, true }, "")
	defer m.join(&localPeer{PID: 77})()
	if _, yes := m.descends(3); yes {
		t.Error("3 is no child of 77")
	}
}

func TestLookProcessKnowsUs(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	p, ok := lookProcess(os.Getpid())
	if !ok || p.parent != os.Getppid() || p.exe == "" {
		t.Errorf("got %+v, %v; our parent is %d", p, ok, os.Getppid())
	}
}
