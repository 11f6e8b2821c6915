package main

import (
	"fmt"
	"maps"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"keylease/internal/strictyaml"
	"keylease/server"
)

// SocketConfig is about the local socket in system mode: a daemon with a user of its own, which lends to the agents of
// other users. Without Allow a daemon is its user's own, and the rest of this is refused.
type SocketConfig struct {
	Path  string      `koanf:"path" yaml:"path"`   // the agents' socket, at most 100 bytes
	Admin string      `koanf:"admin" yaml:"admin"` // the admin's; "": keylease.sock in the data folder
	Allow AllowConfig `koanf:"allow" yaml:"allow"`
}

// AllowConfig says whose agents may connect, by name or number. One of the two is enough.
type AllowConfig struct {
	UIDs   []strictyaml.Name `koanf:"uids" yaml:"uids"`
	Groups []strictyaml.Name `koanf:"groups" yaml:"groups"`
}

// AdminConfig says who administers in system mode, beside root and the daemon's own user, and what approving takes.
type AdminConfig struct {
	UIDs       []strictyaml.Name `koanf:"uids" yaml:"uids"`
	Passphrase string            `koanf:"-" yaml:"passphrase"` // Argon2id hash of what approve asks for; from the file alone
}

// adminSocket is where the installation puts the admin's socket: docs/system-mode.md.
const adminSocket = "/run/keylease/admin.sock"

// agentSocket is where the agents' socket is unless the configuration says otherwise.
const agentSocket = "/run/keylease/agent.sock"

// understandSystem settles whether this is system mode, and who is who in it.
func (s *settings) understandSystem(from sources) (err error) {
	c := &s.Config.Socket
	if len(c.Allow.UIDs)+len(c.Allow.Groups) == 0 {
		set := map[string]bool{"socket.path": c.Path != "", "socket.admin": c.Admin != "", "admin.uids": len(s.Admin.UIDs) > 0}
		for _, key := range slices.Sorted(maps.Keys(set)) {
			if set[key] {
				return from.fault(key, "name those who may connect in socket.allow, as uids or groups; or leave this out", "this is for system mode, and nobody is named in socket.allow")
			}
		}
		return nil
	}
	s.system = &server.System{AdminSocket: c.Admin}
	if c.Path == "" {
		c.Path = agentSocket
	}
	if c.Admin == "" {
		s.system.AdminSocket = filepath.Join(s.Data, "keylease.sock")
	}
	paths := map[string]string{"socket.path": c.Path, "socket.admin": s.system.AdminSocket}
	for _, key := range slices.Sorted(maps.Keys(paths)) {
		if len(paths[key]) > server.MaxSocketPath {
			return from.fault(key, "choose a shorter one, as in /run/keylease", "the path of a socket has at most %d bytes: %s", server.MaxSocketPath, terminal(paths[key]))
		}
	}
	if s.system.AgentUIDs, err = numbers(c.Allow.UIDs, uidOf); err != nil {
		return from.fault("socket.allow.uids", "name a user of this system, or a uid", "%s", err)
	}
	if s.system.AgentGroups, err = numbers(c.Allow.Groups, gidOf); err != nil {
		return from.fault("socket.allow.groups", "name a group of this system, or a gid", "%s", err)
	}
	if s.system.AdminUIDs, err = numbers(s.Admin.UIDs, uidOf); err != nil {
		return from.fault("admin.uids", "name a user of this system, or a uid", "%s", err)
	}
	return nil
}

func numbers(names []strictyaml.Name, look func(string) (string, error)) ([]int, error) {
	ids := make([]int, len(names))
	for i, name := range names {
		text := string(name)
		if _, err := strconv.ParseUint(text, 10, 32); err != nil {
			if text, err = look(text); err != nil {
				return nil, fmt.Errorf("there is no %q on this system", terminal(string(name)))
			}
		}
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil || id == 1<<32-1 { // the number that stands for nobody
			return nil, fmt.Errorf("%q is not the number of anybody", terminal(text))
		}
		ids[i] = int(id)
	}
	return ids, nil
}

func uidOf(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func gidOf(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// guarded is what decides over the daemon, and so may not be in an agent's hands.
func (a *app) guarded(s settings) ([]string, error) {
	files := []string{s.configFile, s.PolicyFile, s.anchor()}
	source, _, err := a.keySource(s)
	if err != nil {
		return nil, err
	}
	if path, ok := keyPath(source, s); ok {
		files = append(files, path)
	}
	if len(s.Approvals.Notify) > 0 {
		files = append(files, s.Approvals.Notify[0])
	}
	who := []string{s.TLS.Cert, s.TLS.Key, s.TLS.ClientCA}
	for _, i := range s.Issuers {
		who = append(who, i.CAFile)
	}
	for _, path := range who { // whom HTTP believes
		if path != "" {
			files = append(files, path)
		}
	}
	return files, nil
}

// named returns the socket that the command line or the environment names, or the one that the configuration gives to
// those who join a daemon of system mode; "" for that of an own daemon, which may be started.
func (s *settings) named(env func(string) string, inSystem string) (string, error) {
	if s.paths.Socket != "" {
		return s.paths.Socket, nil
	}
	if path := env("KEYLEASE_SOCKET"); path != "" || s.system == nil {
		return absolute(path)
	}
	return inSystem, nil
}

// anchor is the folder of the anchors.
func (s settings) anchor() string {
	if s.Anchor != "" {
		return s.Anchor
	}
	return s.paths.Config
}

// agentArgs is the arguments of an agent's entry in its client's file.
func (s settings) agentArgs() string {
	if s.system == nil {
		return `"mcp"`
	}
	return `"mcp", "--socket", "` + s.agentsAt() + `"`
}

// agentReach is what an agent's command line needs to reach this daemon, with a space before it.
func (s settings) agentReach() string {
	if s.system != nil {
		return " --socket " + s.agentsAt()
	}
	return s.reach()
}

// agentsAt is the agents' socket in system mode.
func (s settings) agentsAt() string {
	if s.paths.Socket != "" {
		return s.paths.Socket
	}
	return s.Socket.Path
}
